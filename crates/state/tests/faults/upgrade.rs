//! X12: servers of one build are replaced one by one by those of the next, and back, under load; then one is of the next build
//! again. No field is lost, what needs the next build waits for it, and nothing else waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tidegate_state::Entity;
use tidegate_state::driver::{HookNumber, LogEntry, StoredState};
use tidegate_state::testing::history::{HistoryEvent, Line, RunOutcome};

use super::builds::{self, Build, EVERY_NOTE, LabelledThing, Note, SECOND};
use super::evidence::Evidence;
use super::fleet::Fleet;
use super::plan::Action;
use super::server::Listed;
use super::serving::Serving;
use super::settings::Settings;
use super::standstill::{self, HAND_OVER_LIMIT, Judged};
use super::verdict::Verdict;
use super::workload::{EVERY, LATEST, Thing};

/// How many things are deleted, with the notes below them, while no server knows of notes.
const FELLED: u64 = 200;

/// What the run shows beside its verdict.
pub(crate) struct Found {
    pub(crate) verdict: Verdict,
    pub(crate) evidence: Evidence,
    /// What was unfinished while no server was of the second build.
    pub(crate) listed: Vec<Listed>,
}

/// Makes the run and judges it.
pub(crate) async fn run(settings: &Settings) -> Found {
    let pause = Duration::from_secs(if settings.long { 20 } else { 1 });
    let fleet = Fleet::start(settings, &[]).await;
    let (fleet, (told, listed)) = fleet
        .drive(move |fleet| {
            let listed = replace_all(fleet, pause);
            let told = fleet.come_to_rest();
            match listed {
                Ok(listed) => (told, listed),
                Err(why) => (Err(why), Vec::new()),
            }
        })
        .await;
    let (verdict, evidence) = fleet.judge(told).await;
    Found { verdict, evidence, listed }
}

fn replace_all(fleet: &mut Fleet, pause: Duration) -> Result<Vec<Listed>, String> {
    fleet.hear_all("up")?;
    std::thread::sleep(pause);
    for build in [Build::Two, Build::One] {
        for server in 0..fleet.servers() {
            replace(fleet, server, build)?;
            std::thread::sleep(pause);
        }
    }
    fleet.ask(0, &format!("fell {FELLED}"), "felled")?;
    let listed = fleet.ask(1, "list", "listed")?;
    let listed = serde_json::from_str(&listed).map_err(|error| error.to_string())?;
    replace(fleet, 2, Build::Two)?;
    std::thread::sleep(pause);
    Ok(listed)
}

fn replace(fleet: &mut Fleet, server: usize, build: Build) -> Result<(), String> {
    fleet.note(format!("{build:?} for {server}"));
    let serving = fleet.serving(server);
    serving.build = build;
    let first = Serving::default().hooks;
    serving.hooks = match build {
        Build::One => first,
        Build::Two => builds::second(&first),
    };
    fleet.do_to(Action::Drain(server));
    fleet.do_to(Action::Start(server));
    fleet.hear(server, "up")
}

/// What is wrong with a rolling upgrade, and what is to be told of it.
pub(crate) fn broken(found: &Found, settings: &Settings) -> (String, Vec<String>) {
    let (history, stored) = (&found.evidence.history, &found.evidence.stored);
    let asked = standstill::asked(stored, history);
    let room = usize::try_from(settings.serving.room).unwrap();
    let judged = Judged { history, asked: &asked, hooks: &[EVERY], room };
    let still = standstill::find(&judged, HAND_OVER_LIMIT * 2);
    let (kept, lost) = fields(stored);
    let told = format!(
        "{kept} times a field was kept by a build that does not know it, {} requests waited for the other build, the \
         longest standstill of a key of {EVERY:?} was {:?}",
        found.listed.iter().filter(|listed| listed.runs_nowhere).count(),
        still.longest
    );
    let mut broken = [still.broken, lost, badly_run(history), badly_listed(&found.listed)].concat();
    if kept == 0 {
        broken.push("no field was ever kept by a build that does not know it".to_owned());
    }
    (told, broken)
}

/// How often the first build changed a thing whose label it does not know, and what was lost of labels and notes.
fn fields(stored: &StoredState) -> (usize, Vec<String>) {
    let mut labels: HashMap<String, u64> = HashMap::new();
    let (mut kept, mut lost) = (0, Vec::new());
    for row in &stored.log {
        let mut gone: HashSet<String> = HashSet::new();
        for entry in &row.entries {
            let LogEntry::Change { path, after, .. } = entry else { continue };
            if path.collection() != Thing::COLLECTION {
                continue;
            }
            let id = path.id().into_owned();
            let Some(after) = after else {
                labels.remove(&id);
                gone.insert(id);
                continue;
            };
            let thing: LabelledThing = serde_json::from_str(&after.json).unwrap();
            let before = labels.get(&id).copied();
            if thing.label != Some(thing.value) {
                if thing.label == before {
                    kept += usize::from(before.is_some());
                } else {
                    lost.push(format!(
                        "revision {}: {path} had the label {before:?}, and then {thing:?}",
                        row.revision
                    ));
                }
            }
            if let Some(label) = thing.label {
                labels.insert(id, label);
            }
        }
        for entry in &row.entries {
            let LogEntry::Change { path, after: None, .. } = entry else { continue };
            let owner = path.parent().map(|parent| parent.id().into_owned()).unwrap_or_default();
            if path.collection() == Note::COLLECTION && !gone.contains(&owner) {
                lost.push(format!("revision {}: {path} was deleted, and what it stands under was not", row.revision));
            }
        }
    }
    (kept, lost)
}

