//! Renewals, and looks at the cluster, of servers that were in step once.

use super::super::tests::Bench;
use super::*;

const SERVERS: usize = 20;

fn id(server: usize) -> ServerId {
    ServerId(uuid::Uuid::from_u128(server as u128 + 1))
}

/// Owners of twenty servers that have joined at the same moment.
async fn joined_in_step(sent: Instant) -> Vec<Bench> {
    let mut benches = Vec::new();
    for server in 0..SERVERS {
        let mut bench = Bench::new().await;
        let until = bench.owner.core.clock.now().after(bench.owner.core.options.lease);
        bench.owner.joined(id(server), sent, until, Ok(()));
        benches.push(bench);
    }
    benches
}

/// How long after the renewal that was sent last each sends its next.
fn pauses(benches: &[Bench], sent: Instant) -> Vec<Duration> {
    benches.iter().map(|bench| bench.owner.membership.as_ref().unwrap().next - sent).collect()
}

/// Whether times lie further apart than a tenth of that from which they are drawn: twenty fail to not once in 10^16 times.
fn are_apart(times: impl IntoIterator<Item = Duration> + Clone, drawn_from: Duration) -> bool {
    let (least, most) = (times.clone().into_iter().min().unwrap(), times.into_iter().max().unwrap());
    most - least > drawn_from / 10
}

#[tokio::test]
async fn k31_servers_that_renew_at_the_same_moment_fall_out_of_step_and_none_is_late() {
    let sent = Instant::now();
    let mut benches = joined_in_step(sent).await;
    let lease = benches[0].owner.core.options.lease;
    let pause = lease / HEARTBEATS;
    let mut rounds = vec![pauses(&benches, sent)];
    while rounds.len() < 20 {
        for (server, bench) in benches.iter_mut().enumerate() {
            let until = bench.owner.core.clock.now().after(lease);
            bench.owner.heartbeat_answered(id(server), sent, until, false, Ok(()));
        }
        rounds.push(pauses(&benches, sent));
    }
    let drawn_from = pause.mul_f64(0.2);
    for round in &rounds {
        assert!(round.iter().all(|next| (pause.mul_f64(0.8)..=pause).contains(next)), "{round:?}");
        assert!(are_apart(round.iter().copied(), drawn_from), "in step: {round:?}");
    }
    for server in 0..SERVERS {
        let own = rounds.iter().map(|round| round[server]);
        assert!(are_apart(own, drawn_from), "server {server} renews in one beat");
    }
}

#[tokio::test]
async fn k31_servers_that_look_at_the_cluster_at_the_same_moment_fall_out_of_step() {
    let mut benches = joined_in_step(Instant::now()).await;
    let poll = benches[0].owner.core.options.poll;
    let drawn_from = poll.mul_f64(0.4);
    // Each look took its moment somewhere between these two.
    let (mut at_most, mut at_least) = (Vec::new(), Vec::new());
    for bench in &mut benches {
        bench.owner.next_view = Instant::now();
        let before = Instant::now();
        bench.owner.look_if_due();
        let after = Instant::now();
        assert!(bench.owner.viewing);
        at_most.push(bench.owner.next_view - before);
        at_least.push(bench.owner.next_view - after);
    }
    assert!(at_most.iter().all(|next| *next >= poll.mul_f64(0.8)), "{at_most:?}");
    assert!(at_least.iter().all(|next| *next <= poll.mul_f64(1.2)), "{at_least:?}");
    let (least, most) = (at_most.iter().min().unwrap(), at_least.iter().max().unwrap());
    assert!(most.saturating_sub(*least) > drawn_from / 10, "in step: {at_least:?} to {at_most:?}");
}
