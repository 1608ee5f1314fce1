//! Colours and symbols, each with a form for where there are none.

use std::io::IsTerminal;

use crate::arguments::ColorChoice;

/// What the stream can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// Colours and symbols beyond ASCII, by escape sequences.
    pub(crate) rich: bool,
    /// It is a terminal, so that what was printed can be redrawn in place.
    pub(crate) terminal: bool,
}

/// What a text means; the colour follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Good,
    Bad,
    Held,
    Going,
    Quiet,
    Strong,
}

impl Style {
    pub(crate) const PLAIN: Style = Style { rich: false, terminal: false };

    pub(crate) fn for_stream(choice: ColorChoice, stream: &impl IsTerminal) -> Style {
        let terminal = stream.is_terminal();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let rich = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !dumb && !refused,
        };
        Style { rich, terminal: terminal && !dumb }
    }

    pub(crate) fn paint(self, paint: Paint, text: &str) -> String {
        if !self.rich {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Good => "32",
            Paint::Bad => "31",
            Paint::Held => "33",
            Paint::Going => "36",
            Paint::Quiet => "2",
            Paint::Strong => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// The mark before a line that has this meaning.
    pub(crate) fn mark(self, paint: Paint) -> String {
        let (rich, plain) = match paint {
            Paint::Good => ("✔", "ok"),
            Paint::Bad => ("✖", "!!"),
            Paint::Held => ("◷", ".."),
            Paint::Going => ("↻", "->"),
            Paint::Quiet | Paint::Strong => ("·", "- "),
        };
        if self.rich { self.paint(paint, rich) } else { plain.to_owned() }
    }
}
