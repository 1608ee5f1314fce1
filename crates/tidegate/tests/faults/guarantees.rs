//! What the servers' own histories and the store show: the guarantees of cluster hooks, G1 to G10, held by the servers of the
//! product under their own hooks, and a store in which the linter finds nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tidegate_state::driver::{RequestId, StoredState};
use tidegate_state::testing::history::{Expectation, HistoryEvent, Line, Recorder, check, keys_of};
use tidegate_state::testing::linter::lint;

/// Where a server writes its history, through all its lives.
pub(crate) fn history_file(folder: &Path, server: usize) -> PathBuf {
    folder.join(format!("server-{server}.history"))
}

/// What was found.
pub(crate) struct Guarantees {
    pub(crate) runs: usize,
    /// Those of requests that had run before.
    pub(crate) repeated: usize,
    pub(crate) violations: Vec<String>,
}

impl Guarantees {
    /// Judges what servers have written down, and what is stored once all have left.
    pub(crate) fn judge(folder: &Path, servers: usize, stored: &StoredState) -> Guarantees {
        let mut history: Vec<Line> = Vec::new();
        for server in 0..servers {
            history.extend(Recorder::read_file(&history_file(folder, server)).unwrap());
        }
        history.sort_by_key(|line| line.at);
        let mut starts: HashMap<RequestId, usize> = HashMap::new();
        for line in &history {
            if let HistoryEvent::RunStarted { request, .. } = line.event {
                *starts.entry(request).or_default() += 1;
            }
        }
        let runs = starts.values().sum();
        let keys = keys_of(stored);
        // Calls and bakes that wait for a time are what servers leave with.
        let expectation = Expectation { stored: Some(stored.clone()), keys, may_wait: true, ..Expectation::default() };
        let broken = check(&history, &expectation);
        let mut violations: Vec<String> = broken.iter().map(ToString::to_string).collect();
        violations.extend(lint(stored, &[]).iter().map(|found| format!("linter: {found}")));
        Guarantees { runs, repeated: runs - starts.len(), violations }
    }
}
