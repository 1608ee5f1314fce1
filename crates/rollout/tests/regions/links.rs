//! The link of a region in the control plane's own process.

use std::sync::Arc;

use tidegate_rollout::entities::{AgentHeartbeat, Assignment, Availability, EmbeddedCounts, Region, Report};
use tidegate_rollout::region::link::{AssignmentWatch, LinkError, LinkItem};
use tidegate_rollout::region::{RegionLink, StateLink};
use tidegate_state::driver::memory::MemoryStore;
use tidegate_state::{Ref, State, StateOptions, Timestamp, TransactionError};
use uuid::Uuid;

async fn state() -> State {
    State::open(MemoryStore::new().driver(), StateOptions::new("server")).await.unwrap()
}

fn region() -> Region {
    Region { nodes: 2, enough: 2, shares_source: false, availability: Availability::Available, added_at: Timestamp(1) }
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
    link.report("s", Some(report())).await.unwrap();
    let mut watch = link.watch(None).await.unwrap();
    let LinkItem::Snapshot { assignments, reports, position, .. } = next(&mut watch).await else { panic!() };
    assert_eq!(assignments.into_iter().collect::<Vec<_>>(), [("s".to_owned(), assignment(1))]);
    assert_eq!(reports.into_iter().collect::<Vec<_>>(), [("s".to_owned(), report())]);
    // What concerns another region, and what the region says itself, is not heard.
    write(&state, |tx| tx.put(&Ref::<Region>::root("b")?.child("s")?, assignment(7))).await;
    link.heartbeat(AgentHeartbeat { at: Timestamp(9), agent: "agent".to_owned() }).await.unwrap();
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
    assert!(matches!(link.report("s", Some(report())).await, Err(LinkError::Refused { .. })));
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
    let link: Arc<dyn RegionLink> = Arc::new(StateLink::new(state.clone(), "a").unwrap());
    link.report("s", Some(report())).await.unwrap();
    let entity: Ref<Report> = a().child("s").unwrap();
    assert_eq!(state.snapshot().get(&entity).unwrap(), Some(&report()));
    link.report("s", None).await.unwrap();
    link.report("s", None).await.unwrap();
    assert_eq!(state.snapshot().get(&entity).unwrap(), None);
    state.close().await;
    let Err(error) = link.report("s", Some(report())).await else { panic!() };
    assert!(matches!(error, LinkError::Refused { .. } | LinkError::Unavailable { .. }));
}
