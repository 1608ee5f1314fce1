//! The link of a region in the control plane's own process.

use std::sync::Arc;
use std::time::Duration;

use tidegate_api::agent::HostClaim;
use tidegate_rollout::entities::{
    AgentHeartbeat, Assignment, Availability, EmbeddedCounts, Region, RegionHosting, Report,
};
use tidegate_rollout::region::hosting::Holder;
use tidegate_rollout::region::link::{AssignmentWatch, LinkError, LinkItem};
use tidegate_rollout::region::{RegionLink, StateLink};
use tidegate_state::driver::memory::MemoryStore;
use tidegate_state::{ManualClock, Ref, State, StateOptions, Timestamp, TransactionError};
use uuid::Uuid;

async fn state() -> State {
    State::open(MemoryStore::new().driver(), StateOptions::new("server")).await.unwrap()
}

fn region() -> Region {
    Region {
        nodes: 2,
        enough: 2,
        shares_source: false,
        agent: false,
        availability: Availability::Available,
        added_at: Timestamp(1),
    }
}

fn assignment(generation: u64) -> Assignment {
    Assignment { generation, incarnation: Uuid::nil(), hold: [].into(), serve: None, enough: 2 }
}

fn report() -> Report {
    Report {
        generation: 1,
        incarnation: Uuid::nil(),
        versions: [].into(),
        serving: None,
        serving_since: None,
        lagging_nodes: vec![],
        embedded: EmbeddedCounts::default(),
        pin: None,
        past_pins: Vec::new(),
        at: Timestamp(5),
    }
}

async fn write(
    state: &State,
    change: impl Fn(&mut tidegate_state::Transaction) -> Result<(), TransactionError> + Send + 'static,
) {
    state.write(change).await.unwrap();
}

fn a() -> Ref<Region> {
    Ref::root("a").unwrap()
}

fn claim(agent: u128, token: Option<u64>) -> HostClaim {
    HostClaim {
        agent: Uuid::from_u128(agent).to_string(),
        name: format!("agent-{agent}"),
        address: None,
        lease_ms: 30_000,
        token,
        starting: token.is_none(),
        nodes: vec![],
    }
}

async fn hosts(link: &StateLink, agent: u128) -> Holder {
    let grant = link.host(&claim(agent, None)).await.unwrap();
    Holder { agent: Uuid::from_u128(agent), token: grant.token }
}

/// The report without the time, which is the control plane's.
fn timeless(report: &Report) -> Report {
    Report { at: Timestamp(5), ..report.clone() }
}

async fn add_region(state: &State) {
    write(state, |tx| tx.put(&a(), region())).await;
}

