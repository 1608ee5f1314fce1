//! A cluster that a plan is played on: its servers' lives, who writes, and what they were told.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_state::driver::{CommitFault, DriverError, Faults, SettleFault};
use tidegate_state::testing::history::{HistoryEvent, Recorder};
use tidegate_state::testing::points::Hold;
use tidegate_state::testing::{Cluster, StoreKind};
use tidegate_state::{HookHandle, QueueFilter, State, SubmissionId, WriteError};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::hooks::{Acting, Effect, Flaw};
use super::operations::Operation;
use super::plan::{Act, Answered, CUTS, Plan, Step};

/// How long half a second of the injected clock takes by the machine's at most, while something is waited for.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// How long a step waits for what may never come, by the machine's clock.
const MOMENT: Duration = Duration::from_millis(25);
/// How long servers have to lease their first slots before the plan begins all the same.
const WARMING: Duration = Duration::from_millis(300);
/// How long servers have to renew their leases before the clock goes on all the same.
const RENEWAL: Duration = Duration::from_millis(15);

/// What a writer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Committed {
        revision: u64,
    },
    Unchanged,
    Rejected,
    /// Certainly not committed.
    Failed,
    Unknown,
}

/// One submission; without an answer where its writer died first.
#[derive(Debug, Clone)]
pub(crate) struct Submitted {
    pub(crate) submission: SubmissionId,
    pub(crate) operation: Operation,
    pub(crate) answer: Option<Answer>,
}

/// A server that runs. Dropping it ends what belongs to it, but not the server.
struct Life {
    /// Registers its hooks, and again when it gets other code.
    _registering: JoinSet<()>,
    version: watch::Sender<u32>,
    /// The version in which all of its hooks are registered.
    registered: watch::Receiver<u32>,
    leaving: Option<JoinSet<()>>,
}

/// The cluster, and what is going on in it.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) plan: Arc<Plan>,
    pub(crate) acting: Arc<Acting>,
    pub(crate) recorder: Recorder,
    pub(crate) submitted: Arc<Mutex<Vec<Submitted>>>,
    lives: Vec<Option<Life>>,
    /// The definition version of each server's code, through its restarts.
    versions: Vec<u32>,
    writers: JoinSet<()>,
    holds: Vec<(&'static str, Hold)>,
    pub(crate) faults: usize,
}

impl World {
    /// The cluster as it is before the first step.
    pub(crate) async fn open(kind: StoreKind, plan: Arc<Plan>, flaw: Flaw) -> World {
        let recorder = Recorder::in_memory();
        let (written_to, planned) = (recorder.clone(), plan.clone());
        let builder = Cluster::builder().servers(plan.servers.len()).configure(move |index, options| {
            let mut options = options.record::<Effect>();
            options.recorder = written_to.clone();
            // The log is what a run is judged by.
            options.log_keep = Duration::from_secs(1_000_000);
            if let Some(server) = planned.servers.get(index) {
                options.poll = server.poll;
                options.entities_behind = server.entities_behind;
                options.drain_limit = server.drain_limit;
                options.commit_group_max = server.commit_group_max;
                options.hook_requests_in_memory = server.hook_requests_in_memory;
            }
            options
        });
        let cluster = builder.open(&kind).await;
        let servers = plan.servers.len();
        let mut world = World {
            cluster,
            acting: Arc::new(Acting::new(plan.seed, flaw)),
            recorder,
            submitted: Arc::default(),
            lives: (0..servers).map(|_| None).collect(),
            versions: vec![1; servers],
            writers: JoinSet::new(),
            holds: Vec::new(),
            faults: 0,
            plan,
        };
        for server in 0..servers {
            world.begin(server);
        }
        world
    }

    /// A server that has just been opened registers its hooks.
    fn begin(&mut self, server: usize) {
        let state = self.cluster.server(server).clone();
        let (version, wanted) = watch::channel(self.versions[server]);
        let (told, registered) = watch::channel(0);
        let mut registering = JoinSet::new();
        registering.spawn(register_on(state, server, self.plan.clone(), self.acting.clone(), wanted, told));
        self.lives[server] = Some(Life { _registering: registering, version, registered, leaving: None });
    }

