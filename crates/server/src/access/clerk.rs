//! What is written down about access apart from changes: when a token was used last, and what was refused.
//!
//! Both may be lost with the process. One task writes them, many in one transaction, from a bounded queue; what does not fit
//! in is left out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidegate_state::{Ref, Snapshot, State, Timestamp, Transaction, TransactionError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::audit::AuditRecord;
use super::buckets::{Buckets, Who};
use super::token::{LAST_USE, Token, TokenUse};

/// A token's last use is noted this often at most.
const COARSE: Duration = Duration::from_secs(5 * 60);

/// How many notes wait at most, and how many one transaction takes.
const NOTES_MAX: usize = 256;

/// How many refusals of one token are kept at once, and how many a second in the long run: whoever may ask nothing fills no
/// trail.
const REFUSALS_BURST: u32 = 20;
const REFUSALS_PER_SECOND: f64 = 0.2;

/// How long a failed write keeps the next one waiting.
const PAUSE: Duration = Duration::from_secs(1);

enum Note {
    Used { token: String, at: Timestamp },
    Refused(Box<AuditRecord>),
}

/// Takes notes; a task of its own writes them.
pub(crate) struct Clerk {
    notes: mpsc::Sender<Note>,
    /// When each token's last use was noted here.
    noted: Mutex<HashMap<String, Timestamp>>,
    /// Refusals that are kept, by token.
    refusals: Buckets,
}

impl Clerk {
    /// A clerk, and its task. That ends with the token.
    pub(crate) fn start(state: State, closing: CancellationToken) -> (Self, tokio::task::JoinHandle<()>) {
        let (notes, received) = mpsc::channel(NOTES_MAX);
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = closing.cancelled() => {}
                () = write_all(state, received) => {}
            }
        });
        let refusals = Buckets::new(REFUSALS_PER_SECOND, REFUSALS_BURST, Instant::now());
        (Self { notes, noted: Mutex::new(HashMap::new()), refusals }, task)
    }

    /// Notes that a token was used, if that was not noted lately.
    pub(super) fn used(&self, token: &str, snapshot: &Snapshot, now: Timestamp) {
        let mut noted = self.noted.lock();
        if noted.get(token).is_some_and(|at| now.since(*at) < COARSE) {
            return;
        }
        // Another server, or this one before it was restarted, may have noted it.
        let stored = use_of(token).and_then(|place| snapshot.get(&place).ok().flatten());
        let stored = stored.map(|used| used.last_used_at).filter(|at| now.since(*at) < COARSE);
        // As many entries as tokens that held: a token that has ended is forgotten when others come.
        noted.retain(|_, at| now.since(*at) < COARSE);
        noted.insert(token.to_owned(), stored.unwrap_or(now));
        if stored.is_none() && self.notes.try_send(Note::Used { token: token.to_owned(), at: now }).is_err() {
            noted.remove(token);
        }
    }

    /// Whether one more refusal of this token's is kept, where its role or what it is for forbids what it asks.
    pub(super) fn has_room_for_refusal(&self, token: &str) -> bool {
        self.refusals.take(Who::Token(token.to_owned()), Instant::now()).is_ok()
    }

    /// Notes what was refused. False if there was no room.
    pub(super) fn refused(&self, record: AuditRecord) -> bool {
        self.notes.try_send(Note::Refused(Box::new(record))).is_ok()
    }
}

async fn write_all(state: State, mut notes: mpsc::Receiver<Note>) {
    let mut taken = Vec::new();
    while notes.recv_many(&mut taken, NOTES_MAX).await > 0 {
        let notes = std::mem::take(&mut taken);
        let written = state.write(move |transaction| write(transaction, &notes));
        if let Err(error) = written.await {
            tracing::warn!(%error, "when tokens were used last, or what was refused, could not be noted");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn write(transaction: &mut Transaction, notes: &[Note]) -> Result<(), TransactionError> {
    for note in notes {
        match note {
            Note::Used { token, at } => {
                let Some(place) = use_of(token) else { continue };
                let is_newer = transaction.get(&place)?.is_none_or(|there| at.since(there.last_used_at) >= COARSE);
                // The token may be gone meanwhile.
                if is_newer && transaction.contains(place.parent::<Token>().path()) {
                    transaction.put(&place, TokenUse { last_used_at: *at })?;
                }
            }
            Note::Refused(record) => {
                record.append(transaction)?;
            }
        }
    }
    Ok(())
}

fn use_of(token: &str) -> Option<Ref<TokenUse>> {
    Ref::<Token>::root(token).and_then(|token| token.child(LAST_USE)).ok()
}
