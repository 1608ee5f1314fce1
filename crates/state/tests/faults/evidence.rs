//! What a run leaves behind: histories, answers, and what is stored.

use std::path::Path;

use tidegate_state::SubmissionId;
use tidegate_state::driver::StoredState;
use tidegate_state::testing::history::{Line, Recorder};

use super::server::{Answer, AnswerLine, Contents, Orders};

/// What was submitted, and what the writer was told, if it lived to hear it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) server: usize,
    /// The operation's number among the server's.
    pub(crate) number: u64,
    pub(crate) submission: SubmissionId,
    pub(crate) answer: Option<Answer>,
}

/// All of it.
pub(crate) struct Evidence {
    /// Where operations were drawn from.
    pub(crate) seed: u64,
    /// The histories of all servers and of who injected faults, in order of time.
    pub(crate) history: Vec<Line>,
    pub(crate) answers: Vec<Answered>,
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
            answers.extend(read_answers(orders.number, &orders.answers()));
        }
        history.sort_by_key(|line| line.at);
        let seed = orders.first().map_or(0, |orders| orders.seed);
        Evidence { seed, history, answers, stored, told, faults }
    }
}

fn read_answers(server: usize, path: &Path) -> Vec<Answered> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut submitted = Vec::new();
    let mut answered = std::collections::HashMap::new();
    for line in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
        match line {
            AnswerLine::Submitted { number, submission } => submitted.push((number, submission)),
            AnswerLine::Answered { submission, answer } => {
                answered.insert(submission, answer);
            }
        }
    }
    let of = |(number, submission)| Answered { server, number, submission, answer: answered.get(&submission).copied() };
    submitted.into_iter().map(of).collect()
}