    /// A server that runs and is not leaving: the one asked for, or the next one.
    fn writable(&self, server: usize) -> Option<&State> {
        let count = self.lives.len();
        let mut order = (0..count).map(|step| (server + step) % count);
        let found = order.find(|server| self.lives[*server].as_ref().is_some_and(|life| life.leaving.is_none()))?;
        Some(self.cluster.server(found))
    }

    fn is_up(&self, server: usize) -> bool {
        self.lives[server].is_some()
    }

    fn kill(&mut self, server: usize) {
        self.lives[server] = None;
        self.cluster.kill(server);
    }

    pub(crate) async fn start(&mut self, server: usize) {
        if self.is_up(server) {
            return;
        }
        // A store that is played absent lets nobody in; there is another time.
        if self.cluster.try_restart(server).await.is_ok() {
            self.begin(server);
        }
    }

    async fn restart_all(&mut self) {
        for server in 0..self.lives.len() {
            self.cluster.faults(server).let_late_commits_arrive();
        }
        self.holds.clear();
        // A store is closed when nobody has it any more; what writers had not heard they never will.
        self.writers.shutdown().await;
        for server in 0..self.lives.len() {
            self.kill(server);
        }
        tokio::task::yield_now().await;
        self.cluster.restart_store().await;
        for server in 0..self.lives.len() {
            self.start(server).await;
        }
    }

