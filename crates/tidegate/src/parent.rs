//! What a process does that another one has started for its own sake: it ends when that one has.
//!
//! The other holds the writing end of this process's standard input, and writes nothing there. So the input ends when the
//! other lets go of it, and when the other is gone, however it went: the system closes what a process had open. That works
//! wherever there are pipes, after `kill -9` as well, and needs no signal and no process id that another may have by then.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::exit::Exit;

/// How long this process may take to end in order once the other has gone. Nobody is left to end one that hangs.
const ORDER_LIMIT: Duration = Duration::from_secs(10);

/// Whoever has started this process, if it is to end with that one. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Parent(Option<CancellationToken>);

impl Parent {
    /// Looks from now on whether the other is there, if this process was told to.
    pub(crate) fn watch(until_input_ends: bool) -> std::io::Result<Parent> {
        if !until_input_ends {
            return Ok(Parent::none());
        }
        let gone = CancellationToken::new();
        let told = gone.clone();
        // A thread, as reading the input blocks; it ends with the process.
        std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
            // What comes is of no interest, and an input that can't be read has ended.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            told.cancel();
            std::thread::sleep(ORDER_LIMIT);
            std::process::exit(Exit::Failed as i32);
        })?;
        Ok(Parent(Some(gone)))
    }

    /// There is none.
    pub(crate) fn none() -> Parent {
        Parent(None)
    }

    /// Ends when the other has ended or wants this process to; never, if there is none.
    pub(crate) async fn gone(&self) {
        match &self.0 {
            Some(gone) => gone.cancelled().await,
            None => std::future::pending().await,
        }
    }
}
