//! What a run leaves behind: histories, answers, and what is stored.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use tidegate_state::driver::StoredState;
use tidegate_state::testing::history::{Line, Recorder};
use tidegate_state::{Revision, SubmissionId};

use super::aim::Aim;
use super::server::{Answer, AnswerLine, Contents, Orders};

/// What was submitted, and what the writer was told, if it lived to hear it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) server: usize,
    /// The operation's number among the server's.
    pub(crate) number: u64,
    pub(crate) submission: SubmissionId,
    pub(crate) answer: Option<Answer>,
    /// What was found out later, where nobody knew at first: whether it is committed, and at which revision.
    pub(crate) resolved: Option<Option<u64>>,
}

/// All of it.
pub(crate) struct Evidence {
    /// Where operations were drawn from.
    pub(crate) seed: u64,
    /// The histories of all servers and of who injected faults, in order of time.
    pub(crate) history: Vec<Line>,
    pub(crate) answers: Vec<Answered>,
    /// What is stored, with what was compacted away put back.
    pub(crate) stored: StoredState,
    /// What the linter finds in what is stored, as it was left.
    pub(crate) linted: Vec<String>,
    /// Up to which revision the log was compacted.
    pub(crate) compacted: Revision,
    /// At which points servers were hit, how often.
    pub(crate) hits: BTreeMap<Aim, usize>,
    /// So long after something joined, left or went wrong slots are to be spread evenly.
    pub(crate) spread_within: Option<Duration>,
    /// What the servers' trees hold in the end; why they could not be asked.
    pub(crate) told: Result<Vec<Contents>, String>,
    pub(crate) faults: usize,
}

impl Evidence {
    /// The histories of all servers and of who injected faults, in order of time, and their answers.
    pub(crate) fn read(orders: &[Orders], folder: &Path) -> (Vec<Line>, Vec<Answered>) {
        let mut history = Recorder::read_file(&folder.join("controller.history")).unwrap();
        let mut answers = Vec::new();
        for orders in orders {
            history.extend(Recorder::read_file(&orders.history()).unwrap_or_default());
            answers.extend(read_answers(orders.number, &orders.answers()));
        }
        history.sort_by_key(|line| line.at);
        (history, answers)
    }
}

fn read_answers(server: usize, path: &Path) -> Vec<Answered> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut submitted = Vec::new();
    let mut answered = HashMap::new();
    let mut resolved = HashMap::new();
    for line in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
        match line {
            AnswerLine::Submitted { number, submission } => submitted.push((number, submission)),
            AnswerLine::Answered { submission, answer } => {
                answered.insert(submission, answer);
            }
            AnswerLine::Resolved { submission, revision } => {
                resolved.insert(submission, revision);
            }
        }
    }
    let of = |(number, submission)| Answered {
        server,
        number,
        submission,
        answer: answered.get(&submission).copied(),
        resolved: resolved.get(&submission).copied(),
    };
    submitted.into_iter().map(of).collect()
}
