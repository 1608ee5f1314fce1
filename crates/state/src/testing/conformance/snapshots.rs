//! S: snapshots and entities.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::time::Duration;

use super::entities::*;
use super::{Case, agree, within};
use crate::entity::Ref;
use crate::error::ReadError;
use crate::path::PathError;
use crate::testing::points::name as point;
use crate::transaction::{Transaction, TransactionError};

/// S1: a snapshot and its copy read as at their revision, whatever happens afterwards.
pub async fn s01_snapshots_never_change(case: Case) {
    let cluster = case.cluster(2).await;
    let state = cluster.server(0);
    let airports: Ref<Store> = Ref::root(case.id("airports")).unwrap();
    let versions: Vec<Ref<Version>> = (0..50_u64).map(|number| airports.child(number).unwrap()).collect();
    let (parent, all) = (airports.clone(), versions.clone());
    case.write(state, move |tx| {
        tx.put(&parent, store("a", 1))?;
        all.iter().try_for_each(|version| tx.put(version, Version { rows: 1 }))
    })
    .await;
    let snapshot = state.snapshot();
    let copy = snapshot.clone();
    let before = super::dump(&snapshot);
    let at = snapshot.revision();

    for round in 0..100_u64 {
        let (parent, version) = (airports.clone(), versions[usize::try_from(round).unwrap() % 50].clone());
        let write = move |tx: &mut Transaction| match round {
            99 => tx.delete(&parent).map(|_| ()),
            _ if round % 3 == 0 => tx.delete(&version).map(|_| ()),
            _ => tx.put(&version, Version { rows: round + 10 }),
        };
        state.write(write).await.unwrap();
    }
    state.flush().await.unwrap();

    let elsewhere = tokio::spawn(async move {
        tokio::task::yield_now().await;
        (super::dump(&copy), copy.revision())
    });
    assert_eq!(elsewhere.await.unwrap(), (before.clone(), at));
    assert_eq!(super::dump(&snapshot), before);
    assert_eq!(snapshot.get(&versions[0]).unwrap(), Some(&Version { rows: 1 }));
    assert!(state.snapshot().get(&airports).unwrap().is_none());
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// S2: a sum that every transaction keeps is kept in every snapshot, and a reader's revisions never fall.
pub async fn s02_every_snapshot_is_consistent(case: Case) {
    let cluster = case.cluster(2).await;
    let left: Ref<Counter> = Ref::root(case.id("left")).unwrap();
    let right: Ref<Counter> = Ref::root(case.id("right")).unwrap();
    let (a, b) = (left.clone(), right.clone());
    let made = case
        .write(cluster.server(0), move |tx| {
            tx.put(&a, Counter { n: 60 })?;
            tx.put(&b, Counter { n: 40 })
        })
        .await;
    super::applied(cluster.server(1), made.revision).await;

    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16_i64 {
        let (state, left, right) = (cluster.server(0).clone(), left.clone(), right.clone());
        writers.spawn(async move {
            for round in 0..625_i64 {
                let (left, right) = (left.clone(), right.clone());
                let amount = (writer * 7 + round) % 13 - 6;
                let transfer = move |tx: &mut Transaction| {
                    tx.update(&left, |counter| counter.n -= amount)?;
                    tx.update(&right, |counter| counter.n += amount)
                };
                state.write(transfer).await.unwrap();
            }
        });
    }
    let mut readers = tokio::task::JoinSet::new();
    for index in 0..2 {
        let (state, left, right) = (cluster.server(index).clone(), left.clone(), right.clone());
        readers.spawn(async move {
            let mut last = state.snapshot().revision();
            for _ in 0..2_000 {
                let snapshot = state.snapshot();
                let sum = snapshot.require(&left).unwrap().n + snapshot.require(&right).unwrap().n;
                assert_eq!(sum, 100, "at {}", snapshot.revision());
                assert!(snapshot.revision() >= last, "revisions fell");
                last = snapshot.revision();
                tokio::task::yield_now().await;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    while let Some(ended) = readers.join_next().await {
        ended.unwrap();
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// S3: with the store away and a commit held, reads answer from the last snapshot.
pub async fn s03_reads_go_on_without_the_store(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0).clone();
    let airports: Ref<Store> = Ref::root(case.id("airports")).unwrap();
    let target = airports.clone();
    case.write(&state, move |tx| tx.put(&target, store("a", 1))).await;

    let hold = cluster.points(0).hold(point::COMMIT_BEFORE_COMMIT);
    let (writer, target) = (state.clone(), airports.clone());
    let write =
        tokio::spawn(async move { writer.write(move |tx: &mut Transaction| tx.put(&target, store("b", 2))).await });
    hold.reached().await;
    cluster.faults(0).set_absent(true);
    let readers: Vec<_> = (0..16)
        .map(|_| {
            let (state, airports) = (state.clone(), airports.clone());
            std::thread::spawn(move || {
                for _ in 0..1_000 {
                    assert_eq!(state.snapshot().require(&airports).unwrap(), &store("a", 1));
                }
            })
        })
        .collect();
    let joined = tokio::task::spawn_blocking(move || readers.into_iter().all(|reader| reader.join().is_ok()));
    assert!(within("the readers' end", joined).await.unwrap());
    cluster.faults(0).set_absent(false);
    hold.release();
    within("the held write", write).await.unwrap().unwrap();
    assert_eq!(state.snapshot().require(&airports).unwrap(), &store("b", 2));
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// S4: ids are any non-empty text up to 256 bytes, and read back as they were.
pub async fn s04_ids_are_any_text_within_bounds(case: Case) {
    let cluster = case.cluster(2).await;
    let ids = ["a b", "a/b", "50%", "é", "a%2Fb", "..", "\u{1}", &"x".repeat(256), &"é".repeat(128)].map(str::to_owned);
    for id in &ids {
        let entity: Ref<Store> = Ref::root(id.clone()).unwrap();
        assert_eq!(Ref::<Store>::parse(&entity.to_string()).unwrap(), entity);
        assert_eq!(entity.id(), *id);
        let (target, owner) = (entity.clone(), id.clone());
        case.write(cluster.server(0), move |tx| tx.put(&target, store(&owner, 0))).await;
    }
    let latecomer = cluster.latecomer().await;
    for id in &ids {
        let entity: Ref<Store> = Ref::root(id.clone()).unwrap();
        assert_eq!(latecomer.snapshot().require(&entity).unwrap().owner, *id);
    }
    let listed: HashSet<String> = latecomer.snapshot().roots::<Store>().map(|found| found.unwrap().0.id()).collect();
    assert_eq!(listed, ids.into_iter().collect());
    let empty = Ref::<Store>::root(String::new()).unwrap_err();
    assert_eq!(empty, PathError::EmptyId { collection: "stores".to_owned() });
    let long = Ref::<Store>::root("x".repeat(257)).unwrap_err();
    assert!(long.to_string().contains("stores") && long.to_string().contains("at most 256"), "{long}");
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// S5: a text that is no path of the type says which segment is wrong.
pub async fn s05_wrong_paths_say_which_segment(_case: Case) {
    for (text, part) in [
        ("/shops/a", "segment 1"),
        ("/versions/1", "segment 1"),
        ("/stores/a/pushes/1", "segment 3"),
        ("/stores/a/versions", "no id"),
        ("/stores//versions/1", "segment 2"),
        ("/stores/a/versions/%2", "segment 4"),
        ("/stores/a/versions/one", "not an id"),
        ("/stores/a/versions/01", "not an id"),
        ("/stores/a/versions/1/marks/x", "segment 5"),
        ("stores/a/versions/1", "segment 1"),
        ("", "segment 1"),
    ] {
        let error = Ref::<Version>::parse(text).unwrap_err();
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}

/// S6: a ref to what does not exist can be made, kept and compared; reading it says so.
pub async fn s06_refs_to_absent_entities_can_be_kept(case: Case) {
    let cluster = case.cluster(2).await;
    let here: Ref<Store> = Ref::root(case.id("nowhere")).unwrap();
    let there: Ref<Store> = Ref::parse(here.path().as_str()).unwrap();
    assert_eq!(here, there);
    let hasher = std::hash::RandomState::new();
    assert_eq!(hasher.hash_one(&here), hasher.hash_one(&there));
    for state in cluster.running() {
        let snapshot = state.snapshot();
        assert!(snapshot.get(&here).unwrap().is_none());
        let error = snapshot.require(&here).unwrap_err();
        assert_eq!(error, ReadError::Absent { path: here.path().clone() });
        assert!(error.to_string().contains(here.path().as_str()));
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// S7: numbers as numbers, text by bytes, on every server and driver.
pub async fn s07_children_come_in_id_order(case: Case) {
    let cluster = case.cluster(2).await;
    let airports: Ref<Store> = Ref::root("airports".to_owned()).unwrap();
    let parent = airports.clone();
    case.write(cluster.server(0), move |tx| {
        tx.put(&parent, store("x", 0))?;
        for number in [10_u64, 9, 2, 1, 100, u64::MAX, 0] {
            tx.put(&parent.child::<Version>(number)?, Version { rows: number })?;
        }
        for name in ["b", "A", "a", "é", "Z", "_", "10", "9", "a b", "a%"] {
            tx.put(&Ref::root(name.to_owned())?, store(name, 0))?;
        }
        Ok(())
    })
    .await;
    for number in 200..300_u64 {
        // More than a few children are kept in another form, with the same order.
        let parent = airports.clone();
        let rows = (number * 7) % 100 + 200;
        case.write(cluster.server(0), move |tx| tx.put(&parent.child::<Version>(rows)?, Version { rows })).await;
    }
    cluster.server(1).flush().await.unwrap();
    for state in [cluster.server(0).clone(), cluster.server(1).clone(), cluster.latecomer().await] {
        let snapshot = state.snapshot();
        let numbers: Vec<u64> = snapshot.children::<Version>(&airports).map(|found| found.unwrap().0.id()).collect();
        let mut expected: Vec<u64> = [0, 1, 2, 9, 10, 100].into_iter().chain(200..300).collect();
        expected.push(u64::MAX);
        assert_eq!(numbers, expected);
        let names: Vec<String> = snapshot.roots::<Store>().map(|found| found.unwrap().0.id()).collect();
        assert_eq!(names, ["10", "9", "A", "Z", "_", "a", "a b", "a%", "airports", "b", "é"]);
        let inside = state.write(|tx: &mut Transaction| {
            Ok::<_, TransactionError>(tx.roots::<Store>()?.into_iter().map(|(found, _)| found.id()).collect::<Vec<_>>())
        });
        assert_eq!(inside.await.unwrap().value, names);
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// S8: listings under an absent and an empty parent, and of everything below any parent.
pub async fn s08_listings_of_absent_empty_and_all(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let [a, b, empty] = ["a", "b", "empty"].map(|id| Ref::<Store>::root(case.id(id)).unwrap());
    let (first, second, third) = (a.clone(), b.clone(), empty.clone());
    case.write(state, move |tx| {
        tx.put(&second, store("b", 0))?;
        tx.put(&first, store("a", 0))?;
        tx.put(&third, store("c", 0))?;
        for (parent, number) in [(&second, 1_u64), (&first, 10), (&first, 2)] {
            let version: Ref<Version> = parent.child(number)?;
            tx.put(&version, Version { rows: number })?;
            tx.put(&version.child::<Mark>("m".to_owned())?, Mark { text: "x".to_owned() })?;
        }
        Ok(())
    })
    .await;
    let snapshot = state.snapshot();
    let absent: Ref<Store> = Ref::root(case.id("absent")).unwrap();
    assert_eq!(snapshot.children::<Version>(&absent).count(), 0);
    assert_eq!(snapshot.children::<Version>(&empty).count(), 0);
    let all: Vec<Ref<Version>> = snapshot.all::<Version>().map(|found| found.unwrap().0).collect();
    assert_eq!(all, [a.child(2_u64).unwrap(), a.child(10_u64).unwrap(), b.child(1_u64).unwrap()]);
    let marks: Vec<Ref<Mark>> = snapshot.all::<Mark>().map(|found| found.unwrap().0).collect();
    assert_eq!(marks.len(), 3);
    assert_eq!(marks[0].parent(), all[0]);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// S9: values read back equal, through a restart and on another server; a float that is no number is refused.
pub async fn s09_values_read_back_equal(case: Case) {
    let mut cluster = case.cluster(2).await;
    let entity: Ref<Everything> = Ref::root(case.id("all")).unwrap();
    let value = Everything {
        unsigned: u64::MAX,
        signed: i64::MIN,
        floats: vec![f64::MIN_POSITIVE, f64::MAX, f64::MIN, 5e-324, 0.1, -0.0, 1e15, 123_456_789.123_456_79],
        text: String::new(),
        map: BTreeMap::from([
            (String::new(), vec!["b".to_owned(), "a".to_owned()]),
            ("dotted.key".to_owned(), vec![]),
            ("null".to_owned(), vec!["a\u{0}b".to_owned()]),
        ]),
        option: Some(String::new()),
    };
    let (target, wanted) = (entity.clone(), value.clone());
    let written = case.write(cluster.server(0), move |tx| tx.put(&target, wanted.clone())).await;
    super::applied(cluster.server(1), written.revision).await;
    assert_eq!(cluster.server(1).snapshot().require(&entity).unwrap(), &value);
    cluster.restart_store().await;
    cluster.restart(0).await;
    assert_eq!(cluster.server(0).snapshot().require(&entity).unwrap(), &value);

    let target = entity.clone();
    let none = case.write(cluster.server(0), move |tx| tx.update(&target, |value| value.option = None)).await;
    assert!(none.changed);
    assert_eq!(cluster.server(0).snapshot().require(&entity).unwrap().option, None);
    for not_a_number in [f64::NAN, f64::INFINITY] {
        let target = entity.clone();
        let refused = cluster
            .server(0)
            .write(move |tx: &mut Transaction| tx.update(&target, |value| value.floats = vec![1.0, not_a_number]))
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("floats.1"), "{refused}");
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// S10: what a snapshot alone holds on to is let go with it.
pub async fn s10_snapshots_let_go_of_what_they_held(case: Case) {
    // Whoever is about to write entities has a snapshot as well.
    let cluster = case.upkept().cluster(1).await;
    let state = cluster.server(0);
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let mut held = Vec::new();
    for n in 0..100 {
        let target = counter.clone();
        case.write(state, move |tx| tx.put(&target, Counter { n })).await;
        held.push(state.snapshot());
    }
    let values: Vec<i64> = held.iter().map(|snapshot| snapshot.require(&counter).unwrap().n).collect();
    assert_eq!(values, (0..100).collect::<Vec<_>>());
    let documents: Vec<_> =
        held.iter().map(|snapshot| snapshot.document(counter.path()).unwrap().downgrade()).collect();
    drop(held);
    // The newest transactions are kept for feeds that resume; later ones push them out.
    for n in 0..1_100 {
        let target = counter.clone();
        state.write(move |tx: &mut Transaction| tx.put(&target, Counter { n: n + 1_000 })).await.unwrap();
    }
    within("documents that nothing shows any more go", async {
        while documents.iter().any(|document| document.is_held()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    agree(&cluster, None).await;
    cluster.finish().await;
}
