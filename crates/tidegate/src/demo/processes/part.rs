//! A part of the demo that is kept running: its process, and the one after that if it dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::process::{Plan, Process, fallen};
use crate::failure::Failure;
use crate::output::{Output, Paint, say};

/// How often a part is started again at most: one that does not live is not made to by trying.
const REVIVALS_MAX: u32 = 100;

/// How often in a row a part may fail to start again.
const FAILURES_MAX: u32 = 10;

/// How long a part stays dead.
const REVIVAL_PAUSE: Duration = Duration::from_millis(500);

/// What becomes of a part that dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnDeath {
    /// It is started again, at the same address, on what it has on its disk.
    StartAgain,
    /// The demo ends: it has nothing on a disk to go on with.
    EndDemo,
}

/// A part that runs.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    /// Where it answers, for as long as the demo lasts.
    pub(super) url: String,
    process: Arc<AtomicU32>,
    stop: CancellationToken,
    keeping: JoinHandle<()>,
}

impl Part {
    /// Starts it, on a port that it then keeps. Should it be gone for good later, `gone` is told.
    pub(super) async fn start(
        plan: Plan,
        on_death: OnDeath,
        (tokens, gone): (mpsc::Sender<String>, mpsc::Sender<Failure>),
        output: Output,
    ) -> Result<Part, Failure> {
        let process = Process::start(&plan, tokens.clone()).await?;
        let url = process.url.clone();
        let id = Arc::new(AtomicU32::new(process.id().unwrap_or_default()));
        let stop = CancellationToken::new();
        let name = plan.name.clone();
        let keeper = Keeper { plan, on_death, id: Arc::clone(&id), tokens, stop: stop.clone(), output };
        let keeping = tokio::spawn(async move {
            if let Err(failure) = keeper.keep(process).await {
                // A demo that ends for another part's sake asks no further.
                let _ = gone.try_send(failure);
            }
        });
        Ok(Part { name, url, process: id, stop, keeping })
    }

    /// The id of its process.
    pub(super) fn process(&self) -> u32 {
        self.process.load(Ordering::Relaxed)
    }

    /// Ends it in order.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.keeping.await {
            tracing::error!(%error, part = self.name, "a part of the demo did not end in order");
        }
    }
}

struct Keeper {
    plan: Plan,
    on_death: OnDeath,
    id: Arc<AtomicU32>,
    tokens: mpsc::Sender<String>,
    stop: CancellationToken,
    output: Output,
}

impl Keeper {
    /// Keeps the part running until it is stopped. An error if it is gone for good.
    async fn keep(mut self, mut process: Process) -> Result<(), Failure> {
        self.keep_address(&process.url);
        let (mut revivals, mut failures) = (0, 0);
        loop {
            let ended = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    process.stop().await;
                    return Ok(());
                }
                ended = process.ended() => ended,
            };
            let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            revivals += 1;
            if self.on_death == OnDeath::EndDemo || revivals > REVIVALS_MAX {
                return Err(fallen(&self.plan, "has ended", &format!("It ended with {how}")));
            }
            if !self.output.is_json() {
                let mark = self.output.error_style.mark(Paint::Held);
                say(&format!("{mark} {} has ended ({how}) and is started again", self.plan.name));
            }
            process = loop {
                let start = async {
                    tokio::time::sleep(REVIVAL_PAUSE).await;
                    Process::start(&self.plan, self.tokens.clone()).await
                };
                match self.stop.run_until_cancelled(start).await {
                    // Dropped on its way, it is killed.
                    None => return Ok(()),
                    Some(Ok(started)) => break started,
                    // It may have been killed before it was ready.
                    Some(Err(failure)) => {
                        failures += 1;
                        if failures >= FAILURES_MAX {
                            return Err(failure);
                        }
                    }
                }
            };
            failures = 0;
            self.id.store(process.id().unwrap_or_default(), Ordering::Relaxed);
        }
    }

    /// Others know it by its address, so the next process gets the same.
    fn keep_address(&mut self, url: &str) {
        let address = url.trim_start_matches("http://");
        let place = self.plan.arguments.iter().position(|argument| argument == "--listen");
        if let Some(argument) = place.and_then(|place| self.plan.arguments.get_mut(place + 1)) {
            *argument = address.into();
        }
    }
}
