//! R: records.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::entities::*;
use super::transactions::put_counter;
use super::{Case, Written, agree, within};
use crate::driver::RecordId;
use crate::entity::Ref;
use crate::error::{QueryError, WriteError};
use crate::record::{INDEX_KEY_BYTES_MAX, IndexKey, Record};
use crate::record_search::{RecordPageOf, RecordSearch, Stored};
use crate::state::State;
use crate::testing::points::name as point;
use crate::transaction::{Transaction, TransactionError};

fn execution(store: &str, started: i64, text: &str) -> Execution {
    Execution { store: store.to_owned(), started, text: text.to_owned() }
}

pub(super) async fn all<R: Record>(state: &State, index: &str) -> Vec<Stored<R>> {
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let page: RecordPageOf<R> = state.records(RecordSearch::by(index).after(cursor).limit(100)).await.unwrap();
        found.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            return found;
        }
    }
}

/// R1: records and entities of one transaction commit together, once, wherever the commit is cut.
pub async fn r01_records_and_entities_commit_together(case: Case) {
    let cluster = case.cluster(2).await;
    let places =
        [point::COMMIT_BEFORE_LOCK, point::COMMIT_LOCKED, point::COMMIT_BEFORE_COMMIT, point::COMMIT_AFTER_COMMIT];
    let cuts = std::iter::once(None).chain(places.map(Some));
    for (round, cut) in cuts.enumerate() {
        if let Some(cut) = cut {
            cluster.points(0).cut(cut, 1);
        }
        let ids: Vec<String> = (0..3).map(|index| case.id(&format!("{round}-{index}"))).collect();
        let write = cluster.server(0).write(move |tx: &mut Transaction| {
            for id in &ids {
                tx.put(&Ref::<Counter>::root(id.clone())?, Counter { n: 0 })?;
            }
            for number in 0..3 {
                tx.append(&execution("airports", number, "x"))?;
            }
            tx.append(&Audit { who: "a".to_owned(), what: 1 })?;
            tx.append(&Audit { who: "b".to_owned(), what: 2 })
        });
        let written = within("the write", write).await.unwrap();
        let executions: Vec<Stored<Execution>> = all(cluster.server(1), "by-store").await;
        let audits: Vec<Stored<Audit>> = all(cluster.server(1), "by-who").await;
        let of_it = |id: &RecordId| id.revision == written.revision;
        assert_eq!(executions.iter().filter(|record| of_it(&record.id)).count(), 3, "cut at {cut:?}");
        assert_eq!(audits.iter().filter(|record| of_it(&record.id)).count(), 2, "cut at {cut:?}");
        assert_eq!((executions.len(), audits.len()), ((round + 1) * 3, (round + 1) * 2), "cut at {cut:?}");
        assert_eq!(cluster.server(0).snapshot().len(), (round + 1) * 3);
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// R2: a transaction that fails leaves no record; one that is run again leaves those of its last run.
pub async fn r02_failed_transactions_leave_no_record(case: Case) {
    let builder = case.configured(|_, mut options| {
        options.transaction_budget = Duration::from_millis(100);
        options
    });
    let cluster = case.open(builder.servers(1)).await;
    let state = cluster.server(0);
    let guard: Ref<Counter> = Ref::root(case.id("guard")).unwrap();
    for fault in 0..4 {
        let guard = guard.clone();
        let written: Written<()> = state
            .write(move |tx: &mut Transaction| {
                tx.append(&Audit { who: "x".to_owned(), what: fault })?;
                match fault {
                    0 => Err(TransactionError::rejected("no")),
                    1 => tx.expect(&guard, Some(&Counter { n: 1 })),
                    2 => panic!("a mistake"),
                    _ => {
                        std::thread::sleep(Duration::from_millis(300));
                        Ok(())
                    }
                }
            })
            .await;
        assert!(written.is_err(), "fault {fault}");
        assert!(all::<Audit>(state, "by-who").await.is_empty(), "fault {fault}");
    }
    cluster.points(0).cut(point::COMMIT_BEFORE_COMMIT, 1);
    let append = state.write(|tx: &mut Transaction| tx.append(&Audit { who: "x".to_owned(), what: 9 }));
    let id = within("the write", append).await.unwrap().value;
    let there: Vec<Stored<Audit>> = all(state, "by-who").await;
    assert_eq!(there.iter().map(|record| record.id).collect::<Vec<_>>(), [id]);

    // An open record is updated by its id until it is closed.
    let update = |what: i64, close: bool| {
        state.write(move |tx: &mut Transaction| {
            let record = Audit { who: "x".to_owned(), what };
            if close { tx.close_record(id, &record) } else { tx.update_record(id, &record) }
        })
    };
    update(10, false).await.unwrap();
    update(11, true).await.unwrap();
    let refused = update(12, false).await;
    assert!(
        matches!(&refused, Err(WriteError::Rejected(TransactionError::RecordClosed { id: closed })) if *closed == id),
        "{refused:?}"
    );
    let there: Vec<Stored<Audit>> = all(state, "by-who").await;
    assert_eq!(there.len(), 1);
    assert!(there[0].closed);
    assert_eq!(there[0].value.as_ref().unwrap().what, 11);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// R5: a query reads all that was committed before it, whatever its server has applied; an absent store is an error that
/// says to try again.
pub async fn r05_queries_read_the_store(case: Case) {
    let cluster = case.cluster(2).await;
    let append = |what: i64| {
        cluster.server(0).write(move |tx: &mut Transaction| tx.append(&Audit { who: "x".to_owned(), what }))
    };
    append(1).await.unwrap();
    cluster.server(1).flush().await.unwrap();
    assert_eq!(all::<Audit>(cluster.server(1), "by-who").await.len(), 1);
    let hold = cluster.points(1).hold(point::TAIL_BEFORE_APPLY);
    let second = append(2).await.unwrap();
    hold.reached().await;
    let there: Vec<Stored<Audit>> = all(cluster.server(1), "by-who").await;
    assert_eq!(there.len(), 2);
    assert_eq!(there[1].id.revision, second.revision);
    hold.release();
    super::applied(cluster.server(1), second.revision).await;
    cluster.faults(1).set_absent(true);
    let gone: Result<RecordPageOf<Audit>, QueryError> = cluster.server(1).records(RecordSearch::by("by-who")).await;
    assert!(gone.is_err_and(|error| error.is_retryable()));
    let _ = cluster.server(1).snapshot().len();
    cluster.faults(1).set_absent(false);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// R6: pages by keyset, forwards and back, show each record that was there throughout exactly once, in index order.
pub async fn r06_pages_by_keyset_hold_while_others_append(case: Case) {
    let mut cluster = case.cluster(2).await;
    let state = cluster.server(0).clone();
    let stores = ["a", "a b", "é", "Z"];
    state
        .write(move |tx: &mut Transaction| {
            for number in 0..400_i64 {
                let store = stores[usize::try_from(number % 4).unwrap()];
                tx.append(&execution(store, number / 8, &format!("before {number}")))?;
            }
            Ok::<_, TransactionError>(())
        })
        .await
        .unwrap();
    for backwards in [false, true] {
        let mut search = RecordSearch::by("by-store").prefix(IndexKey::new().text("a")).limit(7);
        if backwards {
            search = search.backwards();
        }
        let mut cursor = None;
        let mut seen: Vec<(i64, RecordId, String)> = Vec::new();
        let mut round = 0;
        loop {
            let page: RecordPageOf<Execution> =
                cluster.server(round % 2).records(search.clone().after(cursor.clone())).await.unwrap();
            assert!(page.items.len() <= 7);
            for item in &page.items {
                let value = item.value.as_ref().unwrap();
                assert_eq!(value.store, "a");
                seen.push((value.started, item.id, value.text.clone()));
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
            // Others append before, at and after the cursor meanwhile.
            let started = i64::try_from(round).unwrap() * 5 - 10;
            let more = move |tx: &mut Transaction| tx.append(&execution("a", started, "meanwhile"));
            state.write(more).await.unwrap();
            round += 1;
        }
        let there_before: Vec<&(i64, RecordId, String)> =
            seen.iter().filter(|(_, _, text)| text.starts_with("before")).collect();
        assert_eq!(there_before.len(), 100, "each exactly once, backwards: {backwards}");
        assert_eq!(seen.iter().map(|(_, id, _)| id).collect::<BTreeSet<_>>().len(), seen.len());
        // The newest start first; ties in order of commit.
        let mut sorted = seen.clone();
        sorted.sort_by_key(|(started, id, _)| (std::cmp::Reverse(*started), *id));
        if backwards {
            sorted.reverse();
        }
        assert_eq!(seen, sorted, "index order, backwards: {backwards}");
    }
    let texts: Vec<String> = all::<Execution>(&state, "by-store")
        .await
        .iter()
        .map(|item| item.value.as_ref().unwrap().store.clone())
        .collect();
    let mut by_bytes = texts.clone();
    by_bytes.sort();
    assert_eq!(texts, by_bytes, "text by bytes");

    let page: RecordPageOf<Execution> = state.records(RecordSearch::by("by-store").limit(50)).await.unwrap();
    let rest: RecordPageOf<Execution> =
        state.records(RecordSearch::by("by-store").after(page.next.clone()).limit(50)).await.unwrap();
    drop(state);
    cluster.restart_store().await;
    cluster.restart(1).await;
    let again: RecordPageOf<Execution> =
        cluster.server(1).records(RecordSearch::by("by-store").after(page.next).limit(50)).await.unwrap();
    let ids = |page: &RecordPageOf<Execution>| page.items.iter().map(|item| item.id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&rest), "the cursor holds through a restart and on another server");

    let none: Result<RecordPageOf<Execution>, QueryError> =
        cluster.server(1).records(RecordSearch::by("by-nothing")).await;
    let error = none.unwrap_err().to_string();
    assert!(error.contains("by-store") && error.contains("by-text"), "{error}");
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// R7: retention by age and by number lets go in batches, never of what is within it, and makes no change.
pub async fn r07_retention_prunes_in_batches(case: Case) {
    let cluster = case.upkept().cluster(1).await;
    let state = cluster.server(0);
    let append = |who: &'static str, from: i64, count: i64| {
        state.write(move |tx: &mut Transaction| {
            (from..from + count).try_for_each(|what| tx.append(&Audit { who: who.to_owned(), what }).map(|_| ()))
        })
    };
    append("old", 0, 2_500).await.unwrap();
    cluster.advance(Duration::from_secs(3_601));
    append("many", 0, 150).await.unwrap();
    append("few", 0, 20).await.unwrap();
    let revision = state.snapshot().revision();
    let mut feed = state.changes(None);
    let _ = feed.next().await;
    state.core().prune().await.unwrap();
    let left: Vec<Stored<Audit>> = all(state, "by-who").await;
    let count = |who: &str| left.iter().filter(|item| item.value.as_ref().unwrap().who == who).count();
    assert_eq!((count("old"), count("many"), count("few")), (0, 100, 20));
    let oldest = left
        .iter()
        .filter_map(|item| item.value.as_ref().ok())
        .filter(|audit| audit.who == "many")
        .map(|audit| audit.what)
        .min();
    assert_eq!(oldest, Some(50), "the oldest go first");
    assert_eq!(state.snapshot().revision(), revision);
    assert!(futures::poll!(Box::pin(feed.next())).is_pending(), "no change event");
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// R8: large values and many records in one transaction are stored byte for byte, or refused with the limit.
pub async fn r08_large_values_and_many_records(case: Case) {
    let mut cluster = case.cluster(2).await;
    let text: String = (0..16 << 20).map(|at| char::from(b'a' + u8::try_from(at % 23).unwrap())).collect();
    let large = execution("large", 1, &text);
    let record = large.clone();
    cluster.server(0).write(move |tx: &mut Transaction| tx.append(&record)).await.unwrap();
    let many = cluster.server(0).write(|tx: &mut Transaction| {
        (0..10_000).try_for_each(|number| tx.append(&execution("many", number, "x")).map(|_| ()))
    });
    many.await.unwrap();
    let too_large = execution("x", 1, &"x".repeat(40 << 20));
    let refused = cluster.server(0).write(move |tx: &mut Transaction| tx.append(&too_large)).await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("execution") && error.contains(&(32 << 20).to_string()), "{error}");
    // Noise, so that nobody makes an index entry of it short by compressing it.
    let noise = |length: usize| -> String {
        let mut state = 7_u64;
        let mut letter = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + u8::try_from((state >> 33) % 90).unwrap())
        };
        (0..length).map(|_| letter()).collect()
    };
    let (long, too_long) = (noise(INDEX_KEY_BYTES_MAX - 10), noise(INDEX_KEY_BYTES_MAX));
    let record = execution(&long, 1, "");
    cluster.server(0).write(move |tx: &mut Transaction| tx.append(&record)).await.unwrap();
    let refused = execution(&too_long, 1, "");
    let refused = cluster.server(0).write(move |tx: &mut Transaction| tx.append(&refused)).await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("index entry") && error.contains(&INDEX_KEY_BYTES_MAX.to_string()), "{error}");
    cluster.restart_store().await;
    cluster.restart(1).await;
    let search = |store: &str| RecordSearch::by("by-store").prefix(IndexKey::new().text(store)).limit(1_000);
    let page: RecordPageOf<Execution> = cluster.server(1).records(search("large")).await.unwrap();
    assert!(page.items.len() == 1 && *page.items[0].value.as_ref().unwrap() == large, "byte for byte");
    let page: RecordPageOf<Execution> = cluster.server(1).records(search(&long)).await.unwrap();
    assert_eq!(page.items.len(), 1, "the longest index entry there may be");
    let mut count = 0;
    let mut cursor = None;
    loop {
        let page: RecordPageOf<Execution> = cluster.server(1).records(search("many").after(cursor)).await.unwrap();
        count += page.items.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(count, 10_000);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// R9: records are in no snapshot and no change; a transaction of records alone takes a revision.
pub async fn r09_records_make_no_change(case: Case) {
    let cluster = case.cluster(2).await;
    let state = cluster.server(0);
    let airports: Ref<Store> = Ref::root(case.id("airports")).unwrap();
    let target = airports.clone();
    let before = case.write(state, move |tx| tx.put(&target, store("a", 1))).await.revision;
    let mut feed = state.changes(Some((state.snapshot().epoch(), before)));
    let alone = state.write(|tx: &mut Transaction| tx.append(&Audit { who: "x".to_owned(), what: 1 })).await.unwrap();
    assert!(alone.changed);
    assert_eq!(alone.revision, before.next());
    let applied = super::transactions::next_transaction(&mut feed).await;
    assert_eq!(applied.revision, alone.revision);
    assert!(applied.changes.is_empty());
    assert_eq!(state.snapshot().len(), 1);
    let target = airports.clone();
    case.write(state, move |tx| tx.delete(&target).map(|_| ())).await;
    assert_eq!(all::<Audit>(cluster.server(1), "by-who").await.len(), 1, "it stays until its retention");
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// An older build's execution: a text where the current type has a number.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OldRun {
    name: String,
    seconds: String,
}
impl Record for OldRun {
    const KIND: &'static str = "run";
    const INDEXES: &'static [&'static str] = &["by-name"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().text(&self.name)]
    }
}

/// The current one, with another index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NewRun {
    title: String,
    seconds: u64,
}
impl Record for NewRun {
    const KIND: &'static str = "run";
    const FORMAT: u32 = 2;
    const INDEXES: &'static [&'static str] = &["by-name"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().text(&self.title)]
    }
    fn upgrade(document: &mut Map<String, Value>, _from: u32) -> Result<(), String> {
        let name = document.remove("name").ok_or("it has no name")?;
        document.insert("title".to_owned(), name);
        let seconds = document.get("seconds").and_then(Value::as_str).ok_or("it has no seconds")?;
        let seconds: u64 = seconds.parse().map_err(|_| format!("{seconds:?} is no number of seconds"))?;
        document.insert("seconds".to_owned(), seconds.into());
        Ok(())
    }
}

