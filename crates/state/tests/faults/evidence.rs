//! What a run leaves behind: histories, answers, and what is stored.

use std::path::Path;

use tidegate_state::SubmissionId;
use tidegate_state::driver::StoredState;
use tidegate_state::testing::history::{Line, Recorder};

use super::server::{Answer, AnswerLine, Contents, Orders};

/// All of it.
pub(crate) struct Evidence {
    /// The histories of all servers and of who injected faults, in order of time.
    pub(crate) history: Vec<Line>,
    /// What was submitted, and what the writer was told, if it lived to hear it.
    pub(crate) answers: Vec<(SubmissionId, Option<Answer>)>,
    pub(crate) stored: StoredState,
    /// What the servers' trees hold in the end; why they could not be asked.
    pub(crate) told: Result<Vec<Contents>, String>,
    pub(crate) faults: usize,
}

impl Evidence {
    pub(crate) fn gather(
        orders: &[Orders],
        folder: &Path,
        stored: StoredState,
        told: Result<Vec<Contents>, String>,
        faults: usize,
    ) -> Evidence {
        let mut history = Recorder::read_file(&folder.join("controller.history")).unwrap();
        let mut answers = Vec::new();
        for orders in orders {
            history.extend(Recorder::read_file(&orders.history()).unwrap_or_default());
            answers.extend(read_answers(&orders.answers()));
        }
        history.sort_by_key(|line| line.at);
        Evidence { history, answers, stored, told, faults }
    }
}

fn read_answers(path: &Path) -> Vec<(SubmissionId, Option<Answer>)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut submitted = Vec::new();
    let mut answered = std::collections::HashMap::new();
    for line in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
        match line {
            AnswerLine::Submitted { submission, .. } => submitted.push(submission),
            AnswerLine::Answered { submission, answer } => {
                answered.insert(submission, answer);
            }
        }
    }
    submitted.into_iter().map(|submission| (submission, answered.get(&submission).copied())).collect()
}
