//! The way of a push, from files to every region.
//!
//! 1. The push is started, or found again by its id.
//! 2. Once its start gate has opened, the input is read for the first time: its schema and its
//!    digest go to the server.
//! 3. Once the schema is known (and its gate has opened), the artifact is built in a work folder.
//! 4. Parts that the server does not have are sent, each with its SHA-256; then the manifest.
//!    From here on the push needs no client.
//! 5. The push is followed to its end.
//!
//! A heartbeat every ten seconds says that the client lives, from the start to the manifest. That
//! the push has ended meanwhile (somebody killed it, a newer one took its place) is learnt from
//! the watch stream, the next heartbeat or the next part, whichever comes first; the client stops
//! then, and the outcome says how the push ended.
//!
//! Every step can be repeated: a client that was killed and is run again with the same id goes on
//! where it was. Input that can't be made into a version ends the push as ERROR (input), with the
//! reason kept on the server. A push that is found with all of its data is not told of before the
//! input is known to be the one that it was made from. The work folder goes when the push has no more use for it; what a
//! client left that never came back is swept by later ones.

mod advice;
mod build;
mod folder;
mod known;
mod run;
mod upload;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tidegate_api::{PushAccepted, PushState, PushView};

pub use build::BuildPhase;

/// A push to be made.
#[derive(Clone, Debug)]
pub struct PushJob {
    /// Id of the push, unique over all stores. The same id again is the same push.
    pub id: String,
    /// The store to push to.
    pub store: String,
    /// Files, folders of part files, and patterns.
    pub paths: Vec<PathBuf>,
    /// Everything else.
    pub options: PushOptions,
}

/// How a push is made.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// Who pushes, for the record.
    pub pushed_by: Option<String>,
    /// Anything that hooks or people want to know about the push.
    pub attributes: BTreeMap<String, String>,
    /// Whether a version without records is allowed.
    pub allow_empty: bool,
    /// Where the artifact is built, in a folder of the push's own. Absent: below the user's cache
    /// folder. It is removed when the artifact is complete or the push has ended.
    pub work: Option<PathBuf>,
    /// Release the data of this version again: nothing is read, built or sent.
    pub from_version: Option<u64>,
    /// Gates to be opened by hand, as `pre-creation@a`, each with the reason.
    pub overrides: BTreeMap<String, String>,
    /// Memory that the build may take, in bytes. Absent: the default of `tidegate-dataset`.
    pub memory_bytes: Option<u64>,
    /// Whether the push is followed to its end. Otherwise the job is done once the artifact is
    /// complete.
    pub follow: bool,
    /// When to give up, counted from the start: waiting for a server that does not answer, and following. A push that was
    /// accepted goes on. Absent: a server that does not answer is tried for the client's own patience.
    pub timeout: Option<Duration>,
    /// How long a server that can't be reached is waited for once the push was accepted.
    pub patience: Duration,
    /// How many parts are sent at once. At least 1.
    pub uploads: usize,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self {
            pushed_by: None,
            attributes: BTreeMap::new(),
            allow_empty: false,
            from_version: None,
            overrides: BTreeMap::new(),
            work: None,
            memory_bytes: None,
            follow: true,
            timeout: None,
            patience: Duration::from_secs(24 * 60 * 60),
            uploads: 2,
        }
    }
}

/// Something that happened on the way of a push.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PushEvent {
    /// The push was accepted or found.
    Accepted(Box<PushAccepted>),
    /// The input is read or the artifact is built.
    Building {
        /// What is being done.
        phase: BuildPhase,
        /// How much of it is done: bytes of input, or records.
        done: u64,
        /// How much there is to do, in the same unit.
        of: u64,
        /// Records so far.
        records: u64,
    },
    /// The artifact is built.
    Built {
        /// Identity of the data.
        artifact: String,
        /// Records in it.
        records: u64,
        /// Size of its parts in bytes.
        bytes: u64,
        /// Whether it was found whole in the work folder of an earlier run.
        reused: bool,
    },
    /// Parts are sent.
    Uploading {
        /// Bytes that the server has.
        bytes: u64,
        /// Bytes of all parts.
        of: u64,
        /// Parts that the server has.
        parts: u64,
        /// All parts.
        parts_of: u64,
        /// Bytes that the server had from an earlier run.
        bytes_before: u64,
    },
    /// The artifact is complete: the client is not needed any more.
    Completed,
    /// How the push is now. One comes after each change, and the last one tells the end.
    View(Box<PushView>),
    /// The server can't be reached at the moment; it is tried again.
    Unreachable {
        /// Why.
        reason: String,
    },
}

/// Who is told what happens on the way of a push.
pub trait PushObserver: Send {
    /// Called for each event, in order. It must be quick.
    fn event(&mut self, event: PushEvent);
}

impl<F: FnMut(PushEvent) + Send> PushObserver for F {
    fn event(&mut self, event: PushEvent) {
        self(event);
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub struct PushOutcome {
    /// Where the push is. With [`PushOptions::follow`], and unless the job timed out, its status is
    /// one that is for good.
    pub state: PushState,
    /// The last view of the push.
    pub view: Option<PushView>,
    /// Whether [`PushOptions::timeout`] ran out first.
    pub timed_out: bool,
    /// What can be done about it, where this client found what is wrong with the input.
    pub to_do: Option<String>,
}

impl PushOutcome {
    /// Whether the push waits for its client: its data is not complete, and it ends by itself at
    /// the server's limit on silence unless the same job is run again.
    #[must_use]
    pub fn needs_client(&self) -> bool {
        known::needs_client(&self.state)
    }
}

/// Why a job could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The input can't even be found or told apart; no push was started.
    #[error("{message}")]
    Input {
        /// Which path, and what is wrong with it.
        message: String,
        /// What can be done about it.
        to_do: String,
    },
    /// The server refused, or could not be reached.
    #[error(transparent)]
    Server(#[from] crate::Error),
}
