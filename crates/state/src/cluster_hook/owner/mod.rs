//! One task per server that owns the slots which the server leases: it takes them, feeds their queues from the tail,
//! starts runs within the server's room, has their ends stored, and gives slots up. All I/O is done by tasks of its own,
//! whose answers come back as [`Event`]s, so that nothing that waits holds up anything else.

mod ends;
mod events;
mod giving_up;
mod layouts;
mod lease;
mod load;
pub(crate) mod load_entries;
mod moving;
mod requests;
mod settle;
mod slot;
mod starts;

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

pub(crate) use self::events::{CommitEnd, Declared, Event, Order};
use self::lease::Membership;
use self::load::{Load, Reread};
use self::settle::Settlements;
use self::slot::{Intake, Reason, Retiring, Slot, SlotState};
use super::key_queue::SlotQueue;
use super::lease_end::LeaseEnd;
use super::matcher::{Definitions, Matcher};
use super::runner::Runner;
use crate::change::{Applied, AppliedAction};
use crate::core::Core;
use crate::driver::{HookNumber, ServerId, ServerRow, SlotId, SlotRow, SlotToken};
use crate::feed::FeedItem;
use crate::revision::{Epoch, Revision, Timestamp};
use crate::snapshot::Snapshot;
use crate::state::WeakState;

/// How many transactions are taken in before runs are started.
const INTAKE_AT_ONCE: usize = 512;
/// How many events are handled before runs are started.
const EVENTS_AT_ONCE: usize = 1_024;
/// So many things that are done with are dropped by another task.
const LET_GO_FROM: usize = 32;
/// How often what depends on no event is looked at.
const TICK: Duration = Duration::from_millis(50);

/// A hook that this server runs.
struct Hook {
    declared: Declared,
    /// Its slots here, in the order of their turns.
    slots: Vec<SlotId>,
    turn: usize,
    running: usize,
    starts: u64,
    /// How many runs share a task.
    batch: usize,
    permits: usize,
    /// The last key in line when room ran out, and after how many starts its turn comes.
    probe: Option<(Timestamp, u64)>,
    overloaded_at: Option<Timestamp>,
    /// The row that was sent last says that keys wait for room.
    said_to_wait: bool,
    /// When it last gave a slot away.
    gave_slot_at: Option<Timestamp>,
    /// When it last gave a permit away.
    gave_permit_at: Option<Timestamp>,
    withdrawn: bool,
    catching_up: bool,
}

/// The owner's task.
pub(crate) struct Owner {
    core: Arc<Core>,
    state: WeakState,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    intake: mpsc::Receiver<FeedItem>,
    /// Tasks that do I/O or run hooks.
    tasks: JoinSet<()>,
    runner: Runner,
    matcher: Arc<Matcher>,
    /// Every transaction up to here was taken in.
    position: Revision,
    /// The epoch that `position` counts in.
    epoch: Epoch,
    installation: uuid::Uuid,
    hooks: BTreeMap<HookNumber, Hook>,
    slots: HashMap<SlotId, Slot, FixedState>,
    membership: Option<Membership>,
    joining: bool,
    /// How often joining has failed in a row.
    joins_failed: u32,
    settlements: Settlements,
    loads: HashMap<u64, Load>,
    next_load: u64,
    rereads: HashMap<HookNumber, Reread>,
    /// The highest token that this server has taken up in its current life.
    adopted: Option<(ServerId, SlotToken)>,
    view: Option<View>,
    viewing: bool,
    taking: bool,
    next_view: Instant,
    drain: Option<Drain>,
    clock_wait: Option<(Timestamp, Pin<Box<dyn Future<Output = ()> + Send>>)>,
    /// From when on this server, which has joined, runs what several servers have died with.
    suspects_from: Option<Timestamp>,
    ended: bool,
}

/// What the cluster looked like when last looked at.
struct View {
    servers: Vec<ServerRow>,
    rows: HashMap<SlotId, SlotRow>,
}

struct Drain {
    limit: Instant,
    /// The runs that still went at the limit have been told to end.
    signalled: bool,
    /// Those that did not have been ended.
    interrupted: bool,
    left: bool,
    done: Vec<oneshot::Sender<()>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        // A server that ends at once takes its runs with it.
        for slot in self.slots.values() {
            for control in slot.runs.values() {
                control.abort();
            }
        }
    }
}

impl Owner {
    pub(crate) fn new(
        core: Arc<Core>,
        state: WeakState,
        sender: mpsc::UnboundedSender<Event>,
        events: mpsc::UnboundedReceiver<Event>,
        intake: mpsc::Receiver<FeedItem>,
        begin: &Snapshot,
        installation: uuid::Uuid,
    ) -> Owner {
        let runner = Runner {
            events: sender.clone(),
            points: core.points.clone(),
            has_points: core.points.are_some(),
            recorder: core.options.recorder.clone(),
            lease: Arc::new(LeaseEnd::new(core.clock.clone())),
            seconds: core.metrics.hooks.run_seconds.clone(),
            failures: core.metrics.hooks.failures.clone(),
        };
        Owner {
            matcher: Matcher::of(begin.tree()),
            position: begin.revision(),
            epoch: begin.epoch(),
            core,
            state,
            events,
            sender,
            intake,
            tasks: JoinSet::new(),
            runner,
            installation,
            hooks: BTreeMap::new(),
            slots: HashMap::default(),
            membership: None,
            joining: false,
            joins_failed: 0,
            settlements: Settlements::default(),
            loads: HashMap::new(),
            next_load: 0,
            rereads: HashMap::new(),
            adopted: None,
            view: None,
            viewing: false,
            taking: false,
            next_view: Instant::now(),
            drain: None,
            clock_wait: None,
            suspects_from: None,
            ended: false,
        }
    }

