//! What happened in a cluster, line by line, and a checker that finds what should not have: G1 to G10 of the crate's
//! first page.
//!
//! A [`Recorder`] is shared by the servers of a test. It keeps its lines in memory, and can write each straight to a file
//! opened for append, so that a kill loses none; lines of several files are merged by their time.

mod caps;
mod checker;
mod declared;
mod keys;
mod registered;
mod spread;
mod stored;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use checker::{Expectation, HistoryViolation, Rule, check};
pub use keys::keys_of;
pub use spread::looks as looks_at_spread;

use crate::cluster_hook::run::{Outcome, Run};
use crate::cluster_hook::{CommitEnd, Delivery};
use crate::core::Fenced;
use crate::driver::{Fence, HookNumber, ReceiptOutcome, RequestId, ServerId, Settle, Settled, SlotId, SlotToken};
use crate::path::Path;
use crate::revision::Revision;

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When, in nanoseconds; of the machine's clock, so that lines of several processes can be merged.
    pub at: u64,
    /// Which server wrote it.
    pub server: String,
    /// What happened.
    pub event: HistoryEvent,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum HistoryEvent {
    /// A run started.
    RunStarted {
        /// The hook's name.
        hook: String,
        /// The definition version of the registration.
        version: u32,
        /// Which runs the hook is given.
        delivery: Delivery,
        /// The key.
        key: String,
        /// The slot and the token that it runs under.
        fence: Fence,
        /// The fencing token that it passes on.
        token: u64,
        /// The request.
        request: RequestId,
        /// From 1.
        attempt: u32,
        /// The revision of its snapshot.
        snapshot: Revision,
    },
    /// A run returned.
    RunEnded {
        /// The hook's name.
        hook: String,
        /// The key.
        key: String,
        /// The fencing token.
        token: u64,
        /// The request.
        request: RequestId,
        /// How.
        outcome: RunOutcome,
    },
    /// A server entered the cluster.
    Joined {
        /// Its id from now on.
        id: ServerId,
    },
    /// A server left the cluster: it has handed everything back.
    Left {
        /// Its id until now.
        id: ServerId,
    },
    /// A server runs a hook from now on.
    Declared {
        /// The hook.
        hook: HookNumber,
        /// The definition version that its code has.
        version: u32,
        /// How many runs it takes at once.
        room: u32,
    },
    /// A server runs a hook no longer.
    Withdrawn {
        /// The hook.
        hook: HookNumber,
    },
    /// Keys wait on a server for room: how slots spread answers to that, and for a while after it.
    Crowded {
        /// The hook.
        hook: HookNumber,
    },
    /// A server was killed, or stands still: nothing is its own any more once its lease has ended. Written by who did it.
    Halted {
        /// The server's name.
        server: String,
    },
    /// A slot was leased.
    SlotLeased {
        /// The server's id.
        id: ServerId,
        /// The slot and its token.
        fence: Fence,
    },
    /// A slot was released.
    SlotReleased {
        /// The slot and its token.
        fence: Fence,
    },
    /// A server noticed that a slot is not its own any more.
    SlotLost {
        /// The slot and its token.
        fence: Fence,
    },
    /// A receipt was answered.
    Receipt {
        /// The request.
        request: RequestId,
        /// Under which token.
        fence: Fence,
        /// How the request ended.
        outcome: ReceiptOutcome,
        /// What the store said.
        durable: bool,
    },
    /// It was answered that a request waits, failed or is dead.
    Held {
        /// The request.
        request: RequestId,
        /// Under which token.
        fence: Fence,
        /// Whether it is a dead letter.
        dead: bool,
        /// What the store said.
        durable: bool,
    },
    /// A writer was told that its transaction is committed.
    Committed {
        /// At which revision.
        revision: Revision,
        /// What it changed.
        paths: Vec<Path>,
    },
    /// A lease ended: the server was held, stopped, killed or cut off for too long.
    LeaseEnded {
        /// Which server.
        id: ServerId,
    },
    /// An operator acted on a request.
    Acted {
        /// The request.
        request: RequestId,
    },
    /// A fault was injected.
    Fault {
        /// Which.
        what: String,
    },
}

/// How a run returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunOutcome {
    /// Finished.
    Done,
    /// Again at a time.
    RetryAt,
    /// Failed.
    Failed,
}

