//! The order of calls, and the snapshot that each one has.

use super::super::entities::*;
use super::super::transactions::put_counter;
use super::super::{Case, agree, applied, within};
use super::Calls;
use crate::entity::Ref;
use crate::local_hook::{LocalCall, Scope};
use crate::path::Path;
use crate::revision::Revision;
use crate::transaction::Transaction;

/// N6: within a transaction deletions come first, children before parents; then the rest, parents before children, in id
/// order; alike on all servers.
pub async fn n06_order_within_a_transaction(case: Case) {
    let cluster = case.cluster(2).await;
    let [gone, made] = ["gone", "made"].map(|id| Ref::<Store>::root(case.id(id)).unwrap());
    let parent = gone.clone();
    let at = case
        .write(cluster.server(0), move |tx| {
            tx.put(&parent, store("x", 0))?;
            for number in [1_u64, 2, 10] {
                let version: Ref<Version> = parent.child(number)?;
                tx.put(&version, Version { rows: number })?;
            }
            tx.put(&parent.child::<Version>(2_u64)?.child::<Mark>("m".to_owned())?, Mark { text: "t".to_owned() })
        })
        .await
        .revision;
    applied(cluster.server(1), at).await;
    let mut hooks = Vec::new();
    for index in 0..2 {
        let mut calls = Calls::of(cluster.server(index), "n6", Scope::subtree(Path::root())).await;
        calls.take(5).await;
        hooks.push(calls);
    }
    let (old, new) = (gone.clone(), made.clone());
    let write = cluster.server(1).write(move |tx: &mut Transaction| {
        tx.put(&new, store("y", 0))?;
        for number in [10_u64, 9, 2] {
            tx.put(&new.child::<Version>(number)?, Version { rows: number })?;
        }
        tx.put(&new.child::<Version>(9_u64)?.child::<Mark>("m".to_owned())?, Mark { text: "t".to_owned() })?;
        tx.delete(&old)
    });
    write.await.unwrap();
    let of = |parent: &Ref<Store>, rest: &str| format!("{}{rest}", parent.path());
    let expected = [
        of(&gone, "/versions/1"),
        of(&gone, "/versions/2/marks/m"),
        of(&gone, "/versions/2"),
        of(&gone, "/versions/10"),
        of(&gone, ""),
        of(&made, ""),
        of(&made, "/versions/2"),
        of(&made, "/versions/9"),
        of(&made, "/versions/9/marks/m"),
        of(&made, "/versions/10"),
    ];
    for calls in &mut hooks {
        let calls = calls.take(10).await;
        let paths: Vec<String> = calls.iter().map(|call| call.change.path.to_string()).collect();
        assert_eq!(paths, expected);
        assert!(calls[..5].iter().all(|call| call.change.before.is_some() && call.change.after.is_none()));
        assert!(calls[5..].iter().all(|call| call.change.before.is_none() && call.change.after.is_some()));
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// N7: after its registration each server's hook gets the same sequence of changes.
pub async fn n07_all_servers_see_one_sequence(case: Case) {
    let cluster = case.cluster(3).await;
    let mut hooks = Vec::new();
    for index in 0..3 {
        hooks.push(Calls::of(cluster.server(index), "n7", Scope::collection::<Counter>()).await);
    }
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..10 {
        let (state, counter) =
            (cluster.server(writer % 3).clone(), Ref::<Counter>::root(case.id(&format!("n{}", writer % 4))).unwrap());
        writers.spawn(async move {
            for _ in 0..200 {
                let target = counter.clone();
                let write = move |tx: &mut Transaction| {
                    let n = tx.get(&target)?.map_or(0, |counter| counter.n);
                    tx.put(&target, Counter { n: n + 1 })
                };
                state.write(write).await.unwrap();
            }
        });
    }
    let late = cluster.latecomer().await;
    let from = late.snapshot().revision();
    let mut late_calls = Calls::of(&late, "n7", Scope::collection::<Counter>()).await;
    while let Some(ended) = within("the writers", writers.join_next()).await {
        ended.unwrap();
    }
    // So that something comes after the late one's registration, however late it was.
    put_counter(&case, cluster.server(0), &Ref::root(case.id("last")).unwrap(), 1).await;
    let mut sequences = Vec::new();
    for calls in &mut hooks {
        let calls = calls.take(2_001).await;
        sequences.push(calls.iter().map(|call| (call.revision, call.change.path.clone())).collect::<Vec<_>>());
    }
    assert!(sequences.windows(2).all(|pair| pair[0] == pair[1]));
    let last = sequences[0].last().unwrap().clone();
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let call = late_calls.next().await;
        if !call.existing {
            seen.push((call.revision, call.change.path.clone()));
        }
    }
    let expected: Vec<_> = sequences[0].iter().filter(|(revision, _)| *revision >= seen[0].0).cloned().collect();
    assert_eq!(seen, expected);
    assert!(seen[0].0 > from);
    late.close().await;
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// N8: a hook's snapshot is at exactly its change's revision, however far the state is; hooks that write cascade.
pub async fn n08_the_snapshot_is_at_the_change(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let [x, y, z] = ["x", "y", "z"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    let copy = |to: &Ref<Counter>, from: &Ref<Counter>| {
        let (to, from) = (to.clone(), from.clone());
        move |call: LocalCall| {
            let (to, from) = (to.clone(), from.clone());
            async move {
                if call.change.path != *from.path() {
                    return Ok(());
                }
                let n = call.change.after::<Counter>()?.map_or(0, |counter| counter.n);
                assert_eq!(call.snapshot.revision(), call.revision);
                assert_eq!(call.snapshot.require(&from)?.n, n);
                call.state.write(move |tx: &mut Transaction| tx.put(&to, Counter { n })).await?;
                Ok(())
            }
        }
    };
    let all = Scope::collection::<Counter>;
    let _a = state.local_hook("a", all(), copy(&y, &x)).await.unwrap();
    let _b = state.local_hook("b", all(), copy(&z, &x)).await.unwrap();
    let mut calls = Calls::of(state, "c", all()).await;
    for n in 1..=100 {
        put_counter(&case, state, &x, n).await;
    }
    let mut last = Revision::ZERO;
    let mut left = 300;
    while left > 0 {
        let call = calls.next().await;
        left -= 1;
        assert!(call.revision > last, "revisions rise");
        last = call.revision;
        assert_eq!(call.snapshot.revision(), call.revision);
        let after = call.change.after::<Counter>().unwrap().unwrap();
        let entity = Ref::<Counter>::from_path(&call.change.path).unwrap();
        assert_eq!(call.snapshot.require(&entity).unwrap(), &*after);
    }
    assert_eq!(state.metrics().local_hook_errors("a") + state.metrics().local_hook_errors("b"), 0);
    let snapshot = state.snapshot();
    assert_eq!([&y, &z].map(|counter| snapshot.require(counter).unwrap().n), [100, 100]);
    agree(&cluster, None).await;
    cluster.finish().await;
}