    /// Runs until the server is drained, or closed.
    pub(crate) async fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        let mut items = Vec::with_capacity(INTAKE_AT_ONCE);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stop = self.core.stop.clone();
        let mut intake_open = true;
        while !self.ended {
            let clock_wait = async {
                match &mut self.clock_wait {
                    Some((_, wait)) => wait.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            let settlement_due = self.settlements.next_due();
            let settlement_wait = async {
                match settlement_due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                _ = self.events.recv_many(&mut events, EVENTS_AT_ONCE) => {}
                taken = self.intake.recv_many(&mut items, INTAKE_AT_ONCE), if intake_open => {
                    intake_open = taken > 0;
                }
                () = clock_wait => self.clock_wait = None,
                () = settlement_wait => {}
                _ = tick.tick() => self.tick(),
            }
            // Whatever else is there already goes along in the same round.
            while events.len() < EVENTS_AT_ONCE {
                let Ok(event) = self.events.try_recv() else { break };
                events.push(event);
            }
            while items.len() < INTAKE_AT_ONCE {
                let Ok(item) = self.intake.try_recv() else { break };
                items.push(item);
            }
            for event in events.drain(..) {
                self.handle(event);
            }
            for item in items.drain(..) {
                self.take_in(item);
            }
            self.carry_on();
            // However much there always is to do, this task does not keep the others of its thread from theirs.
            tokio::task::coop::consume_budget().await;
            while self.tasks.try_join_next().is_some() {}
        }
        if let Some(drain) = &mut self.drain {
            for done in drain.done.drain(..) {
                let _ = done.send(());
            }
        }
    }

    /// What follows from whatever has just happened.
    fn carry_on(&mut self) {
        let now = self.core.clock.now();
        self.check_lease(now);
        if self.membership.is_some() {
            // The wait for it may just be over: unless it is sent now, that wait would be over again at once.
            self.heartbeat_if_due(now);
        }
        self.activate_loaded(now);
        self.wake(now);
        self.start_runs(now);
        self.flush_settlements();
        self.give_up_slots();
        self.proceed_with_drain();
        self.plan_waits(now);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Order(order) => self.obey(order),
            Event::Ended(ended) => self.runs_ended(ended),
            Event::Polled { hook, slowest } => self.polled(hook, slowest),
            Event::Committed { slot, token, key, run, retry_at, end } => {
                self.committed(slot, token, key, run, retry_at, end);
            }
            Event::Settled { tags, results } => self.settled(tags, results.as_deref()),
            Event::Heartbeat { server, sent, until, draining, result } => {
                self.heartbeat_answered(server, sent, until, draining, result);
            }
            Event::Joined { server, sent, until, result } => self.joined(server, sent, until, result),
            Event::Lapsed { server } => {
                if self.membership.as_ref().is_some_and(|membership| membership.id == server) {
                    self.lapse("its lease has ended");
                }
            }
            Event::View { server, servers, slots, taken } => self.viewed(server, servers, slots, taken),
            Event::ViewFailed { taken } => {
                self.viewing = false;
                if taken {
                    self.taking = false;
                }
            }
            Event::Page { load, exceptions, pending } => self.page(load, exceptions, pending),
            Event::LoadFailed { load } => self.load_failed(load),
            Event::RereadPage { hook, pending } => self.reread_page(hook, pending),
            Event::RereadFailed { hook } => {
                self.end_reread(hook, None);
            }
            Event::Released { fences, result } => self.released(fences, result),
            Event::Left => self.ended = true,
            Event::CaughtUp { hook } => {
                if let Some(hook) = self.hooks.get_mut(&hook) {
                    hook.catching_up = false;
                }
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Declare { number, hook, done } => {
                self.core.options.recorder.declared(&self.core.server, number, hook.version, hook.room);
                match self.hooks.get_mut(&number) {
                    // Withdrawn a moment ago, and still giving its slots back.
                    Some(there) => {
                        there.declared = hook;
                        there.withdrawn = false;
                    }
                    None => {
                        // Permits that came when it had been withdrawn are still here: each is taken off when it goes.
                        let is_permit =
                            |slot: &&Slot| slot.fence.slot.hook == number && matches!(slot.state, SlotState::Permit);
                        let permits = self.slots.values().filter(is_permit).count();
                        self.hooks.insert(number, Hook { permits, ..Hook::new(hook) });
                    }
                }
                self.declare_now();
                self.look_soon();
                let _ = done.send(());
            }
            Order::Withdraw { number } => {
                if let Some(hook) = self.hooks.get_mut(&number) {
                    hook.withdrawn = true;
                    self.core.options.recorder.withdrawn(&self.core.server, number);
                    for slot in hook.slots.clone() {
                        self.stop_slot(slot, Reason::Must);
                    }
                    self.declare_now();
                    self.forget_withdrawn();
                }
            }
            Order::Drain { limit, done } => {
                if let Some(drain) = &mut self.drain {
                    drain.done.push(done);
                    return;
                }
                let limit = Instant::now() + limit;
                self.drain = Some(Drain { limit, signalled: false, interrupted: false, left: false, done: vec![done] });
                let slots: Vec<SlotId> = self.slots.keys().copied().collect();
                for slot in slots {
                    self.stop_slot(slot, Reason::Must);
                }
                self.declare_now();
            }
            Order::Running { done } => {
                let mut requests = Vec::new();
                for queue in self.slots.values().filter_map(Slot::queue) {
                    requests.extend(queue.running_requests());
                }
                let _ = done.send(requests);
            }
        }
    }

    /// Everything that no event brings about.
    fn tick(&mut self) {
        let now = self.core.clock.now();
        self.heartbeat_if_due(now);
        self.look_if_due();
        self.raise_watermarks();
        self.park_and_reread();
        self.catch_up();
        self.report_metrics();
    }

    fn definitions(&self, hook: HookNumber) -> Option<Arc<Definitions>> {
        self.matcher.hook(hook).cloned()
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&mut self, task: F) {
        self.tasks.spawn(task);
    }

    /// Drops what is done with, by another task if it is much: the owner is one task for all slots of a server, and to free what
    /// requests have held took an eighth of its time. Nothing that keeps the state open: who closes it waits for no such task.
    fn let_go<T: Send + 'static>(&mut self, done_with: Vec<T>) {
        if done_with.len() >= LET_GO_FROM {
            self.spawn(async move { drop(done_with) });
        }
    }

