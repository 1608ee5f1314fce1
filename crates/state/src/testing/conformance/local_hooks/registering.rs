//! What a hook finds when it registers, and how it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::super::entities::*;
use super::super::transactions::put_counter;
use super::super::{Case, agree, within};
use super::{Calls, describe};
use crate::entity::Ref;
use crate::local_hook::{BoxError, LocalCall, Scope};
use crate::path::Path;
use crate::transaction::Transaction;

/// N1: what exists comes first, in id order, marked as existing.
pub async fn n01_existing_matches_come_first(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let airports: Ref<Store> = Ref::root(case.id("airports")).unwrap();
    let parent = airports.clone();
    case.write(state, move |tx| {
        tx.put(&parent, store("a", 0))?;
        for number in [10_u64, 9, 2, 1, 100, 7] {
            tx.put(&parent.child::<Version>(number)?, Version { rows: number })?;
        }
        Ok(())
    })
    .await;
    let gone: Ref<Version> = airports.child(7_u64).unwrap();
    case.write(state, move |tx| tx.delete(&gone).map(|_| ())).await;
    let at = state.snapshot().revision();
    let mut calls = Calls::of(state, "n1", Scope::children_of::<Version>(&airports)).await;
    let mut ids = Vec::new();
    for call in calls.take(5).await {
        assert!(call.existing && call.change.before.is_none() && call.attributes.is_empty());
        assert_eq!((call.revision, call.snapshot.revision()), (at, at));
        ids.push(Ref::<Version>::from_path(&call.change.path).unwrap().id());
    }
    assert_eq!(ids, [1, 2, 9, 10, 100]);
    let (target, value) = (airports.child::<Version>(3_u64).unwrap(), Version { rows: 3 });
    case.write(state, move |tx| tx.put(&target, value.clone())).await;
    let call = calls.next().await;
    assert!(!call.existing);
    assert_eq!(call.revision, at.next());
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// N2: a hook that registers while two servers write sees what exists, then every change once.
pub async fn n02_registering_under_load_has_no_gap(case: Case) {
    let cluster = case.cluster(2).await;
    let stop = Arc::new(AtomicBool::new(false));
    let counters: Vec<Ref<Counter>> = (0..8).map(|n| Ref::root(case.id(&format!("n{n}"))).unwrap()).collect();
    let mut writers = tokio::task::JoinSet::new();
    for (index, counter) in counters.iter().enumerate() {
        let (state, counter, stop) = (cluster.server(index % 2).clone(), counter.clone(), stop.clone());
        writers.spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let target = counter.clone();
                state.write(move |tx: &mut Transaction| tx.put(&target, Counter { n })).await.unwrap();
                tokio::task::yield_now().await;
            }
            (counter, n)
        });
    }
    let mut hooks = Vec::new();
    for round in 0..10 {
        hooks.push(Calls::of(cluster.server(round % 2), &format!("n2-{round}"), Scope::collection::<Counter>()).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut last = HashMap::new();
    while let Some(ended) = within("the writers", writers.join_next()).await {
        let (counter, n) = ended.unwrap();
        last.insert(counter.path().clone(), n);
    }
    for hook in &mut hooks {
        let mut seen: HashMap<Path, i64> = HashMap::new();
        while seen != last {
            let call = hook.next().await;
            let after = call.change.after::<Counter>().unwrap().unwrap().n;
            let before = seen.insert(call.change.path.clone(), after);
            if call.existing {
                assert_eq!(before, None, "what exists comes once, and first");
            } else {
                assert_eq!(after, before.unwrap_or(0) + 1, "every change once, none missed");
                assert_eq!(describe(&call).0, before, "before is what was seen last");
            }
        }
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// N15: dropping a handle ends the hook after the call that runs; hooks may register hooks, also while the store is away.
pub async fn n15_handles_and_hooks_from_inside(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let (started, ended) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(Semaphore::new(0));
    let (signal, counted, waiting) = (started.clone(), ended.clone(), gate.clone());
    let hook = move |_: LocalCall| {
        let (signal, counted, waiting) = (signal.clone(), counted.clone(), waiting.clone());
        async move {
            signal.add_permits(1);
            let _ = waiting.acquire().await?;
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    };
    let handle = state.local_hook("dropped", Scope::collection::<Counter>(), hook).await.unwrap();
    put_counter(&case, state, &counter, 1).await;
    let _ = within("the first call", started.acquire()).await.unwrap();
    drop(handle);
    put_counter(&case, state, &counter, 2).await;
    gate.add_permits(100);
    let mut later = Calls::of(state, "later", Scope::collection::<Counter>()).await;
    assert!(later.next().await.existing);
    within("the running call's end", async {
        while ended.load(Ordering::SeqCst) < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    put_counter(&case, state, &counter, 3).await;
    assert_eq!(describe(&later.next().await), (Some(2), Some(3)));
    assert_eq!((ended.load(Ordering::SeqCst), started.available_permits()), (1, 1), "no later call");

    let (sender, mut inner) = mpsc::unbounded_channel();
    let registers = move |call: LocalCall| {
        let sender = sender.clone();
        async move {
            let calls = Calls::of(&call.state, "inner", Scope::collection::<Counter>()).await;
            sender.send(calls).map_err(|_| BoxError::from("nobody listens"))
        }
    };
    let outer = state.local_hook("outer", Scope::collection::<Counter>(), registers).await.unwrap();
    let mut calls = within("the hook's hook", inner.recv()).await.unwrap();
    assert!(calls.next().await.existing);
    drop(outer);

    cluster.faults(0).set_absent(true);
    let mut offline = Calls::of(state, "offline", Scope::collection::<Counter>()).await;
    let call = offline.next().await;
    assert!(call.existing);
    assert_eq!(describe(&call), (None, Some(3)));
    cluster.faults(0).set_absent(false);
    put_counter(&case, state, &counter, 4).await;
    assert_eq!(describe(&offline.next().await), (Some(3), Some(4)));
    agree(&cluster, None).await;
    cluster.finish().await;
}