/// R10: records of every age read as the current type; one that can't be upgraded is its own error.
pub async fn r10_records_of_every_age_read(case: Case) {
    let builder = case.configured(|_, options| options.record::<OldRun>());
    let cluster = case.open(builder.servers(1)).await;
    let state = cluster.server(0);
    for (name, seconds) in [("a", "3600"), ("b", "many")] {
        let old = OldRun { name: name.to_owned(), seconds: seconds.to_owned() };
        state.write(move |tx: &mut Transaction| tx.append(&old)).await.unwrap();
    }
    let new = NewRun { title: "c".to_owned(), seconds: 5 };
    let record = new.clone();
    state.write(move |tx: &mut Transaction| tx.append(&record)).await.unwrap();
    let there: Vec<Stored<NewRun>> = all(state, "by-name").await;
    assert_eq!(there[0].value.as_ref().unwrap(), &NewRun { title: "a".to_owned(), seconds: 3_600 });
    let error = there[1].value.as_ref().unwrap_err().to_string();
    assert!(error.contains("run") && error.contains(&there[1].id.to_string()) && error.contains("many"), "{error}");
    assert_eq!(there[2].value.as_ref().unwrap(), &new);
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    put_counter(&case, state, &counter, 1).await;
    agree(&cluster, None).await;
    cluster.finish().await;
}
