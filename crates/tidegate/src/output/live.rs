//! Showing a push while it goes on: a tree that is redrawn in place, or a line for each step.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidegate_api::PushView;

use super::steps::Steps;
use super::{Output, Style, say, tree};

/// What is shown of one push until it ends. Goes to standard error.
#[derive(Debug)]
pub(crate) enum Live {
    /// Redrawn in place.
    Tree { bar: ProgressBar, style: Style },
    /// A line for each step.
    Steps { steps: Steps, style: Style },
    /// Nothing: a program reads the result.
    Silent,
}

impl Live {
    /// The tree where it was asked for and the terminal can redraw; lines for people elsewhere.
    pub(crate) fn new(output: Output, redraw: bool) -> Live {
        let style = output.error_style;
        if output.is_json() {
            return Live::Silent;
        }
        if !redraw || !style.terminal {
            return Live::Steps { steps: Steps::default(), style };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(20));
        bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Live::Tree { bar, style }
    }

    pub(crate) fn show(&mut self, view: &PushView) {
        match self {
            Live::Tree { bar, style } => bar.set_message(tree::push(view, *style)),
            Live::Steps { steps, style } => {
                for line in steps.lines(view, *style) {
                    say(&line);
                }
            }
            Live::Silent => {}
        }
    }

    /// Takes down what was redrawn, so that the result can be printed in its place.
    pub(crate) fn finish(self) {
        if let Live::Tree { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}