/// Runs and leases of what the second build alone has by another, and runs that failed.
fn badly_run(history: &[Line]) -> Vec<String> {
    let mut found = Vec::new();
    let mut notes: BTreeSet<HookNumber> = BTreeSet::new();
    let mut ran: BTreeMap<&str, usize> = BTreeMap::new();
    for line in history {
        let is_second = line.server.ends_with(SECOND);
        match &line.event {
            HistoryEvent::RunStarted { hook, version, request, .. } => {
                let needs_second = hook == EVERY_NOTE || hook == LATEST && *version > 1;
                if hook == EVERY_NOTE {
                    notes.insert(request.hook);
                }
                if needs_second {
                    *ran.entry(hook).or_default() += 1;
                }
                if needs_second && !is_second {
                    found.push(format!("run by a build that lacks it: {line:?}"));
                }
            }
            HistoryEvent::RunEnded { outcome: RunOutcome::Failed, .. } | HistoryEvent::Held { .. } => {
                found.push(format!("failed: {line:?}"));
            }
            _ => {}
        }
    }
    let leased = |line: &&Line| match &line.event {
        HistoryEvent::SlotLeased { fence, .. } => notes.contains(&fence.slot.hook) && !line.server.ends_with(SECOND),
        _ => false,
    };
    found.extend(history.iter().filter(leased).map(|line| format!("leased by a build that lacks it: {line:?}")));
    for hook in [EVERY_NOTE, LATEST] {
        if !ran.contains_key(hook) {
            found.push(format!("hook {hook} never ran as the second build has it"));
        }
    }
    found
}

/// What is listed wrongly while no server is of the second build: both hooks of its wait, unattempted, with the version that
/// they need, and no other does.
fn badly_listed(listed: &[Listed]) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting: BTreeSet<&str> = BTreeSet::new();
    for entry in listed {
        let needs = match entry.hook.as_str() {
            EVERY_NOTE => Some(1),
            LATEST => Some(2),
            _ => None,
        };
        let is_right = match needs {
            Some(_) => entry.runs_nowhere && entry.needs_version == needs && entry.attempts == 0,
            None => !entry.runs_nowhere && entry.needs_version.is_none(),
        };
        if !is_right {
            found.push(format!("listed wrongly: {entry:?}"));
        }
        waiting.extend(needs.map(|_| entry.hook.as_str()));
    }
    for hook in [EVERY_NOTE, LATEST] {
        if !waiting.contains(hook) {
            found.push(format!("no request of {hook} was listed"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_state::driver::{LogRow, StoredDocument};
    use tidegate_state::{Path, Revision, SubmissionId, Timestamp};

    use super::*;

    /// A log of one change in each row: a path, and the JSON that is there then.
    fn log(changes: &[(&str, Option<&str>)]) -> StoredState {
        let row = |(at, (path, after)): (usize, &(&str, Option<&str>))| LogRow {
            revision: Revision(at as u64 + 1),
            submission: SubmissionId::random(),
            at: Timestamp(0),
            server: "server-0".into(),
            attributes: Arc::default(),
            entries: vec![LogEntry::Change {
                path: Path::parse(path).unwrap(),
                before: None,
                after: after.map(|json| StoredDocument { format: 1, json: json.into() }),
                hooks: Vec::new(),
            }],
        };
        let log = changes.iter().enumerate().map(row).map(Arc::new).collect();
        StoredState { log, ..StoredState::empty() }
    }

    #[test]
    fn x12_a_field_that_is_lost_or_made_up_is_found() {
        let labelled = ("/things/1", Some(r#"{"value":5,"label":5}"#));
        let kept = ("/things/1", Some(r#"{"value":6,"label":5}"#));
        assert_eq!(fields(&log(&[labelled, kept])), (1, Vec::new()));
        let lost = ("/things/1", Some(r#"{"value":6}"#));
        assert_eq!(fields(&log(&[labelled, lost])).1.len(), 1);
        assert_eq!(fields(&log(&[kept])).1.len(), 1, "it was never written");
        let gone = ("/things/1", None);
        assert_eq!(fields(&log(&[labelled, gone, lost])), (0, Vec::new()));
    }

    #[test]
    fn x12_a_note_that_goes_without_its_thing_is_found() {
        let note = ("/things/1/notes/2", Some(r#"{"value":5}"#));
        assert_eq!(fields(&log(&[note])).1.len(), 0);
        assert_eq!(fields(&log(&[note, ("/things/1/notes/2", None)])).1.len(), 1);
    }

    #[test]
    fn x12_a_request_that_is_listed_wrongly_is_found() {
        let entry = |hook: &str, runs_nowhere, needs_version, attempts| Listed {
            request: "1.0.1".to_owned(),
            hook: hook.to_owned(),
            attempts,
            runs_nowhere,
            needs_version,
        };
        let right =
            vec![entry(EVERY_NOTE, true, Some(1), 0), entry(LATEST, true, Some(2), 0), entry(EVERY, false, None, 0)];
        assert_eq!(badly_listed(&right), Vec::<String>::new());
        for wrong in [
            entry(LATEST, true, Some(1), 0),
            entry(LATEST, false, None, 0),
            entry(EVERY_NOTE, true, Some(1), 1),
            entry(EVERY, true, Some(1), 0),
        ] {
            let listed = [right.clone(), vec![wrong]].concat();
            assert_eq!(badly_listed(&listed).len(), 1, "{listed:?}");
        }
        assert_eq!(badly_listed(&right[..1]).len(), 1, "nothing of the other waits");
    }
}