/// Writes down what happens. The default writes nothing.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    written: Mutex<Written>,
    file: Option<Mutex<File>>,
}

#[derive(Debug, Default)]
struct Written {
    lines: Vec<Line>,
    /// The last moment that was given out.
    last: u64,
}

impl Written {
    /// The time, later than all moments before it.
    fn moment(&mut self) -> u64 {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.last = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).max(self.last + 1);
        self.last
    }
}

/// When something was so that is written down later.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment(u64);

impl Recorder {
    /// Writes nothing.
    #[must_use]
    pub const fn none() -> Recorder {
        Recorder(None)
    }

    /// Keeps lines in memory.
    #[must_use]
    pub fn in_memory() -> Recorder {
        Recorder(Some(Arc::new(Inner { written: Mutex::default(), file: None })))
    }

    /// Keeps lines in memory, and appends each to a file as it comes.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn to_file(path: &std::path::Path) -> io::Result<Recorder> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Recorder(Some(Arc::new(Inner { written: Mutex::default(), file: Some(Mutex::new(file)) }))))
    }

    /// The lines of a file in order of time, but for a last one that a kill cut short.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn read_file(path: &std::path::Path) -> io::Result<Vec<Line>> {
        let text = std::fs::read_to_string(path)?;
        let mut lines: Vec<Line> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines.sort_by_key(|line| line.at);
        Ok(lines)
    }

    /// The lines so far, in order of time.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = self.0.as_ref().map(|inner| inner.written.lock().lines.clone()).unwrap_or_default();
        lines.sort_by_key(|line| line.at);
        lines
    }

    /// The lines of what came after a moment, in order of time.
    pub(crate) fn lines_since(&self, Moment(moment): Moment) -> Vec<Line> {
        let mut lines = self.lines();
        lines.retain(|line| line.at > moment);
        lines
    }

    /// Writes a line of the test's own: a commit that was answered, a fault.
    pub fn write(&self, server: &str, event: HistoryEvent) {
        self.write_at(None, server, event);
    }

    /// The present moment, for a line that can be written only later.
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.0.as_ref().map_or(0, |inner| inner.written.lock().moment()))
    }

    fn write_at(&self, moment: Option<Moment>, server: &str, event: HistoryEvent) {
        let Some(inner) = &self.0 else { return };
        // Stamped under the lock, so that lines are in the order of what they tell.
        let mut written = inner.written.lock();
        let at = moment.map_or_else(|| written.moment(), |Moment(at)| at);
        let line = Line { at, server: server.to_owned(), event };
        if let Some(file) = &inner.file
            && let Ok(mut text) = serde_json::to_string(&line)
        {
            text.push('\n');
            // One write, so that a line is whole or cut at its end.
            if let Err(error) = file.lock().write_all(text.as_bytes()) {
                tracing::error!(%error, "a line of the history is lost");
            }
        }
        written.lines.push(line);
    }

    /// A run has started, at a moment before it was looked whether it may: its process can stand still between that look
    /// and its first instruction, for as long as behind it, and nobody can tell the two apart.
    pub(crate) fn run_started(&self, run: &Run, since: Moment) {
        if self.0.is_none() {
            return;
        }
        self.write_at(
            Some(since),
            run.context.state.server(),
            HistoryEvent::RunStarted {
                hook: run.hook().to_owned(),
                version: run.context.definitions.entity.version(),
                delivery: run.context.definitions.entity.delivery(),
                key: run.key.as_str().to_owned(),
                fence: run.fence,
                token: run.token.0,
                request: run.request,
                attempt: run.attempt,
                snapshot: run.context.snapshot.revision(),
            },
        );
    }

    pub(crate) fn run_ended(&self, run: &Run, outcome: &Outcome) {
        if self.0.is_none() {
            return;
        }
        let outcome = match outcome {
            Outcome::Done | Outcome::DoneWith(_) => RunOutcome::Done,
            Outcome::RetryAt(_) | Outcome::RetryAtWith(..) => RunOutcome::RetryAt,
            Outcome::Fail(_) => RunOutcome::Failed,
        };
        let event = HistoryEvent::RunEnded {
            hook: run.hook().to_owned(),
            key: run.key.as_str().to_owned(),
            token: run.token.0,
            request: run.request,
            outcome,
        };
        self.write(run.context.state.server(), event);
    }

    pub(crate) fn joined(&self, server: &str, id: ServerId) {
        self.write(server, HistoryEvent::Joined { id });
    }

    pub(crate) fn left(&self, server: &str, id: ServerId) {
        self.write(server, HistoryEvent::Left { id });
    }

    pub(crate) fn declared(&self, server: &str, hook: HookNumber, version: u32, room: u32) {
        self.write(server, HistoryEvent::Declared { hook, version, room });
    }

    pub(crate) fn withdrawn(&self, server: &str, hook: HookNumber) {
        self.write(server, HistoryEvent::Withdrawn { hook });
    }

    pub(crate) fn crowded(&self, server: &str, hook: HookNumber) {
        self.write(server, HistoryEvent::Crowded { hook });
    }

    pub(crate) fn slot_leased(&self, server: &str, id: ServerId, fence: Fence) {
        self.write(server, HistoryEvent::SlotLeased { id, fence });
    }

    pub(crate) fn slot_released(&self, server: &str, fence: Fence) {
        self.write(server, HistoryEvent::SlotReleased { fence });
    }

    pub(crate) fn slot_lost(&self, server: &str, fence: Fence) {
        self.write(server, HistoryEvent::SlotLost { fence });
    }

    pub(crate) fn settled(&self, server: &str, items: &[Settle], results: &[Settled]) {
        if self.0.is_none() {
            return;
        }
        for (item, result) in items.iter().zip(results) {
            let durable = *result == Settled::Durable;
            match item {
                Settle::Receipt(receipt) => self.write(
                    server,
                    HistoryEvent::Receipt {
                        request: receipt.request,
                        fence: receipt.fence,
                        outcome: receipt.outcome,
                        durable,
                    },
                ),
                Settle::Exception { exception, fence } => {
                    let dead = exception.state == crate::driver::ExceptionState::Dead;
                    let request = exception.request;
                    self.write(server, HistoryEvent::Held { request, fence: *fence, dead, durable });
                }
                Settle::Watermark { .. } => {}
            }
        }
    }

    pub(crate) fn completed(&self, server: &str, fenced: &Fenced, end: &CommitEnd) {
        if self.0.is_none() {
            return;
        }
        let durable = match end {
            CommitEnd::Committed => true,
            CommitEnd::Fenced => false,
            CommitEnd::Rejected(_) | CommitEnd::Closed => return,
        };
        for receipt in &fenced.receipts {
            let (request, fence, outcome) = (receipt.request, receipt.fence, receipt.outcome);
            self.write(server, HistoryEvent::Receipt { request, fence, outcome, durable });
        }
        for exception in &fenced.exceptions {
            let request = exception.request;
            self.write(server, HistoryEvent::Held { request, fence: fenced.fence, dead: false, durable });
        }
    }
}

