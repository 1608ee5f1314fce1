//! D27, D28, D38: documents of other builds. Two builds are two types with one collection.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::entities::*;
use super::transactions::{next_transaction, put_counter};
use super::{Case, agree};
use crate::driver::{LogEntry, StoredDocument};
use crate::entity::{Entity, Ref, Root};
use crate::transaction::Transaction;

/// What an older build knows of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OldJob {
    name: String,
    limits: OldLimits,
    steps: Vec<OldStep>,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OldLimits {
    rows: u64,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OldStep {
    run: String,
}
impl Entity for OldJob {
    const COLLECTION: &'static str = "jobs";
    type Parent = Root;
    type Id = String;
}

/// What a newer one knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NewJob {
    name: String,
    limits: NewLimits,
    steps: Vec<NewStep>,
    owner: String,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NewLimits {
    rows: u64,
    ratio: f64,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NewStep {
    run: String,
    retries: u32,
}
impl Entity for NewJob {
    const COLLECTION: &'static str = "jobs";
    type Parent = Root;
    type Id = String;
}

/// A collection that only the newer one knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    text: String,
}
impl Entity for Note {
    const COLLECTION: &'static str = "notes";
    type Parent = NewJob;
    type Id = String;
}

/// D27: fields that an older build does not know, nested ones too, outlive its read-modify-write; a collection that it
/// does not know is kept, and deleted with its parent.
pub async fn d27_fields_of_newer_builds_survive(case: Case) {
    let cluster = case.cluster(2).await;
    let new: Ref<NewJob> = Ref::root(case.id("job")).unwrap();
    let old: Ref<OldJob> = Ref::root(case.id("job")).unwrap();
    let note: Ref<Note> = new.child(case.id("note")).unwrap();
    let step = |run: &str, retries| NewStep { run: run.to_owned(), retries };
    let first = NewJob {
        name: "a".to_owned(),
        limits: NewLimits { rows: 1, ratio: 0.5 },
        steps: vec![step("x", 1), step("y", 2)],
        owner: "me".to_owned(),
    };
    let (target, value, below) = (new.clone(), first.clone(), note.clone());
    let made = case
        .write(cluster.server(0), move |tx| {
            tx.put(&target, value.clone())?;
            tx.put(&below, Note { text: "n".to_owned() })
        })
        .await;
    super::applied(cluster.server(1), made.revision).await;
    let target = old.clone();
    let changed = cluster.server(1).write(move |tx: &mut Transaction| {
        tx.update(&target, |job| {
            job.name = "b".to_owned();
            job.limits.rows = 2;
            job.steps.swap(0, 1);
            job.steps[0].run = "y".to_owned();
        })
    });
    let at = changed.await.unwrap().revision;
    super::applied(cluster.server(0), at).await;
    let expected = NewJob {
        name: "b".to_owned(),
        limits: NewLimits { rows: 2, ratio: 0.5 },
        steps: vec![step("y", 2), step("x", 1)],
        owner: "me".to_owned(),
    };
    for state in [cluster.server(0).clone(), cluster.server(1).clone(), cluster.latecomer().await] {
        assert_eq!(state.snapshot().require(&new).unwrap(), &expected);
        assert_eq!(state.snapshot().require(&note).unwrap().text, "n");
    }
    let target = old.clone();
    let back = cluster.server(1).write(move |tx: &mut Transaction| {
        let mut job = (*tx.require(&target)?).clone();
        job.name = "b".to_owned();
        tx.put(&target, job)
    });
    assert!(!back.await.unwrap().changed, "as far as the older build knows, nothing changed");
    let target = old.clone();
    let deleted = cluster.server(1).write(move |tx: &mut Transaction| tx.delete(&target)).await.unwrap();
    assert!(deleted.value);
    assert!(agree(&cluster, None).await.is_empty());
    cluster.finish().await;
}

/// Whose upgrade fails, or panics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Fragile {
    limits: FragileLimits,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct FragileLimits {
    rows: u64,
}
impl Entity for Fragile {
    const COLLECTION: &'static str = "counters";
    const FORMAT: u32 = 2;
    type Parent = Root;
    type Id = String;
    fn upgrade(document: &mut Map<String, Value>, _from: u32) -> Result<(), String> {
        match document.get("n").and_then(Value::as_i64) {
            Some(1) => Err("one can't be upgraded".to_owned()),
            Some(2) => panic!("two panics"),
            _ => Ok(()),
        }
    }
}

/// D28: a document that does not fit its type, or whose upgrade fails or panics, is an error to who reads it, and to
/// nobody else. Once mended, it reads.
pub async fn d28_an_unreadable_document_is_its_own_error(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let ids: Vec<String> = (0..4).map(|n| case.id(&format!("c{n}"))).collect();
    for (n, id) in (0..).zip(&ids) {
        put_counter(&case, state, &Ref::root(id.clone()).unwrap(), n).await;
    }
    let snapshot = state.snapshot();
    let read = |n: usize| {
        let fragile: Ref<Fragile> = Ref::root(ids[n].clone()).unwrap();
        snapshot.get(&fragile).unwrap_err().to_string()
    };
    let path = Ref::<Counter>::root(ids[0].clone()).unwrap().to_string();
    assert!(read(0).contains("missing field `limits`") && read(0).contains(&path), "{}", read(0));
    assert!(read(1).contains("one can't be upgraded"), "{}", read(1));
    assert!(read(2).contains("two panics"), "{}", read(2));
    assert_eq!(snapshot.require(&Ref::<Counter>::root(ids[3].clone()).unwrap()).unwrap().n, 3);
    let listed: Vec<bool> = snapshot.roots::<Fragile>().map(|found| found.is_ok()).collect();
    assert_eq!(listed, [false; 4]);

    // A field of the wrong type, nested, is named.
    let wrong: Ref<Everything> = Ref::root(case.id("wrong")).unwrap();
    let target = wrong.clone();
    let bad: Ref<BadEverything> = Ref::root(case.id("wrong")).unwrap();
    case.write(state, move |tx| tx.put(&bad, BadEverything { unsigned: 1, signed: 0, floats: vec!["x".to_owned()] }))
        .await;
    let error = state.snapshot().get(&target).unwrap_err().to_string();
    assert!(error.contains("floats[0]") && error.contains(wrong.path().as_str()), "{error}");

    let mended: Ref<Fragile> = Ref::root(ids[1].clone()).unwrap();
    let target = mended.clone();
    case.write(state, move |tx| tx.put(&target, Fragile { limits: FragileLimits { rows: 5 } })).await;
    assert_eq!(state.snapshot().require(&mended).unwrap().limits.rows, 5);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// The same collection as [`Everything`], with another type in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct BadEverything {
    unsigned: u64,
    signed: i64,
    floats: Vec<String>,
}
impl Entity for BadEverything {
    const COLLECTION: &'static str = "everything";
    type Parent = Root;
    type Id = String;
}

/// Version 1 of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct TaskOne {
    name: String,
    timing: TimingOne,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct TimingOne {
    timeout: String,
}
impl Entity for TaskOne {
    const COLLECTION: &'static str = "tasks";
    type Parent = Root;
    type Id = String;
}

/// Version 3: step 1 renames a field, step 2 retypes a nested one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct TaskThree {
    title: String,
    timing: TimingThree,
}
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct TimingThree {
    timeout: u64,
}
impl Entity for TaskThree {
    const COLLECTION: &'static str = "tasks";
    const FORMAT: u32 = 3;
    type Parent = Root;
    type Id = String;
    fn upgrade(document: &mut Map<String, Value>, from: u32) -> Result<(), String> {
        match from {
            1 => {
                let name = document.remove("name").ok_or("it has no name")?;
                document.insert("title".to_owned(), name);
            }
            _ => {
                let timeout = document.get_mut("timing").and_then(|timing| timing.get_mut("timeout"));
                let timeout = timeout.ok_or("it has no timeout")?;
                let seconds: u64 =
                    timeout.as_str().and_then(|text| text.parse().ok()).ok_or("the timeout is no number")?;
                *timeout = seconds.into();
            }
        }
        Ok(())
    }
}

