//! What is said to people on standard error. That nobody listens (any more) is no reason to stop: a push whose output goes
//! into `head -1` runs to its end. Nothing else in this crate writes there; the lints of the crate's root see to it.

use std::io::Write;

/// Says a line.
pub(crate) fn say(line: &str) {
    write(&format!("{line}\n"));
}

/// Asks something; the answer is typed on the same line.
pub(crate) fn ask(question: &str) {
    write(question);
}

fn write(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // In one piece, so that lines of several tasks do not mix.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}
