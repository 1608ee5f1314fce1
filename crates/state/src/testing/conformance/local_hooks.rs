//! N: local hooks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::entities::*;
use super::transactions::put_counter;
use super::{Case, LIMIT, Written, agree, within};
use crate::entity::Ref;
use crate::local_hook::{BoxError, LocalCall, LocalHookHandle, Scope};
use crate::path::Path;
use crate::revision::{Attributes, Revision};
use crate::state::State;
use crate::transaction::{Transaction, TransactionError};

/// What a test's hook was called with.
struct Calls {
    received: mpsc::UnboundedReceiver<LocalCall>,
    _handle: LocalHookHandle,
}

impl Calls {
    async fn of(state: &State, name: &str, scope: Scope) -> Calls {
        let (sender, received) = mpsc::unbounded_channel();
        let hook = move |call: LocalCall| {
            let sent = sender.send(call);
            // The test may have ended.
            async move { sent.map_err(|_| BoxError::from("nobody listens")) }
        };
        Calls { received, _handle: state.local_hook(name, scope, hook).await.unwrap() }
    }

    async fn next(&mut self) -> LocalCall {
        within("the next call", self.received.recv()).await.unwrap()
    }

    async fn take(&mut self, count: usize) -> Vec<LocalCall> {
        let mut calls = Vec::new();
        for _ in 0..count {
            calls.push(self.next().await);
        }
        calls
    }

    /// No call is there, nor comes before what a marker that is written now calls for.
    async fn nothing_before_marker(&mut self, state: &State, marker: &Ref<Counter>) {
        let target = marker.clone();
        let n = i64::try_from(state.snapshot().revision().0).unwrap() + 1_000;
        state.write(move |tx: &mut Transaction| tx.put(&target, Counter { n })).await.unwrap();
        let call = self.next().await;
        assert_eq!(call.change.path, *marker.path(), "a call that was not to come");
    }
}

/// A counter's number before and after.
type Numbers = (Option<i64>, Option<i64>);