    /// Waits until hooks are registered and their slots leased, or a while is over.
    pub(crate) async fn warm_up(&self) {
        let warm = async {
            for life in self.lives.iter().flatten() {
                let mut registered = life.registered.clone();
                let _ = registered.wait_for(|version| *version > 0).await;
            }
            let driver = self.cluster.store().driver(Faults::new());
            while driver.cluster().await.is_ok_and(|(_, slots)| slots.iter().all(|slot| slot.owner.is_none())) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(WARMING, warm).await;
    }

    /// Plays one step.
    pub(crate) async fn play(&mut self, step: &Step) {
        if step.is_fault() {
            self.faults += 1;
            self.recorder.write("plan", HistoryEvent::Fault { what: format!("{step:?}") });
        }
        match step {
            Step::Write(server, operations) => self.write(*server, operations),
            Step::Act(server, place, act) => self.act(*server, *place, *act),
            Step::Await(runs) => self.await_runs(*runs).await,
            Step::Pass(time) => self.pass(*time).await,
            Step::Jump(time) => self.cluster.advance(*time),
            Step::Kill(server) => self.kill(*server),
            Step::Start(server) => {
                let left = self.lives[*server].as_ref().is_some_and(|life| life.leaving.is_some());
                if left {
                    // If it is still leaving, it dies in the midst of it.
                    self.kill(*server);
                }
                self.start(*server).await;
            }
            Step::Drain(server) => self.drain(*server),
            Step::RestartAll => self.restart_all().await,
            Step::Hold(server, point) => self.holds.push((*point, self.cluster.points(*server).hold(point))),
            Step::LetGo(place, cut) => {
                if !self.holds.is_empty() {
                    let (point, hold) = self.holds.remove(place % self.holds.len());
                    if *cut && CUTS.contains(&point) { hold.cut() } else { hold.release() }
                }
            }
            Step::Cut(server, point) => self.cluster.points(*server).cut(point, 1),
            Step::Stun(server) => {
                for point in [
                    tidegate_state::cluster_hook::points::SLOT_BEFORE_HEARTBEAT,
                    tidegate_state::cluster_hook::points::SLOT_BEFORE_LAPSE,
                ] {
                    self.holds.push((point, self.cluster.points(*server).hold(point)));
                }
            }
            Step::Absent(server, absent) => self.cluster.faults(*server).set_absent(*absent),
            Step::Deaf(server, deaf) => self.cluster.faults(*server).set_deaf(*deaf),
            Step::LoseHeartbeats(server, lost) => self.cluster.faults(*server).lose_heartbeat_answers(*lost),
            Step::Commits(server, answers) => {
                self.cluster.faults(*server).next_commits(answers.iter().map(|answer| commit_fault(*answer)));
            }
            Step::Settlements(server, answers) => {
                self.cluster.faults(*server).next_settles(answers.iter().map(|answer| settle_fault(*answer)));
            }
            Step::Takings(server, answers) => {
                self.cluster.faults(*server).next_takes(answers.iter().map(|answer| settle_fault(*answer)));
            }
            Step::Fail(server, call) => self.cluster.faults(*server).next_errors(*call, [unavailable()]),
            Step::Reconnect(server) => self.cluster.faults(*server).reconnect(),
            Step::LateCommitsArrive(server) => self.cluster.faults(*server).let_late_commits_arrive(),
            Step::Upgrade(server) => self.upgrade(*server),
        }
        tokio::task::yield_now().await;
    }

    fn write(&mut self, server: usize, operations: &[Operation]) {
        let Some(state) = self.writable(server).cloned() else { return };
        for operation in operations {
            let submission = SubmissionId::random();
            let place = {
                let mut submitted = self.submitted.lock();
                submitted.push(Submitted { submission, operation: operation.clone(), answer: None });
                submitted.len() - 1
            };
            let (state, submitted, operation) = (state.clone(), self.submitted.clone(), operation.clone());
            self.writers.spawn(async move {
                let written = state.transaction().submission(submission);
                let answer = match written.write(move |transaction| operation.carry_out(transaction)).await {
                    Ok(committed) if committed.changed => Answer::Committed { revision: committed.revision.0 },
                    Ok(_) => Answer::Unchanged,
                    Err(WriteError::Rejected(_)) => Answer::Rejected,
                    Err(WriteError::Unknown { .. }) => Answer::Unknown,
                    Err(_) => Answer::Failed,
                };
                submitted.lock()[place].answer = Some(answer);
            });
        }
    }

    fn act(&mut self, server: usize, place: usize, act: Act) {
        let Some(state) = self.writable(server).cloned() else { return };
        self.writers.spawn(async move {
            let Ok(entries) = state.queue().list(QueueFilter::all()).await else { return };
            if entries.is_empty() {
                return;
            }
            let request = entries[place % entries.len()].request;
            // What can't be done to a request as it stands is refused.
            let _ = match act {
                Act::Retry => state.queue().retry(request, "operator").await,
                Act::Discard => state.queue().discard(request, "operator").await,
                Act::Cancel => state.queue().cancel(request, "operator").await,
            };
        });
    }

    async fn await_runs(&self, runs: u64) {
        let mut progress = self.acting.progress();
        let from = *progress.borrow();
        // Nothing may be running at all.
        let _ = tokio::time::timeout(MOMENT, progress.wait_for(|count| *count >= from + runs)).await;
    }

    fn drain(&mut self, server: usize) {
        let Some(life) = self.lives[server].as_mut().filter(|life| life.leaving.is_none()) else { return };
        let state = self.cluster.server(server).clone();
        let mut leaving = JoinSet::new();
        leaving.spawn(async move { state.close().await });
        life.leaving = Some(leaving);
    }

    fn upgrade(&mut self, server: usize) {
        let most = self.plan.hooks.iter().map(|hook| hook.versions.len()).min().unwrap_or(1);
        let version = (self.versions[server] + 1).min(u32::try_from(most).unwrap());
        self.set_version(server, version);
    }

    fn set_version(&mut self, server: usize, version: u32) {
        self.versions[server] = version;
        if let Some(life) = &self.lives[server] {
            life.version.send_replace(version);
        }
    }

    /// Lets time pass in parts that leave servers the time to renew their leases.
    pub(crate) async fn pass(&self, by: Duration) {
        let mut left = by;
        while !left.is_zero() {
            let part = left.min(Duration::from_secs(2));
            left -= part;
            self.cluster.advance(part);
            let _ = tokio::time::timeout(RENEWAL, self.renewed()).await;
        }
    }

    /// Returns when every server whose lease holds has renewed it lately.
    async fn renewed(&self) {
        let driver = self.cluster.store().driver(Faults::new());
        loop {
            let Ok((servers, _)) = driver.cluster().await else { return };
            let now = driver.clock().now();
            let fresh = |name: &str| {
                servers.iter().any(|row| &*row.name == name && row.lease_until.since(now) >= Duration::from_secs(7))
            };
            let late = servers.iter().any(|row| row.lease_until > now && !fresh(&row.name));
            if !late {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Every fault ends, and every server runs with the newest code.
    pub(crate) async fn mend(&mut self) -> Result<(), String> {
        self.holds.clear();
        for server in 0..self.lives.len() {
            let faults = self.cluster.faults(server);
            faults.set_absent(false);
            faults.set_deaf(false);
            faults.lose_heartbeat_answers(false);
            faults.let_late_commits_arrive();
        }
        for server in 0..self.lives.len() {
            let leaving = self.lives[server].as_mut().and_then(|life| life.leaving.take());
            if let Some(mut leaving) = leaving {
                let left = async { while leaving.join_next().await.is_some() {} };
                self.passing(left).await.ok_or_else(|| format!("server-{server} did not finish leaving"))?;
                self.kill(server);
            }
            // An error that was set up before may be answered only now.
            for _ in 0..5 {
                self.start(server).await;
            }
            if !self.is_up(server) {
                return Err(format!("server-{server} can't be opened"));
            }
        }
        let newest = self.versions.iter().copied().max().unwrap_or(1);
        for server in 0..self.lives.len() {
            self.set_version(server, newest);
        }
        for server in 0..self.lives.len() {
            let Some(life) = &self.lives[server] else { continue };
            let mut registered = life.registered.clone();
            let registered = async { registered.wait_for(|version| *version >= newest).await.is_ok() };
            if self.passing(registered).await != Some(true) {
                return Err(format!("server-{server} did not come to register its hooks"));
            }
        }
        let mut writers = std::mem::take(&mut self.writers);
        let answered = async { while writers.join_next().await.is_some() {} };
        self.passing(answered).await.ok_or_else(|| "some writers were not answered".to_owned())
    }

    /// Waits for something while time passes, for as long as any working cluster needs.
    pub(crate) async fn passing<T>(&self, waited: impl Future<Output = T>) -> Option<T> {
        let passing = async {
            // Slower and slower: on a busy machine, or disk, a lease would end before its renewal is stored, again and again.
            let mut pause = Duration::from_millis(1);
            loop {
                tokio::time::sleep(pause).await;
                self.pass(Duration::from_millis(500)).await;
                pause = pause.mul_f64(1.05).min(PAUSE_MAX);
            }
        };
        tokio::select! {
            biased;
            done = waited => Some(done),
            () = passing => None,
            () = tokio::time::sleep(super::play::LIMIT) => None,
        }
    }

    /// Ends all servers: in order, or at once.
    pub(crate) async fn end(&mut self, in_order: bool) {
        for server in 0..self.lives.len() {
            self.lives[server] = None;
            if in_order {
                self.cluster.close(server).await;
            } else {
                self.cluster.kill(server);
            }
        }
    }
}

/// Registers the hooks of a server in the version of its code, whenever that changes.
async fn register_on(
    state: State,
    server: usize,
    plan: Arc<Plan>,
    acting: Arc<Acting>,
    mut wanted: watch::Receiver<u32>,
    told: watch::Sender<u32>,
) {
    loop {
        let version = *wanted.borrow_and_update();
        let mut handles: Vec<HookHandle> = Vec::new();
        for (hook, room) in plan.hooks.iter().zip(&plan.servers[server].rooms).filter(|(_, room)| **room > 0) {
            // Faults are answered with errors; a service would try again as well.
            while !wanted.has_changed().unwrap_or(true) {
                match state.register(hook.registration(version), *room, acting.clone()).await {
                    Ok(handle) => {
                        handles.push(handle);
                        break;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        }
        if !wanted.has_changed().unwrap_or(true) {
            told.send_replace(version);
        }
        if wanted.changed().await.is_err() {
            // The life is over, and this task ends with it.
            std::future::pending::<()>().await;
        }
    }
}

fn unavailable() -> DriverError {
    DriverError::Unavailable("as the seed wants it".to_owned())
}

fn commit_fault(answered: Answered) -> CommitFault {
    match answered {
        Answered::Fine => CommitFault::None,
        Answered::AppliedAnswerLost => CommitFault::AppliedAnswerLost,
        Answered::NotAppliedAnswerLost => CommitFault::NotAppliedAnswerLost,
        Answered::AppliedLate => CommitFault::AppliedLate,
        Answered::Refused => CommitFault::Refused(unavailable()),
    }
}

fn settle_fault(answered: Answered) -> SettleFault {
    match answered {
        Answered::Fine => SettleFault::None,
        Answered::AppliedAnswerLost | Answered::AppliedLate => SettleFault::AppliedAnswerLost,
        Answered::NotAppliedAnswerLost | Answered::Refused => SettleFault::NotApplied,
    }
}