async fn next(watch: &mut Box<dyn AssignmentWatch>) -> LinkItem {
    tokio::time::timeout(crate::support::PATIENCE, watch.next()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_watch_gives_all_there_is_and_then_each_change_of_its_own_subtree() {
    let state = state().await;
    add_region(&state).await;
    write(&state, |tx| tx.put(&Ref::<Region>::root("b")?, region())).await;
    write(&state, |tx| tx.put(&a().child("s")?, assignment(1))).await;
    let link = StateLink::new(state.clone(), "a").unwrap();
    let holder = hosts(&link, 1).await;
    link.report(holder, "s", Some(report())).await.unwrap();
    let mut watch = link.watch(None).await.unwrap();
    let LinkItem::Snapshot { assignments, reports, position, .. } = next(&mut watch).await else { panic!() };
    assert_eq!(assignments.into_iter().collect::<Vec<_>>(), [("s".to_owned(), assignment(1))]);
    assert_eq!(timeless(&reports["s"]), report());
    // What concerns another region, and what the region says itself, is not heard.
    write(&state, |tx| tx.put(&Ref::<Region>::root("b")?.child("s")?, assignment(7))).await;
    link.host(&claim(1, Some(holder.token))).await.unwrap();
    write(&state, |tx| tx.put(&a().child("t")?, assignment(2))).await;
    write(&state, |tx| tx.delete(&a().child::<Assignment>("s")?).map(|_| ())).await;
    let LinkItem::Change { store, assignment: changed, .. } = next(&mut watch).await else { panic!() };
    assert_eq!((store.as_str(), changed), ("t", Some(assignment(2))));
    let LinkItem::Change { store, assignment: changed, position: last } = next(&mut watch).await else { panic!() };
    assert_eq!((store.as_str(), changed), ("s", None));
    assert!(position.is_before(last));
    // Resumed where it was, nothing is lost and nothing comes twice.
    write(&state, |tx| tx.put(&a().child("u")?, assignment(3))).await;
    let mut resumed = link.watch(Some(last)).await.unwrap();
    let LinkItem::Change { store, .. } = next(&mut resumed).await else { panic!() };
    assert_eq!(store, "u");
}

#[tokio::test]
async fn r16_a_region_that_is_not_there_is_told_so_and_nothing_is_taken_for_a_word_to_let_go() {
    let state = state().await;
    let link = StateLink::new(state.clone(), "a").unwrap();
    let mut watch = link.watch(None).await.unwrap();
    assert!(matches!(next(&mut watch).await, LinkItem::Removed { .. }));
    let holder = Holder { agent: Uuid::from_u128(1), token: 1 };
    assert!(matches!(link.report(holder, "s", Some(report())).await, Err(LinkError::Refused { .. })));
    assert!(matches!(link.host(&claim(1, None)).await, Err(LinkError::Refused { .. })));
    add_region(&state).await;
    let LinkItem::Snapshot { assignments, .. } = next(&mut watch).await else { panic!() };
    assert!(assignments.is_empty());
    write(&state, |tx| tx.put(&a().child("s")?, assignment(1))).await;
    assert!(matches!(next(&mut watch).await, LinkItem::Change { .. }));
    write(&state, |tx| tx.delete(&a()).map(|_| ())).await;
    assert!(matches!(next(&mut watch).await, LinkItem::Removed { .. }));
}

#[tokio::test]
async fn a_report_is_written_as_it_is_and_removed_when_nothing_is_left() {
    let state = state().await;
    add_region(&state).await;
    let link = StateLink::new(state.clone(), "a").unwrap();
    let holder = hosts(&link, 1).await;
    let link: Arc<dyn RegionLink> = Arc::new(link);
    link.report(holder, "s", Some(report())).await.unwrap();
    let entity: Ref<Report> = a().child("s").unwrap();
    assert_eq!(state.snapshot().get(&entity).unwrap().map(timeless), Some(report()));
    link.report(holder, "s", None).await.unwrap();
    link.report(holder, "s", None).await.unwrap();
    assert_eq!(state.snapshot().get(&entity).unwrap(), None);
    state.close().await;
    let Err(error) = link.report(holder, "s", Some(report())).await else { panic!() };
    assert!(matches!(error, LinkError::Refused { .. } | LinkError::Unavailable { .. }));
}

#[tokio::test]
async fn c19_who_does_not_host_the_region_is_refused_and_told_who_does() {
    let clock = ManualClock::new(Timestamp(1_000_000));
    let store = MemoryStore::with_clock(Arc::new(clock.clone()));
    let state = State::open(store.driver(), StateOptions::new("server")).await.unwrap();
    add_region(&state).await;
    let link = StateLink::new(state.clone(), "a").unwrap();
    let first = hosts(&link, 1).await;
    let refused = |error: LinkError, by: &str| match error {
        LinkError::Replaced { by: found, .. } => assert!(found.contains(by), "{found}"),
        other => panic!("{other:?}"),
    };
    refused(link.host(&claim(2, None)).await.unwrap_err(), "agent-1");
    // The first is cut off past its lease, and the second takes over.
    clock.advance(Duration::from_secs(31));
    let second = hosts(&link, 2).await;
    assert!(second.token > first.token);
    refused(link.report(first, "s", Some(report())).await.unwrap_err(), "agent-2");
    refused(link.host(&claim(1, Some(first.token))).await.unwrap_err(), "agent-2");
    link.report(second, "s", Some(report())).await.unwrap();
    // What the first lets go of is not its any more.
    link.release(first).await.unwrap();
    let hosting: Ref<RegionHosting> = a().child(RegionHosting::ID).unwrap();
    let heartbeat: Ref<AgentHeartbeat> = a().child(AgentHeartbeat::ID).unwrap();
    assert!(!state.snapshot().require(&hosting).unwrap().has_lapsed(clock_now(&clock)));
    assert_eq!(state.snapshot().require(&heartbeat).unwrap().at, clock_now(&clock));
    link.release(second).await.unwrap();
    let third = hosts(&link, 3).await;
    assert!(third.token > second.token);
}

fn clock_now(clock: &ManualClock) -> Timestamp {
    tidegate_state::Clock::now(clock)
}

#[tokio::test]
async fn c19_a_server_that_waits_for_a_region_sees_in_its_own_snapshot_when_it_is_free() {
    let clock = ManualClock::new(Timestamp(1_000_000));
    let store = MemoryStore::with_clock(Arc::new(clock.clone()));
    let state = State::open(store.driver(), StateOptions::new("first")).await.unwrap();
    let other = State::open(store.driver(), StateOptions::new("second")).await.unwrap();
    add_region(&state).await;
    other.flush().await.unwrap();
    let link = StateLink::new(state.clone(), "a").unwrap();
    let waiting = StateLink::new(other.clone(), "a").unwrap();
    let freed = |link: &StateLink| {
        let link = link.clone();
        tokio::spawn(async move { link.freed().await })
    };
    async fn returns(freed: tokio::task::JoinHandle<()>) {
        tokio::time::timeout(Duration::from_secs(60), freed).await.expect("it returns").unwrap();
    }
    // Nobody hosts it.
    returns(freed(&waiting)).await;
    // Given a host, when it renews its lease, then it is not free.
    let first = hosts(&link, 1).await;
    other.flush().await.unwrap();
    let wait = freed(&waiting);
    clock.advance(Duration::from_secs(10));
    link.host(&claim(1, Some(first.token))).await.unwrap();
    other.flush().await.unwrap();
    clock.advance(Duration::from_secs(25));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!wait.is_finished(), "its host has renewed the lease");
    // When its host lets go of it, then it is.
    link.release(first).await.unwrap();
    returns(wait).await;
    // Given another host, when that one falls silent, then it is as soon as the lease has run out.
    hosts(&waiting, 2).await;
    state.flush().await.unwrap();
    let wait = freed(&link);
    clock.advance(Duration::from_secs(31));
    returns(wait).await;
    // A region that is not there is nobody's to take.
    let none = StateLink::new(state.clone(), "none").unwrap();
    let wait = freed(&none);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!wait.is_finished());
    wait.abort();
}
