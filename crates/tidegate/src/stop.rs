//! How a process that stays is told to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::parent::Parent;

/// The signals that end a process in order, SIGINT and SIGTERM, and the end of whoever started it.
///
/// It is made before the process begins anything: until then a signal ends the process as the system does, at once, and one
/// that comes between two of these would be lost. From then on none is, however long nobody asks.
#[derive(Debug)]
pub(crate) struct StopSignal {
    interrupt: Signal,
    terminate: Signal,
    parent: Parent,
}

impl StopSignal {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the system does not let it.
    pub(crate) fn listen(parent: &Parent) -> std::io::Result<StopSignal> {
        Ok(StopSignal {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            parent: parent.clone(),
        })
    }

    /// Ends once the process is to stop. Cancelling it loses no signal.
    pub(crate) async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = self.parent.gone() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn a_signal_that_comes_while_nobody_asks_is_not_lost() {
        // Given: a process that listens, and starts something for as long as it takes.
        let mut stop = StopSignal::listen(&Parent::none()).unwrap();
        let mut arrived = signal(SignalKind::terminate()).unwrap();
        tokio::select! {
            biased;
            () = stop.told() => panic!("nobody has said so"),
            () = std::future::ready(()) => {}
        }

        // When: it is told to stop meanwhile.
        kill_process(getpid(), Signal::TERM).unwrap();
        arrived.recv().await;

        // Then: it is told once it asks.
        stop.told().await;
    }
}