    /// Sees to it that the owner wakes by the driver's clock when something is due.
    fn plan_waits(&mut self, now: Timestamp) {
        let timers = self.slots.values().filter_map(|slot| match &slot.state {
            SlotState::Active(queue) if slot.stopping.is_none() => queue.next_timer(),
            SlotState::Active(_)
            | SlotState::Skipped(_)
            | SlotState::Loading { .. }
            | SlotState::Releasing
            | SlotState::Permit => None,
        });
        let lease = self.membership.as_ref().map(|membership| membership.next_by_clock(now));
        let suspects = self.suspects_from.filter(|from| *from > now);
        let Some(at) = timers.chain(lease).chain(suspects).min() else {
            self.clock_wait = None;
            return;
        };
        if self.clock_wait.as_ref().is_none_or(|(planned, _)| *planned != at) {
            self.clock_wait = Some((at, self.core.clock.sleep_until(at)));
        }
    }

    fn wake(&mut self, now: Timestamp) {
        for slot in self.slots.values_mut() {
            if let SlotState::Active(queue) = &mut slot.state
                && queue.next_timer().is_some_and(|at| at <= now)
            {
                queue.wake(now);
            }
        }
    }

    fn report_metrics(&self) {
        let metrics = &self.core.metrics.hooks;
        for (number, hook) in &self.hooks {
            let label = super::metrics::label(&hook.declared.name);
            let mut queued = 0;
            let mut lowest = self.position;
            for slot in self.slots.values().filter(|slot| slot.fence.slot.hook == *number) {
                if let SlotState::Active(queue) = &slot.state {
                    queued += queue.len();
                    lowest = lowest.min(queue.watermark());
                }
            }
            let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
            metrics.running.get_or_create(&label).set(number(hook.running));
            metrics.queued.get_or_create(&label).set(number(queued));
            metrics.slots.get_or_create(&label).set(number(hook.slots.len()));
            let lag = i64::try_from(self.position.0.saturating_sub(lowest.0)).unwrap_or(i64::MAX);
            metrics.lag.get_or_create(&label).set(lag);
        }
    }
}

impl Hook {
    fn new(declared: Declared) -> Hook {
        Hook {
            declared,
            slots: Vec::new(),
            turn: 0,
            running: 0,
            starts: 0,
            batch: 1,
            permits: 0,
            probe: None,
            overloaded_at: None,
            said_to_wait: false,
            gave_slot_at: None,
            gave_permit_at: None,
            withdrawn: false,
            catching_up: false,
        }
    }
}

/// The applied transactions as they come, handed on to the owner so that it can take many at once.
pub(crate) async fn forward(mut feed: crate::feed::Feed, intake: mpsc::Sender<FeedItem>) {
    while let Some(item) = feed.next().await {
        if intake.send(item).await.is_err() {
            return;
        }
    }
}

fn of_row(applied: &Applied) -> impl Iterator<Item = &AppliedAction> {
    applied.actions.iter()
}

#[cfg(test)]
mod tests;
