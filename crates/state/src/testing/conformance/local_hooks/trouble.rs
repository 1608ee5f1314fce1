//! Hooks that are slow, fail or panic.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::super::entities::*;
use super::super::transactions::put_counter;
use super::super::{Case, LIMIT, agree, within};
use super::{Calls, describe};
use crate::entity::Ref;
use crate::local_hook::{BoxError, LocalCall, Scope};
use crate::transaction::Transaction;

/// N9: a hook that is stuck delays neither the tail, nor flush, nor other hooks; then it gets everything in order. Its
/// lag is a metric.
pub async fn n09_a_slow_hook_delays_nobody(case: Case) {
    let cluster = case.cluster(2).await;
    let state = cluster.server(1);
    let gate = Arc::new(Semaphore::new(0));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (waiting, noted) = (gate.clone(), seen.clone());
    let slow = move |call: LocalCall| {
        let (waiting, noted) = (waiting.clone(), noted.clone());
        async move {
            noted.lock().push(call.change.after::<Counter>()?.map_or(0, |counter| counter.n));
            let _ = waiting.acquire().await?;
            Ok(())
        }
    };
    let _handle = state.local_hook("slow", Scope::collection::<Counter>(), slow).await.unwrap();
    let mut quick = Calls::of(state, "quick", Scope::collection::<Counter>()).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let (writing, each): (i64, i64) = (25, 400);
    let many = writing * each;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..writing {
        let (state, target) = (cluster.server(0).clone(), counter.clone());
        writers.spawn(async move {
            for _ in 0..each {
                let target = target.clone();
                let write = move |tx: &mut Transaction| {
                    let n = tx.get(&target)?.map_or(0, |counter| counter.n);
                    tx.put(&target, Counter { n: n + 1 })
                };
                state.write(write).await.unwrap();
            }
        });
    }
    let calls = quick.take(usize::try_from(many).unwrap()).await;
    assert_eq!(describe(calls.last().unwrap()).1, Some(many));
    while writers.join_next().await.is_some() {}
    state.flush_within(LIMIT).await.unwrap();
    assert!(seen.lock().len() <= 1);
    gate.add_permits(1_000_000);
    within("the slow hook", async {
        while seen.lock().len() < usize::try_from(many).unwrap() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(*seen.lock(), (1..=many).collect::<Vec<_>>());
    within("the lag's end", async {
        while state.metrics().local_hook_lag("slow") != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// N10: a panic or an error is counted, and the next change comes.
pub async fn n10_failures_do_not_stop_the_stream(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let fails = |call: LocalCall| async move {
        match call.change.after::<Counter>()?.map_or(0, |counter| counter.n) % 3 {
            0 => panic!("a mistake in a hook"),
            1 => Err(BoxError::from("it did not work")),
            _ => Ok(()),
        }
    };
    let _handle = state.local_hook("fails", Scope::collection::<Counter>(), fails).await.unwrap();
    let mut beside = Calls::of(state, "beside", Scope::collection::<Counter>()).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    for n in 1..=30 {
        put_counter(&case, state, &counter, n).await;
    }
    assert_eq!(beside.take(30).await.len(), 30);
    within("all failures", async {
        while state.metrics().local_hook_errors("fails") < 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(state.metrics().local_hook_errors("fails"), 20);
    assert_eq!(state.metrics().local_hook_errors("beside"), 0);
    agree(&cluster, None).await;
    cluster.finish().await;
}
