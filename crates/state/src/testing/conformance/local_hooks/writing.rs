//! Hooks that write and wait themselves.

use super::super::entities::*;
use super::super::{Case, LIMIT, agree, within};
use crate::entity::Ref;
use crate::local_hook::{LocalCall, Scope};
use crate::transaction::Transaction;

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
