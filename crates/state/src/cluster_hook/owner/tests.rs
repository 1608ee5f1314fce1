//! An owner without the tasks around it: what it is told comes from the test.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::*;
use crate::clock::{Clock as _, ManualClock};
use crate::cluster_hook::balance;
use crate::cluster_hook::cause::Cause;
use crate::cluster_hook::key_queue::RetryPolicy;
use crate::cluster_hook::registration::{Delivery, Registration};
use crate::cluster_hook::run::{ClusterHook, Outcome, Run};
use crate::driver::memory::MemoryStore;
use crate::driver::{Exception, ExceptionState, Fence, HookLoad, RequestId, RequestedChange, ServerHook, ServerLoad};
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

fn leased(fence: Fence, state: SlotState) -> Slot {
    Slot {
        fence,
        state,
        runs: HashMap::default(),
        outstanding: 0,
        commits: 0,
        stopping: None,
        last_raise: false,
        watermark: Revision::ZERO,
        raised: Instant::now(),
        stays_until: None,
        retiring: Retiring::No,
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
        Bench::with(1, MemoryStore::new()).await
    }

    /// So many slots, all of them this owner's.
    async fn with(slots: u32, store: MemoryStore) -> Bench {
        let state = State::open(store.driver(), StateOptions::new("server")).await.unwrap();
        let registration = Registration::new("hook", 1).on("/things/{thing}").key("{thing}").slots(slots);
        let number = state.register_only(registration).await.unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let (intake_sender, intake) = mpsc::channel(1);
        let begin = state.snapshot();
        let installation = uuid::Uuid::nil();
        let mut owner =
            Owner::new(state.core().clone(), state.downgrade(), sender, events, intake, &begin, installation);
        let layout = owner.definitions(number).unwrap().entity.current_layout();
        let ids: Vec<SlotId> = (0..slots).map(|slot| layout.slot(number, slot)).collect();
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
        let fences = driver.take_slots(server.id, &ids).await.unwrap();
        let retry = RetryPolicy { attempts: None, first: Duration::from_secs(1), max: Duration::from_secs(1) };
        for fence in &fences {
            let loading = SlotState::Loading {
                queue: Box::new(SlotQueue::loading(Delivery::EveryChange, retry, 100)),
                buffered: Vec::new(),
                crashed: false,
                read: Some(begin.revision()),
            };
            owner.slots.insert(fence.slot, leased(*fence, loading));
        }
        let declared = Declared { name: "hook".into(), version: 1, room: 1, handler: Arc::new(Nothing) };
        owner.hooks.insert(number, Hook { slots: ids, ..Hook::new(declared) });
        Bench { owner, fence: fences[0], state, _intake: intake_sender }
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

fn cause() -> Arc<Cause> {
    Cause::excepted(RequestedChange {
        path: Ref::<Thing>::root("thing").unwrap().path().clone(),
        before: None,
        after: None,
        at: Timestamp(0),
        attributes: Arc::default(),
    })
}

#[tokio::test]
async fn k49_an_action_on_what_was_handed_to_the_next_layout_is_left_to_its_next_owner() {
    for (retiring, heeded) in [(Retiring::No, true), (Retiring::Handed, false), (Retiring::Left, false)] {
        let mut bench = Bench::new().await;
        bench.owner.carry_on();
        let hook = bench.fence.slot.hook;
        let id = |revision| RequestId { revision: Revision(revision), sequence: 0, hook };
        let slot = bench.owner.slots.get_mut(&bench.fence.slot).unwrap();
        slot.queue_mut().unwrap().request(id(5), "thing", cause(), &mut Vec::new());
        slot.retiring = retiring;
        bench.owner.take_in_action(id(6), id(5), crate::driver::RequestAction::Discard);
        let slot = &bench.owner.slots[&bench.fence.slot];
        assert_eq!(slot.outstanding > 0, heeded, "{retiring:?}");
    }
}

/// Of two requests of a key one had been handed to the next layout when the lease of the old slot ended.
#[tokio::test]
async fn k49_the_next_owner_of_a_slot_that_is_half_handed_over_runs_nothing_of_what_is_left() {
    for half_handed_over in [false, true] {
        let mut bench = Bench::new().await;
        let (old, hook) = (bench.fence.slot, bench.fence.slot.hook);
        bench.put(1).await;
        let first = bench.state.snapshot().revision();
        bench.put(2).await;
        let registration = Registration::new("hook", 2).on("/things/{thing}").key("{thing}").slots(2);
        bench.state.register_only(registration).await.unwrap();
        let snapshot = bench.state.snapshot();
        bench.owner.matcher = Matcher::of(snapshot.tree());
        bench.owner.position = snapshot.revision();
        let layouts = bench.owner.definitions(hook).unwrap().layouts().to_vec();
        let next = layouts[1].slot_of(hook, "thing");
        let exception = |request: RequestId, slot| Exception {
            request,
            slot,
            state: ExceptionState::Parked,
            attempts: 0,
            deaths: 0,
            error: None,
            change: cause().requested_change(),
        };
        let driver = bench.state.driver().clone();
        if half_handed_over {
            let exception = exception(RequestId { revision: first, sequence: 0, hook }, next);
            let handed = crate::driver::Settle::Exception { fence: bench.fence, exception: Box::new(exception) };
            driver.settle(vec![handed]).await.unwrap();
        }
        let row = SlotRow { slot: old, owner: None, token: bench.fence.token, watermark: Revision::ZERO };
        if let SlotState::Loading { read, .. } = &mut bench.owner.slots.get_mut(&old).unwrap().state {
            *read = None;
        }
        bench.owner.load(hook, &[row]);
        while bench.owner.slots[&old].queue().is_none() {
            let event = bench.owner.events.recv().await.unwrap();
            bench.owner.handle(event);
            bench.owner.carry_on();
        }
        let queue = bench.owner.slots.get_mut(&old).unwrap().queue_mut().unwrap();
        assert_eq!(queue.len(), 2 - usize::from(half_handed_over));
        assert_eq!(queue.may_have_something_to_start(), !half_handed_over);
        bench.owner.retire_old_layouts();
        assert_eq!(bench.until_given_up().await.watermark, crate::cluster_hook::slots::RETIRED);
        let handed = driver.exceptions(Some(hook)).await.unwrap();
        assert_eq!(handed.len(), 2);
        assert!(handed.iter().all(|exception| exception.slot == next));
    }
}

/// A server whose lease went with a restore joins anew, and reads its slots before its tail has noticed the restore.
#[tokio::test]
async fn d36_a_slot_starts_nothing_that_was_read_in_another_epoch_than_what_its_server_has_applied() {
    for epoch in [None, Some(Epoch(uuid::Uuid::from_u128(1)))] {
        let mut bench = Bench::new().await;
        let slot = bench.fence.slot;
        bench.put(1).await;
        bench.owner.position = bench.state.snapshot().revision();
        bench.owner.epoch = epoch.unwrap_or(bench.owner.epoch);
        if let SlotState::Loading { read, .. } = &mut bench.owner.slots.get_mut(&slot).unwrap().state {
            *read = None;
        }
        let row = SlotRow { slot, owner: None, token: bench.fence.token, watermark: Revision::ZERO };
        bench.owner.load(slot.hook, &[row]);
        while !bench.owner.loads.is_empty() {
            let event = bench.owner.events.recv().await.unwrap();
            bench.owner.handle(event);
        }
        let now = bench.state.now();
        bench.owner.activate_loaded(now);
        let slot = &bench.owner.slots[&slot];
        assert_eq!(slot.queue().map(SlotQueue::len), epoch.is_none().then_some(1));
        assert_eq!(slot.stopping.is_some(), epoch.is_some(), "it is given back, to be read anew");
    }
}

#[tokio::test]
async fn k47_rows_that_the_tail_has_not_brought_are_not_taken_from_the_log_that_is_read_again() {
    for known in [false, true] {
        let mut bench = Bench::new().await;
        bench.owner.carry_on();
        let slot = bench.fence.slot;
        let request = |revision| RequestId { revision, sequence: 0, hook: slot.hook };
        bench.put(1).await;
        let head = bench.state.snapshot().revision();
        assert!(bench.owner.position < head, "nobody feeds this owner");
        let pending = bench.state.driver().pending(slot, Revision::ZERO, 100).await.unwrap();
        // Something is missing, and there is room again: keys that the slot does not know are taken in.
        let queue = bench.owner.slots.get_mut(&slot).unwrap().queue_mut().unwrap();
        queue.set_bound(1);
        for (revision, key) in [(1, "one"), (2, "other")] {
            queue.request(request(Revision(revision)), key, cause(), &mut Vec::new());
        }
        queue.set_bound(10);
        let in_memory = bench.owner.slots[&slot].queue().unwrap().len();
        if known {
            bench.owner.position = head;
        }
        let queue = bench.owner.slots.get_mut(&slot).unwrap().queue_mut().unwrap();
        queue.reread_begins();
        bench.owner.rereads.insert(slot.hook, Reread { slots: vec![bench.fence], until: None });
        bench.owner.reread_page(slot.hook, pending.clone());
        assert_eq!(bench.owner.slots[&slot].queue().unwrap().len(), in_memory + usize::from(known));
    }
}

/// Given a server in all of whose slots a key waits, one that joins gets its share at once, and one more only when it has had
/// time to say that it has no room itself.
#[tokio::test]
async fn g8_who_was_given_slots_is_seen_to_have_room_before_it_gets_one_more() {
    let clock = ManualClock::new(Timestamp(1_000_000));
    let mut bench = Bench::with(4, MemoryStore::with_clock(Arc::new(clock.clone()))).await;
    bench.owner.carry_on();
    let hook = bench.fence.slot.hook;
    let cause = cause();
    for slot in bench.owner.slots.values_mut() {
        let request = RequestId { revision: Revision(5), sequence: 0, hook };
        slot.queue_mut().unwrap().request(request, "thing", cause.clone(), &mut Vec::new());
    }
    let [own, newcomer] = [1, 2].map(|number| ServerId(uuid::Uuid::from_u128(number)));
    let row = |id: ServerId, waiting: Vec<HookLoad>| ServerRow {
        id,
        name: "server".into(),
        lease_until: clock.now().after(Duration::from_secs(100)),
        draining: false,
        hooks: vec![ServerHook { hook, version: 1, room: 1 }],
        load: ServerLoad { waiting },
        applied: Revision(5),
    };
    let since = Timestamp(clock.now().0 - 5_000);
    let servers = vec![row(own, vec![HookLoad { hook, keys: 4, since, running: 1 }]), row(newcomer, Vec::new())];
    let mut look = || {
        let rows = bench.owner.slots.values().map(|slot| {
            let owner = if slot.stopping.is_some() { newcomer } else { own };
            let Fence { slot, token } = slot.fence;
            (slot, SlotRow { slot, owner: Some(owner), token, watermark: Revision::ZERO })
        });
        bench.owner.view = Some(View { servers: servers.clone(), rows: rows.collect() });
        bench.owner.plan(own, false);
        bench.owner.slots.values().filter(|slot| slot.stopping.is_some()).count()
    };
    assert_eq!(look(), 2, "its share");
    assert_eq!(look(), 2, "nothing is known yet of its room");
    clock.advance(balance::RELIEF_PAUSE);
    assert_eq!(look(), 3, "it has room still");
    assert_eq!(look(), 3);
}

/// A hook was withdrawn, and forgotten, while its permit was being leased.
#[tokio::test]
async fn k39_a_permit_that_comes_for_a_hook_that_was_withdrawn_goes_and_counts_if_the_hook_is_back() {
    for is_back in [false, true] {
        let mut bench = Bench::new().await;
        let number = bench.fence.slot.hook;
        let id = crate::cluster_hook::slots::permit(number, 0);
        let server = ServerId(uuid::Uuid::from_u128(1));
        let fence = bench.state.driver().take_slots(server, &[id]).await.unwrap()[0];
        let hook = bench.owner.hooks.remove(&number).unwrap();
        bench.owner.slots.clear();
        bench.owner.slots.insert(id, leased(fence, SlotState::Permit));
        bench.owner.stop_slot(id, Reason::Must);
        if is_back {
            let (done, _declared) = oneshot::channel();
            bench.owner.obey(Order::Declare { number, hook: hook.declared, done });
            assert_eq!(bench.owner.hooks[&number].permits, 1);
        }
        bench.fence = fence;
        assert_eq!(bench.until_given_up().await.owner, None);
        assert!(bench.owner.hooks.get(&number).is_none_or(|hook| hook.permits == 0));
    }
}
