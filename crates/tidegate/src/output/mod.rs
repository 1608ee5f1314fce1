//! What is printed: results on standard output, everything else on standard error.

pub(crate) mod live;
mod say;
mod steps;
mod style;
pub(crate) mod table;
pub(crate) mod tree;

use std::io::{self, Write};

use serde::Serialize;

pub(crate) use say::{ask, say};
pub(crate) use style::{Paint, Style};

use crate::arguments::{GlobalArguments, OutputFormat};

/// Where and how a command prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) format: OutputFormat,
    /// For results.
    pub(crate) style: Style,
    /// For progress and errors.
    pub(crate) error_style: Style,
}

impl Output {
    pub(crate) fn new(global: &GlobalArguments) -> Self {
        Output {
            format: global.output,
            style: Style::for_stream(global.color, &io::stdout()),
            error_style: Style::for_stream(global.color, &io::stderr()),
        }
    }

    pub(crate) fn is_json(self) -> bool {
        self.format == OutputFormat::Json
    }

    /// Prints a result: as JSON for programs, else as `text` puts it for people. A reader that has gone away (`| head -1`)
    /// is no error: it has read what it wanted.
    pub(crate) fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&T, Style) -> String) -> io::Result<()> {
        match self.write(value, text) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }

    /// Prints a text that is the same for people and programs.
    pub(crate) fn text(self, text: &str) -> io::Result<()> {
        Output { format: OutputFormat::Text, ..self }.result(&(), |(), _| text.to_owned())
    }

    fn write<T: Serialize>(self, value: &T, text: impl FnOnce(&T, Style) -> String) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self.format {
            OutputFormat::Json => {
                serde_json::to_writer_pretty(&mut out, value)?;
                writeln!(out)?;
            }
            OutputFormat::Text => {
                let text = text(value, self.style);
                out.write_all(text.as_bytes())?;
                if !text.is_empty() && !text.ends_with('\n') {
                    writeln!(out)?;
                }
            }
        }
        out.flush()
    }
}

/// Text from elsewhere, made fit for a terminal: control characters, escape sequences among them, and characters that turn
/// the direction of what follows are shown and not obeyed.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        let turns = matches!(letter, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
        if letter == '\n' || !(letter.is_control() || turns) {
            plain.push(letter);
        } else {
            plain.extend(letter.escape_default());
        }
    }
    plain
}

/// Bytes for people: `1.4 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mut amount = count as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

/// A time for people, in UTC: `2026-07-01 12:30:05`.
pub(crate) fn moment(epoch_ms: u64) -> String {
    let time = i64::try_from(epoch_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| epoch_ms.to_string(), |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// A whole number with its thousands set apart: `28 298`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 record`, `28 298 records`.
pub(crate) fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", count(number))
}

/// A text as a sentence: with one full stop at its end, whoever wrote it.
pub(crate) fn sentence(text: &str) -> String {
    let text = text.trim_end();
    if text.is_empty() || text.ends_with(['.', '!', '?', '…']) { text.to_owned() } else { format!("{text}.") }
}

/// Elapsed time for people: `4s`, `12m30s`, `3h05m`, `2d4h`.
pub(crate) fn elapsed(milliseconds: i64) -> String {
    let seconds = milliseconds.max(0) / 1_000;
    match seconds {
        0 => format!("{}ms", milliseconds.max(0)),
        1..=59 => format!("{seconds}s"),
        60..=3_599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500_000), "1.4 MiB");
        assert_eq!(count(28_298), "28 298");
        assert_eq!(count(7), "7");
        assert_eq!(moment(1_782_909_005_000), "2026-07-01 12:30:05");
        assert_eq!((counted(1, "record"), counted(1_234, "part")), ("1 record".to_owned(), "1 234 parts".to_owned()));
        assert_eq!(["a", "a.", "a…", ""].map(sentence), ["a.", "a.", "a…", ""]);
        assert_eq!(elapsed(750), "750ms");
        assert_eq!(elapsed(3_725_000), "1h02m");
    }

    #[test]
    fn escape_sequences_from_elsewhere_are_shown_and_not_obeyed() {
        assert_eq!(plain("a\u{1b}[31mred\nb\r"), "a\\u{1b}[31mred\nb\\r");
        assert_eq!(plain("a\u{202e}b"), "a\\u{202e}b");
    }
}
