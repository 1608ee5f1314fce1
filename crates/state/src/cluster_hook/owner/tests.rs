//! An owner without the tasks around it: what it is told comes from the test.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::*;
use crate::cluster_hook::key_queue::RetryPolicy;
use crate::cluster_hook::registration::{Delivery, Registration};
use crate::cluster_hook::run::{Outcome, Run};
use crate::driver::ServerLoad;
use crate::driver::memory::MemoryStore;
use crate::entity::{Entity, Ref, Root};
use crate::state::{State, StateOptions};
use crate::transaction::Transaction;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Thing {
    value: u64,
}

impl Entity for Thing {
    const COLLECTION: &'static str = "things";
    type Parent = Root;
    type Id = String;
}

struct Nothing;

#[async_trait]
impl ClusterHook for Nothing {
    async fn run(&self, _run: Run) -> Outcome {
        Outcome::Done
    }
}

/// An owner that leases the one slot of a hook, in which nothing is pending, and has read that.
pub(super) struct Bench {
    pub(super) owner: Owner,
    pub(super) fence: Fence,
    state: State,
    _intake: mpsc::Sender<FeedItem>,
}

impl Bench {
    pub(super) async fn new() -> Bench {
        let state = State::open(MemoryStore::new().driver(), StateOptions::new("server")).await.unwrap();
        let registration = Registration::new("hook", 1).on("/things/{thing}").key("{thing}").slots(1);
        let number = state.register_only(registration).await.unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let (intake_sender, intake) = mpsc::channel(1);
        let begin = state.snapshot();
        let installation = uuid::Uuid::nil();
        let mut owner =
            Owner::new(state.core().clone(), state.downgrade(), sender, events, intake, &begin, installation);
        let id = owner.definitions(number).unwrap().entity.current_layout().slot(number, 0);
        let server = ServerRow {
            id: ServerId(uuid::Uuid::from_u128(1)),
            name: "server".into(),
            lease_until: state.now().after(Duration::from_secs(1_000)),
            draining: false,
            hooks: Vec::new(),
            load: ServerLoad::default(),
            applied: begin.revision(),
        };
        let driver = state.driver();
        driver.join(server.clone()).await.unwrap();
        let fence = driver.take_slots(server.id, &[id]).await.unwrap()[0];
        let retry = RetryPolicy { attempts: None, first: Duration::from_secs(1), max: Duration::from_secs(1) };
        let slot = Slot {
            fence,
            state: SlotState::Loading {
                queue: Box::new(SlotQueue::loading(Delivery::EveryChange, retry, 100)),
                buffered: Vec::new(),
                crashed: false,
                read: Some(begin.revision()),
            },
            runs: HashMap::default(),
            outstanding: 0,
            commits: 0,
            stopping: None,
            last_raise: false,
            watermark: Revision::ZERO,
            raised: Instant::now(),
            stays_until: None,
            retiring: Retiring::No,
        };
        owner.slots.insert(id, slot);
        let declared = Declared { name: "hook".into(), version: 1, room: 1, handler: Arc::new(Nothing) };
        owner.hooks.insert(number, Hook { slots: vec![id], ..Hook::new(declared) });
        Bench { owner, fence, state, _intake: intake_sender }
    }

    async fn put(&self, value: u64) {
        let thing: Ref<Thing> = Ref::root("thing").unwrap();
        self.state.write(move |tx: &mut Transaction| tx.put(&thing, Thing { value })).await.unwrap();
    }

    /// Goes on until the owner has given its slot up, and gives what is stored of it.
    pub(super) async fn until_given_up(&mut self) -> SlotRow {
        loop {
            self.owner.carry_on();
            let idle = self.owner.tasks.join_next().await.is_none();
            while let Ok(event) = self.owner.events.try_recv() {
                self.owner.handle(event);
            }
            if self.owner.slots.is_empty() && self.owner.tasks.is_empty() {
                break;
            }
            assert!(!idle || !self.owner.tasks.is_empty(), "it keeps the slot, and does nothing about it");
        }
        let (_, slots) = self.state.driver().cluster().await.unwrap();
        slots.into_iter().find(|row| row.slot == self.fence.slot).unwrap()
    }
}

#[tokio::test]
async fn k47_an_owner_that_skipped_rows_raises_no_watermark_over_them() {
    for (active, retiring) in [(false, Retiring::No), (true, Retiring::No), (true, Retiring::Due)] {
        let mut bench = Bench::new().await;
        let seen = bench.owner.position;
        if active {
            let now = bench.state.now();
            bench.owner.activate_loaded(now);
        }
        bench.owner.slots.get_mut(&bench.fence.slot).unwrap().retiring = retiring;
        bench.put(1).await;
        bench.put(2).await;
        // The feed has lost its place: what came in between is not to be had from it.
        bench.owner.take_in(FeedItem::Snapshot(bench.state.snapshot()));
        let row = bench.until_given_up().await;
        assert_eq!(row.owner, None, "active: {active}");
        assert!(row.watermark <= seen, "active: {active}, {retiring:?}: {row:?}");
    }
}

#[tokio::test]
async fn k47_an_owner_that_saw_every_row_raises_its_watermark_before_it_goes() {
    let mut bench = Bench::new().await;
    let seen = bench.owner.position;
    bench.owner.stop_slot(bench.fence.slot, Reason::Must);
    let row = bench.until_given_up().await;
    assert_eq!((row.owner, row.watermark), (None, seen));
}