/// D38: documents of every version read as the current type, everywhere; reading writes nothing, the next write stores
/// the current form, and unknown fields are kept.
pub async fn d38_documents_are_upgraded_on_read(case: Case) {
    let cluster = case.cluster(2).await;
    let one: Ref<TaskOne> = Ref::root(case.id("task")).unwrap();
    let three: Ref<TaskThree> = Ref::root(case.id("task")).unwrap();
    let target = one.clone();
    let value = TaskOne { name: "a".to_owned(), timing: TimingOne { timeout: "3600".to_owned() } };
    let made = case.write(cluster.server(0), move |tx| tx.put(&target, value.clone())).await;
    super::applied(cluster.server(1), made.revision).await;
    let upgraded = TaskThree { title: "a".to_owned(), timing: TimingThree { timeout: 3_600 } };
    let state = cluster.server(1);
    assert_eq!(state.snapshot().require(&three).unwrap(), &upgraded);
    assert_eq!(state.snapshot().roots::<TaskThree>().next().unwrap().unwrap().1, &upgraded);
    assert_eq!(cluster.stored().await.meta.head, made.revision, "reading writes nothing");
    let mut feed = state.changes(Some((state.snapshot().epoch(), made.revision)));
    let (target, same) = (three.clone(), upgraded.clone());
    let equal = state.write(move |tx: &mut Transaction| {
        assert_eq!(*tx.require(&target)?, same);
        tx.put(&target, same.clone())
    });
    assert!(!equal.await.unwrap().changed);
    let target = three.clone();
    let raised = state.write(move |tx: &mut Transaction| tx.update(&target, |task| task.timing.timeout += 1));
    raised.await.unwrap();
    let applied = next_transaction(&mut feed).await;
    let change = &applied.changes[0];
    assert_eq!(*change.before::<TaskThree>().unwrap().unwrap(), upgraded);
    assert_eq!(change.after::<TaskThree>().unwrap().unwrap().timing.timeout, 3_601);
    let stored = cluster.stored().await;
    let last: Option<&StoredDocument> = stored.log.last().and_then(|row| match &row.entries[0] {
        LogEntry::Change { after, .. } => after.as_ref(),
        LogEntry::Existing { .. } | LogEntry::Action { .. } => None,
    });
    assert_eq!(last.unwrap().format, 3);
    assert_eq!(&*last.unwrap().json, "{\"title\":\"a\",\"timing\":{\"timeout\":3601}}");
    agree(&cluster, None).await;
    cluster.finish().await;
}