/// The leases by which slots came to a server that had not been the last one to lease them, with the slots. Taking back one
/// that nobody has taken is no move: who had room for it may have none by then.
pub fn moves(lines: &[Line]) -> impl Iterator<Item = (&Line, SlotId)> {
    let mut owners: HashMap<SlotId, &str> = HashMap::new();
    lines.iter().filter_map(move |line| match &line.event {
        HistoryEvent::SlotLeased { fence, .. } => {
            let before = owners.insert(fence.slot, &line.server);
            (before != Some(&*line.server)).then_some((line, fence.slot))
        }
        _ => None,
    })
}

/// A slot with its token, for tests that write histories by hand.
#[must_use]
pub fn fence(hook: u32, slot: u32, token: u64) -> Fence {
    Fence { slot: SlotId { hook: HookNumber(hook), slot }, token: SlotToken(token) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x01_what_is_written_later_stands_where_it_happened() {
        let recorder = Recorder::in_memory();
        let lost = |token| HistoryEvent::SlotLost { fence: fence(1, 0, token) };
        recorder.write("server-0", lost(1));
        let moment = recorder.moment();
        recorder.write("server-0", lost(3));
        recorder.write_at(Some(moment), "server-0", lost(2));
        let events = |lines: Vec<Line>| lines.into_iter().map(|line| line.event).collect::<Vec<_>>();
        assert_eq!(events(recorder.lines()), [lost(1), lost(2), lost(3)]);
        assert_eq!(events(recorder.lines_since(moment)), [lost(3)]);
    }
}
