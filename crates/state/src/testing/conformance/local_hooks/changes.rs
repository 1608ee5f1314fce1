//! Which changes call a hook, and what a call says of its change.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::super::drivers::compact_whole_log;
use super::super::entities::*;
use super::super::transactions::put_counter;
use super::super::{Case, LIMIT, Written, agree, applied, within};
use super::{Calls, Numbers, describe};
use crate::entity::Ref;
use crate::local_hook::{BoxError, LocalCall, Scope};
use crate::path::Path;
use crate::revision::Attributes;
use crate::transaction::{Transaction, TransactionError};

/// N3: creation, change and deletion, each with before and after, path, revision and attributes.
pub async fn n03_before_and_after(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let mut calls = Calls::of(cluster.server(1), "n3", Scope::collection::<Counter>()).await;
    let attributes = Attributes::from([("user".to_owned(), "me".to_owned())]);
    let mut revisions = Vec::new();
    for n in [Some(1), Some(2), None] {
        let target = counter.clone();
        let write = cluster.server(0).transaction().attributes(attributes.clone());
        let committed = write.write(move |tx: &mut Transaction| match n {
            Some(n) => tx.put(&target, Counter { n }),
            None => tx.delete(&target).map(|_| ()),
        });
        revisions.push(committed.await.unwrap().revision);
    }
    let calls = calls.take(3).await;
    let described: Vec<_> = calls.iter().map(describe).collect();
    assert_eq!(described, [(None, Some(1)), (Some(1), Some(2)), (Some(2), None)]);
    for (call, revision) in calls.iter().zip(revisions) {
        assert_eq!((call.revision, call.change.revision), (revision, revision));
        assert_eq!(call.change.path, *counter.path());
        assert_eq!(*call.attributes, attributes);
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// N4: a collection's scope holds neither siblings, parents nor children; a subtree's holds all in it.
pub async fn n04_scopes(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let [a, b] = ["a", "b"].map(|id| Ref::<Store>::root(case.id(id)).unwrap());
    let mut versions = Calls::of(state, "collection", Scope::collection::<Version>()).await;
    let mut of_a = Calls::of(state, "children", Scope::children_of::<Version>(&a)).await;
    let mut below_a = Calls::of(state, "subtree", Scope::subtree(a.path().clone())).await;
    let (first, second) = (a.clone(), b.clone());
    case.write(state, move |tx| {
        for parent in [&first, &second] {
            tx.put(parent, store("x", 1))?;
            let version: Ref<Version> = parent.child(1_u64)?;
            tx.put(&version, Version { rows: 1 })?;
            tx.put(&version.child::<Mark>("m".to_owned())?, Mark { text: "t".to_owned() })?;
            tx.put(&parent.child::<Push>("p".to_owned())?, Push { state: "s".to_owned() })?;
        }
        Ok(())
    })
    .await;
    let paths = |calls: Vec<LocalCall>| calls.iter().map(|call| call.change.path.to_string()).collect::<Vec<_>>();
    let version_of = |parent: &Ref<Store>| parent.child::<Version>(1_u64).unwrap().to_string();
    assert_eq!(paths(versions.take(2).await), [version_of(&a), version_of(&b)]);
    assert_eq!(paths(of_a.take(1).await), [version_of(&a)]);
    let below = paths(below_a.take(4).await);
    assert!(below.iter().all(|path| path.starts_with(a.path().as_str())), "{below:?}");
    let target = a.child::<Version>(1_u64).unwrap();
    let (parent, beside) = (a.clone(), b.clone());
    case.write(state, move |tx| {
        tx.put(&parent, store("x", 2))?;
        tx.put(&beside, store("x", 2))
    })
    .await;
    assert_eq!(below_a.next().await.change.path, *a.path());
    case.write(state, move |tx| tx.put(&target, Version { rows: 2 })).await;
    assert_eq!(paths(versions.take(1).await), [version_of(&a)]);
    assert_eq!(paths(of_a.take(1).await), [version_of(&a)]);
    assert_eq!(paths(below_a.take(1).await), [version_of(&a)]);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// N5: what did not happen calls nobody.
pub async fn n05_no_call_for_what_did_not_happen(case: Case) {
    let cluster = case.cluster(2).await;
    let airports: Ref<Store> = Ref::root(case.id("airports")).unwrap();
    let marker: Ref<Counter> = Ref::root(case.id("marker")).unwrap();
    let target = airports.clone();
    let at = case.write(cluster.server(0), move |tx| tx.put(&target, store("a", 1))).await.revision;
    applied(cluster.server(1), at).await;
    let mut hooks = Vec::new();
    for index in 0..2 {
        let mut calls = Calls::of(cluster.server(index), "n5", Scope::subtree(Path::root())).await;
        assert!(calls.next().await.existing);
        hooks.push(calls);
    }
    let attempt = |step: usize| {
        let target = airports.clone();
        cluster.server(0).write(move |tx: &mut Transaction| match step {
            0 => {
                tx.put(&target, store("b", 2))?;
                Err(TransactionError::rejected("no"))
            }
            1 => {
                tx.put(&target, store("b", 2))?;
                tx.expect(&target, None)
            }
            2 => tx.delete(&Ref::<Store>::root("absent".to_owned())?).map(|_| ()),
            3 => tx.create(&target, store("b", 2)),
            4 => tx.put(&Ref::<Store>::root("absent".to_owned())?.child::<Version>(1_u64)?, Version { rows: 1 }),
            _ => tx.put(&target, store("a", 1)),
        })
    };
    for step in 0..6 {
        let written: Written<()> = attempt(step).await;
        assert_eq!(written.is_ok(), matches!(step, 2 | 5), "step {step}");
    }
    for (index, calls) in hooks.iter_mut().enumerate() {
        calls.nothing_before_marker(cluster.server(index), &marker).await;
        if index == 0 {
            // The other server's hook is called for this marker too.
            cluster.server(1).flush().await.unwrap();
        }
        if index == 1 {
            assert!(calls.received.try_recv().is_ok() || calls.next().await.change.path == *marker.path());
        }
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

tokio::task_local! {
    static WRITER: &'static str;
}

/// N13: a hook sees its change's attributes and nothing of the writer's task.
pub async fn n13_attributes_reach_the_hook(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let foreign = Arc::new(AtomicUsize::new(0));
    let (sender, mut received) = mpsc::unbounded_channel();
    let counted = foreign.clone();
    let hook = move |call: LocalCall| {
        if WRITER.try_with(|_| ()).is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        let sent = sender.send((*call.attributes).clone());
        async move { sent.map_err(|_| BoxError::from("nobody listens")) }
    };
    let _handle = state.local_hook("n13", Scope::collection::<Counter>(), hook).await.unwrap();
    let a = Attributes::from([("user".to_owned(), "a".to_owned())]);
    let expected = [a.clone(), a, Attributes::new()];
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    for (n, attributes) in (1..).zip(expected.iter().cloned()) {
        let target = counter.clone();
        let write = state.transaction().attributes(attributes);
        let write = write.write(move |tx: &mut Transaction| tx.put(&target, Counter { n }));
        WRITER.scope("the writer's", write).await.unwrap();
    }
    for attributes in &expected {
        assert_eq!(within("the call", received.recv()).await.as_ref(), Some(attributes));
    }
    assert_eq!(foreign.load(Ordering::SeqCst), 0);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// N14: after a reload there is one call for each entity that differs, and none for those that do not.
pub async fn n14_a_reload_calls_for_what_differs(case: Case) {
    let case = case.upkept();
    let builder = case.configured(|_, mut options| {
        options.log_keep = Duration::ZERO;
        options
    });
    let cluster = case.open(builder.servers(2)).await;
    let [made, changed, gone, same] =
        ["made", "changed", "gone", "same"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    for counter in [&changed, &gone, &same] {
        put_counter(&case, cluster.server(0), counter, 1).await;
    }
    cluster.server(1).flush().await.unwrap();
    let mut calls = Calls::of(cluster.server(1), "n14", Scope::collection::<Counter>()).await;
    calls.take(3).await;
    cluster.faults(1).set_absent(true);
    for n in 2..50 {
        put_counter(&case, cluster.server(0), &changed, n).await;
        put_counter(&case, cluster.server(0), &same, n).await;
    }
    put_counter(&case, cluster.server(0), &same, 1).await;
    put_counter(&case, cluster.server(0), &made, 1).await;
    let target = gone.clone();
    case.write(cluster.server(0), move |tx| tx.delete(&target).map(|_| ())).await;
    compact_whole_log(&cluster, 0).await;
    cluster.faults(1).set_absent(false);
    cluster.server(1).flush_within(LIMIT).await.unwrap();
    let described: Vec<(Path, Numbers)> =
        calls.take(3).await.iter().map(|call| (call.change.path.clone(), describe(call))).collect();
    assert_eq!(
        described,
        [
            (gone.path().clone(), (Some(1), None)),
            (changed.path().clone(), (Some(1), Some(49))),
            (made.path().clone(), (None, Some(1))),
        ]
    );
    let marker: Ref<Counter> = Ref::root(case.id("marker")).unwrap();
    calls.nothing_before_marker(cluster.server(1), &marker).await;
    agree(&cluster, None).await;
    cluster.finish().await;
}
