//! Starting runs within the server's room and the cluster's cap, keys taking turns over all slots of a hook.

use std::cell::LazyCell;
use std::sync::Arc;
use std::time::Duration;

use super::{Owner, SlotState};
use crate::cluster_hook::run::{ClusterHook, RunContext, RunControl};
use crate::cluster_hook::runner::{Job, SLOW_POLL};
use crate::driver::HookNumber;
use crate::revision::Timestamp;

/// How many runs share a task at most.
const BATCH_MAX: usize = 64;
/// How long a server has been there before it runs what several servers have died with. One that dies sooner, again and
/// again, dies of something else, which no request is to be blamed for.
pub(super) const SUSPECTS_AFTER: Duration = Duration::from_secs(1);

impl Owner {
    /// Starts what may start.
    pub(super) fn start_runs(&mut self, now: Timestamp) {
        if self.hooks.is_empty() || !self.lease_holds(now) {
            return;
        }
        let numbers: Vec<HookNumber> = self.hooks.keys().copied().collect();
        for number in numbers {
            self.start_runs_of(number, now);
        }
    }

    fn start_runs_of(&mut self, number: HookNumber, now: Timestamp) {
        let Some(definitions) = self.definitions(number) else { return };
        let Some(hook) = self.hooks.get(&number) else { return };
        if hook.slots.is_empty() || hook.declared.version < definitions.entity.version() || definitions.entity.removed {
            return;
        }
        let Some(state) = self.state.upgrade() else { return };
        let snapshot = self.core.snapshot();
        let revision = snapshot.revision();
        let (handler, installation) = (hook.declared.handler.clone(), self.installation);
        let lease = self.runner.lease.clone();
        let room = usize::try_from(hook.declared.room).unwrap_or(usize::MAX);
        let room = if definitions.entity.runs_in_cluster().is_some() { room.min(hook.permits) } else { room };
        let mut isolated: usize =
            self.slots.values().filter_map(super::Slot::queue).map(super::SlotQueue::isolated).sum();
        let runs_suspects = self.suspects_from.is_some_and(|from| from <= now);
        // Most of the time nothing is to be started.
        let context = LazyCell::new(|| Arc::new(RunContext { definitions, snapshot, state, lease, installation }));
        let mut out = Vec::new();
        let mut batch = Vec::new();
        let mut started = 0_u64;
        let mut barren = 0;
        while let Some(hook) = self.hooks.get_mut(&number) {
            if hook.running >= room || barren >= hook.slots.len() || self.settlements.is_full() {
                break;
            }
            hook.turn = (hook.turn + 1) % hook.slots.len();
            let id = hook.slots[hook.turn];
            barren += 1;
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            let fence = slot.fence;
            let may_start = slot.stopping.is_none();
            let SlotState::Active(queue) = &mut slot.state else { continue };
            if !may_start || !queue.may_have_something_to_start() {
                continue;
            }
            let before = queue.isolated();
            let next = queue.start(revision, runs_suspects && isolated == 0, &mut out);
            isolated = isolated + queue.isolated() - before;
            if let Some(next) = next {
                barren = 0;
                let control = Arc::new(RunControl::default());
                slot.runs.insert(next.run, control.clone());
                if batch.is_empty() {
                    batch.reserve_exact(hook.batch);
                }
                batch.push(Job { started: next, fence, control });
                started += 1;
                hook.running += 1;
            }
            let is_full = batch.len() >= hook.batch;
            self.obey_queue(id, out.drain(..));
            if is_full {
                let jobs = std::mem::take(&mut batch);
                self.launch(number, (*context).clone(), handler.clone(), jobs);
            }
        }
        if !batch.is_empty() {
            self.launch(number, (*context).clone(), handler, batch);
        }
        self.note_starts(number, started, room, now);
    }

    fn launch(
        &mut self,
        number: HookNumber,
        context: Arc<RunContext>,
        handler: Arc<dyn ClusterHook>,
        mut jobs: Vec<Job>,
    ) {
        let runner = self.runner.clone();
        if jobs.len() == 1 && (runner.has_points || self.hooks.get(&number).is_none_or(|hook| hook.batch == 1)) {
            let Some(job) = jobs.pop() else { return };
            let control = job.control.clone();
            let measured = self.sender.clone();
            let task = self.tasks.spawn(async move {
                let mut run = std::pin::pin!(runner.run_one(context, handler, job));
                let begun = std::time::Instant::now();
                let mut first = true;
                std::future::poll_fn(|polling| {
                    let polled = run.as_mut().poll(polling);
                    if std::mem::take(&mut first) && polled.is_ready() {
                        let _ = measured.send(super::Event::Polled { hook: number, slowest: begun.elapsed() });
                    }
                    polled
                })
                .await;
            });
            control.set_abort(task);
        } else {
            self.tasks.spawn(async move { runner.run_batch(number, context, &handler, jobs) });
        }
    }

    /// Runs of a hook that returned at their first poll took at most this long for it: more or fewer share a task.
    pub(super) fn polled(&mut self, number: HookNumber, slowest: Duration) {
        let has_points = self.runner.has_points;
        if let Some(hook) = self.hooks.get_mut(&number) {
            hook.batch = if slowest > SLOW_POLL || has_points { 1 } else { (hook.batch * 2).min(BATCH_MAX) };
        }
    }

    /// Measures how long keys wait for room.
    fn note_starts(&mut self, number: HookNumber, started: u64, room: usize, now: Timestamp) {
        let Some(hook) = self.hooks.get_mut(&number) else { return };
        hook.starts += started;
        if started > 0 {
            let label = crate::cluster_hook::metrics::label(&hook.declared.name);
            self.core.metrics.hooks.runs.get_or_create(&label).inc_by(started);
        }
        if let Some((at, _)) = hook.probe
            && now.since(at) > crate::cluster_hook::balance::OVERLOADED_AFTER
        {
            hook.overloaded_at = Some(now);
        }
        if hook.probe.is_some_and(|(_, due)| hook.starts >= due) {
            hook.probe = None;
        }
        if hook.running >= room {
            if hook.probe.is_none() {
                let slots = &self.slots;
                let ready: usize = hook.slots.iter().filter_map(|slot| Some(slots.get(slot)?.queue()?.ready())).sum();
                if ready > 0 {
                    hook.probe = Some((now, hook.starts + ready as u64));
                }
            }
        } else {
            hook.probe = None;
        }
        if hook.overloaded_at.is_some_and(|at| now.since(at) > crate::cluster_hook::balance::CONSTRAINED_FOR) {
            hook.overloaded_at = None;
        }
    }
}