fn describe(call: &LocalCall) -> Numbers {
    let n = |counter: Option<Arc<Counter>>| counter.map(|counter| counter.n);
    (n(call.change.before().unwrap()), n(call.change.after().unwrap()))
}

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
    let mut last = std::collections::HashMap::new();
    while let Some(ended) = within("the writers", writers.join_next()).await {
        let (counter, n) = ended.unwrap();
        last.insert(counter.path().clone(), n);
    }
    for hook in &mut hooks {
        let mut seen: std::collections::HashMap<Path, i64> = std::collections::HashMap::new();
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
    super::applied(cluster.server(1), at).await;
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
    super::applied(cluster.server(1), at).await;
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

/// N11: a hook may flush, wait for its revision and write.
pub async fn n11_a_hook_may_write_and_wait(case: Case) {
    let cluster = case.cluster(2).await;
    let done: Ref<Counter> = Ref::root(case.id("done")).unwrap();
    let trigger: Ref<Store> = Ref::root(case.id("trigger")).unwrap();
    let target = done.clone();
    let hook = move |call: LocalCall| {
        let target = target.clone();
        async move {
            call.state.flush().await?;
            call.state.wait_for(call.revision, LIMIT).await?;
            let written = call.state.write(move |tx: &mut Transaction| {
                let n = tx.get(&target)?.map_or(0, |counter| counter.n);
                tx.put(&target, Counter { n: n + 1 })
            });
            let at = written.await?.revision;
            call.state.wait_for(at, LIMIT).await?;
            call.state.flush().await?;
            Ok(())
        }
    };
    let _handle = cluster.server(1).local_hook("n11", Scope::collection::<Store>(), hook).await.unwrap();
    for n in 0..20 {
        let target = trigger.clone();
        case.write(cluster.server(0), move |tx| tx.put(&target, store("t", n))).await;
    }
    within("the hook's writes", async {
        while cluster.server(1).snapshot().get(&done).unwrap().is_none_or(|counter| counter.n < 20) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(cluster.server(1).metrics().local_hook_errors("n11"), 0);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// Three pegs of one tower, each a list of discs, as text: `321||`.
fn next_move(pegs: &str, count: usize) -> Option<(String, usize)> {
    // The classic: on odd moves the smallest disc goes round, on even ones the only other legal move is made.
    let mut pegs: Vec<Vec<u8>> = pegs.split('|').map(|peg| peg.bytes().collect()).collect();
    let discs: usize = pegs.iter().map(Vec::len).sum();
    if pegs[2].len() == discs {
        return None;
    }
    let smallest = pegs.iter().position(|peg| peg.last() == Some(&b'1'))?;
    if count.is_multiple_of(2) {
        let step = if discs.is_multiple_of(2) { 1 } else { 2 };
        let disc = pegs[smallest].pop()?;
        pegs[(smallest + step) % 3].push(disc);
    } else {
        let others: Vec<usize> = (0..3).filter(|peg| *peg != smallest).collect();
        let top = |peg: usize| pegs[peg].last().copied().unwrap_or(u8::MAX);
        let (from, to) = if top(others[0]) < top(others[1]) { (others[0], others[1]) } else { (others[1], others[0]) };
        let disc = pegs[from].pop()?;
        assert!(pegs[to].last().is_none_or(|below| *below > disc), "an illegal move");
        pegs[to].push(disc);
    }
    let text: Vec<String> = pegs.into_iter().map(|peg| String::from_utf8_lossy(&peg).into_owned()).collect();
    Some((text.join("|"), count + 1))
}

/// N12: hooks alone solve three towers of Hanoi of six discs, each move a transaction.
pub async fn n12_hanoi_by_hooks(case: Case) {
    let cluster = case.cluster(3).await;
    let towers: Vec<Ref<Store>> = (0..3).map(|n| Ref::root(case.id(&format!("tower{n}"))).unwrap()).collect();
    let mut handles = Vec::new();
    for (index, tower) in towers.iter().enumerate() {
        let own = tower.clone();
        let hook = move |call: LocalCall| {
            let own = own.clone();
            async move {
                if call.change.path != *own.path() {
                    return Ok(());
                }
                let Some(seen) = call.change.after::<Store>()? else { return Ok(()) };
                let moved = call.state.write(move |tx: &mut Transaction| {
                    let now = tx.require(&own)?;
                    // Somebody may have moved on already; then that move calls again.
                    if now.limit != seen.limit {
                        return Ok(());
                    }
                    match next_move(&now.owner, usize::try_from(now.limit).unwrap_or(0)) {
                        Some((pegs, count)) => tx.put(&own, store(&pegs, i64::try_from(count).unwrap_or(0))),
                        None => Ok(()),
                    }
                });
                moved.await?;
                Ok(())
            }
        };
        handles.push(cluster.server(index).local_hook("hanoi", Scope::collection::<Store>(), hook).await.unwrap());
    }
    for tower in &towers {
        let target = tower.clone();
        case.write(cluster.server(0), move |tx| {
            if tx.contains(target.path()) { Ok(()) } else { tx.put(&target, store("654321||", 0)) }
        })
        .await;
    }
    within("the towers", async {
        loop {
            let snapshot = cluster.server(0).snapshot();
            let solved =
                |tower: &Ref<Store>| snapshot.get(tower).unwrap().is_some_and(|store| store.owner == "||654321");
            if towers.iter().all(solved) {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    for tower in &towers {
        assert_eq!(cluster.server(0).snapshot().require(tower).unwrap().limit, 63, "the shortest solution");
    }
    for index in 0..3 {
        assert_eq!(cluster.server(index).metrics().local_hook_errors("hanoi"), 0);
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
    super::drivers::compact_whole_log(&cluster, 0).await;
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
