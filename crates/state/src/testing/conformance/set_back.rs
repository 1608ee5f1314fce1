//! D37: a store that was put back to a lower head behind the servers' backs, its epoch as it was.

use std::time::Duration;

use super::entities::*;
use super::transactions::put_counter;
use super::{Case, agree, within};
use crate::entity::Ref;
use crate::error::WriteError;
use crate::revision::Attributes;
use crate::state::State;
use crate::testing::cluster::Cluster;
use crate::transaction::{Transaction, TransactionError};

async fn until_noticed(state: &State) {
    within("the notice", async {
        while state.writes_stopped().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn assert_refused(state: &State, counter: &Ref<Counter>) {
    let target = counter.clone();
    let refused = state.write(move |tx: &mut Transaction| tx.put(&target, Counter { n: 99 })).await;
    let error: WriteError<TransactionError> = refused.expect_err("nothing is written until it is confirmed");
    assert!(matches!(error, WriteError::SetBack { .. }) && !error.is_retryable(), "{error:?}");
    assert!(error.to_string().contains("operator"), "{error}");
}

/// Confirms on a server, with a counter that goes up with it.
async fn confirm(state: &State, with: &Ref<Counter>) -> bool {
    let target = with.clone();
    let first = move |tx: &mut Transaction| {
        let n = tx.get(&target)?.map_or(0, |counter| counter.n);
        tx.put(&target, Counter { n: n + 1 })
    };
    state.confirm_lower_head(Attributes::new(), first).await.unwrap().is_some()
}

/// Servers that remember in files of a folder how far they have seen the log.
async fn cluster_that_remembers(case: &Case, servers: usize, folder: &tempfile::TempDir) -> Cluster {
    let folder = folder.path().to_owned();
    let builder = case.configured(move |index, mut options| {
        options.seen = (index < servers).then(|| folder.join(format!("seen-{index}.json")));
        options
    });
    case.open(builder.servers(servers)).await
}

/// D37: a store that was put back behind the servers' backs is not written to until an operator confirms it.
pub async fn d37_a_lower_head_stops_writing(case: Case) {
    let cluster = case.cluster(2).await;
    let [counter, first] = ["n", "first"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    put_counter(&case, cluster.server(0), &counter, 1).await;
    let backup = cluster.store().back_up().await.unwrap();
    for n in 2..10 {
        put_counter(&case, cluster.server(0), &counter, n).await;
    }
    for state in cluster.running() {
        state.flush().await.unwrap();
    }
    let epoch = cluster.server(0).snapshot().epoch();
    assert!(!confirm(cluster.server(0), &first).await, "there is nothing to confirm");
    cluster.store().set_back_to(backup).await.unwrap();
    for state in cluster.running() {
        until_noticed(&state).await;
        assert_refused(&state, &counter).await;
        assert_eq!(state.snapshot().require(&counter).unwrap().n, 9, "what it showed is read on");
    }
    // What goes with it is refused: nothing is confirmed, and it can be confirmed again.
    let refused = |_: &mut Transaction| Err(TransactionError::rejected("not like this"));
    let refused = cluster.server(0).confirm_lower_head(Attributes::new(), refused).await.unwrap_err();
    assert!(matches!(refused, WriteError::Rejected(_)), "{refused}");
    assert!(cluster.server(0).writes_stopped().is_some());
    assert_eq!(cluster.stored().await.meta.epoch, epoch);

    // On both at once: one of them begins the epoch, and the other follows.
    let (one, other) = tokio::join!(confirm(cluster.server(0), &first), confirm(cluster.server(1), &first));
    assert!(one || other);
    for state in cluster.running() {
        within("the end of it", state.writes_resumed()).await;
        let snapshot = state.snapshot();
        assert_ne!(snapshot.epoch(), epoch);
        assert_eq!(snapshot.require(&counter).unwrap().n, 1);
        assert_eq!(snapshot.require(&first).unwrap().n, 1, "once, with the epoch and before every other write");
    }
    for state in cluster.running() {
        put_counter(&case, &state, &counter, 5).await;
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D37: servers that were down when the store was put back notice it when they start, and each time until it is confirmed.
pub async fn d37_a_lower_head_is_noticed_after_a_restart(case: Case) {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster_that_remembers(&case, 2, &folder).await;
    let [counter, first] = ["n", "first"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    put_counter(&case, cluster.server(0), &counter, 1).await;
    let backup = cluster.store().back_up().await.unwrap();
    for n in 2..10 {
        put_counter(&case, cluster.server(0), &counter, n).await;
    }
    cluster.server(1).flush().await.unwrap();
    let (epoch, seen) = (cluster.server(0).snapshot().epoch(), cluster.server(0).snapshot().revision());
    for index in 0..2 {
        cluster.close(index).await;
    }
    cluster.store().set_back_to(backup).await.unwrap();
    for _ in 0..2 {
        for index in 0..2 {
            cluster.restart(index).await;
            let state = cluster.server(index);
            assert!(state.writes_stopped().is_some(), "at once, not after a while");
            assert_refused(state, &counter).await;
            assert_eq!(state.snapshot().require(&counter).unwrap().n, 1, "what is there is read");
        }
        for index in 0..2 {
            cluster.close(index).await;
        }
    }
    // Whoever has seen nothing of it goes on, and past it: to the others that is no proof of anything.
    let unaware = cluster.latecomer().await;
    for n in 100.. {
        if put_counter(&case, &unaware, &counter, n).await > seen {
            break;
        }
    }
    unaware.close().await;
    for index in 0..2 {
        cluster.restart(index).await;
        assert_refused(cluster.server(index), &counter).await;
    }
    assert!(confirm(cluster.server(1), &first).await);
    for state in cluster.running() {
        within("the end of it", state.writes_resumed()).await;
        assert_ne!(state.snapshot().epoch(), epoch);
        assert_eq!(state.snapshot().require(&first).unwrap().n, 1);
        put_counter(&case, &state, &counter, 5).await;
    }
    // It is over for good.
    for index in 0..2 {
        cluster.close(index).await;
        cluster.restart(index).await;
        assert_eq!(cluster.server(index).writes_stopped(), None);
        put_counter(&case, cluster.server(index), &counter, 6).await;
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}
