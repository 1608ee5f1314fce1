//! What a seed stands for: a small cluster, its hooks, and what is written and goes wrong one after the other. A value, so
//! that a failure prints it and a second run repeats it.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidegate_state::cluster_hook::points;
use tidegate_state::driver::Call;
use tidegate_state::testing::points::name as point;

use super::hooks::{HookKind, HookPlan};
use super::operations::Operation;

/// Points at which a server is held or cut.
const POINTS: [&str; 20] = [
    point::COMMIT_BEFORE_LOCK,
    point::COMMIT_LOCKED,
    point::COMMIT_BEFORE_COMMIT,
    point::COMMIT_AFTER_COMMIT,
    point::TAIL_BEFORE_APPLY,
    point::TAIL_BEFORE_PUBLISH,
    point::UPKEEP_BEFORE_ENTITIES,
    points::SLOT_BEFORE_LEASE,
    points::SLOT_LEASED,
    points::SLOT_READ,
    points::SLOT_BEFORE_HEARTBEAT,
    points::SLOT_AFTER_HEARTBEAT,
    points::SLOT_BEFORE_LAPSE,
    points::SLOT_BEFORE_WATERMARK,
    points::SLOT_BEFORE_RELEASE,
    points::RUN_BEFORE_START,
    points::RUN_BEFORE_RECEIPT,
    points::RUN_AFTER_RECEIPT,
    points::RUN_OUTCOME_UNKNOWN,
    points::RUN_BEFORE_COMPLETION,
];

/// Points at which a server that is cut off goes on. Elsewhere it ignores that, or is to be killed afterwards.
pub(crate) const CUTS: [&str; 10] = [
    point::COMMIT_BEFORE_LOCK,
    point::COMMIT_LOCKED,
    point::COMMIT_BEFORE_COMMIT,
    point::COMMIT_AFTER_COMMIT,
    points::SLOT_BEFORE_HEARTBEAT,
    points::SLOT_AFTER_HEARTBEAT,
    points::SLOT_BEFORE_WATERMARK,
    points::RUN_BEFORE_RECEIPT,
    points::RUN_AFTER_RECEIPT,
    points::RUN_BEFORE_COMPLETION,
];

/// Calls of the driver that fail once in a while.
const CALLS: [Call; 10] = [
    Call::Begin,
    Call::Fence,
    Call::Commit,
    Call::Heartbeat,
    Call::Join,
    Call::Cluster,
    Call::ReleaseSlots,
    Call::Pending,
    Call::ReadLog,
    Call::Exceptions,
];

/// What goes wrong in a plan. A seed draws a few of them, so that each is often alone with few others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Kills,
    Drains,
    Restarts,
    Holds,
    Cuts,
    Jumps,
    Lapses,
    Absences,
    Deafness,
    LostHeartbeats,
    Commits,
    Settlements,
    Takings,
    Errors,
    Upgrades,
}

impl Trouble {
    const ALL: [Trouble; 15] = [
        Trouble::Kills,
        Trouble::Drains,
        Trouble::Restarts,
        Trouble::Holds,
        Trouble::Cuts,
        Trouble::Jumps,
        Trouble::Lapses,
        Trouble::Absences,
        Trouble::Deafness,
        Trouble::LostHeartbeats,
        Trouble::Commits,
        Trouble::Settlements,
        Trouble::Takings,
        Trouble::Errors,
        Trouble::Upgrades,
    ];

    /// Whether no lease can run out by it, and no server ends without having given back what it had.
    fn is_gentle(self) -> bool {
        matches!(self, Trouble::Deafness | Trouble::Upgrades)
    }
}

/// What happens to one commit, settlement or taking of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    Fine,
    AppliedAnswerLost,
    NotAppliedAnswerLost,
    AppliedLate,
    Refused,
}

impl Answered {
    fn draw(random: &mut StdRng, late: bool) -> Answered {
        match random.random_range(0..9) {
            0 | 1 => Answered::Fine,
            2..=4 => Answered::AppliedAnswerLost,
            5 | 6 => Answered::NotAppliedAnswerLost,
            7 if late => Answered::AppliedLate,
            _ => Answered::Refused,
        }
    }
}

/// What an operator does to some unfinished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Retry,
    Discard,
    Cancel,
}

/// One step. Those that do not fit the moment (a kill of a server that is down) do nothing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Some operations at once, through one server; nobody waits for the answers.
    Write(usize, Vec<Operation>),
    /// An operator acts on the request at this place of the queue, modulo its length.
    Act(usize, usize, Act),
    /// So many further starts and ends of runs are waited for, for a moment.
    Await(u64),
    /// The time passes, and servers that can renew their leases do.
    Pass(Duration),
    /// The time jumps, as if every server had been stopped.
    Jump(Duration),
    Kill(usize),
    Start(usize),
    Drain(usize),
    /// Everything dies at once, and the store is opened again.
    RestartAll,
    Hold(usize, &'static str),
    /// The hold at this place is let go, modulo their number; cut as it goes on or not.
    LetGo(usize, bool),
    Cut(usize, &'static str),
    /// It neither renews its lease nor notices that it ended.
    Stun(usize),
    Absent(usize, bool),
    Deaf(usize, bool),
    LoseHeartbeats(usize, bool),
    Commits(usize, Vec<Answered>),
    Settlements(usize, Vec<Answered>),
    Takings(usize, Vec<Answered>),
    Fail(usize, Call),
    Reconnect(usize),
    LateCommitsArrive(usize),
    /// The server gets the code of the next definition versions, without a restart.
    Upgrade(usize),
}

impl Step {
    /// Whether it is a fault.
    pub(crate) fn is_fault(&self) -> bool {
        !matches!(
            self,
            Step::Write(..)
                | Step::Act(..)
                | Step::Await(_)
                | Step::Pass(_)
                | Step::Start(_)
                | Step::LetGo(..)
                | Step::Absent(_, false)
                | Step::Deaf(_, false)
                | Step::LoseHeartbeats(_, false)
                | Step::LateCommitsArrive(_)
                | Step::Upgrade(_)
        )
    }
}

/// One server.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServerPlan {
    /// How many runs at once it takes of each hook; 0 where it does not run it.
    pub(crate) rooms: Vec<u32>,
    pub(crate) poll: Duration,
    pub(crate) entities_behind: Duration,
    pub(crate) drain_limit: Duration,
    pub(crate) commit_group_max: usize,
    pub(crate) hook_requests_in_memory: usize,
}

/// All that is drawn from a seed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) servers: Vec<ServerPlan>,
    pub(crate) hooks: Vec<HookPlan>,
    /// How many things there are; each is a key.
    pub(crate) things: u64,
    /// The first step is played when slots are leased, and not amid the start of all servers.
    pub(crate) warm: bool,
    pub(crate) troubles: Vec<Trouble>,
    pub(crate) steps: Vec<Step>,
}

impl Plan {
    /// The plan of a seed, for at most so many servers.
    pub(crate) fn draw(seed: u64, servers_max: usize) -> Plan {
        let mut random = StdRng::seed_from_u64(seed);
        let servers = random.random_range(1..=servers_max);
        let hooks: Vec<HookPlan> =
            HookKind::ALL.into_iter().filter_map(|kind| HookPlan::draw(kind, &mut random)).collect();
        let mut plans: Vec<ServerPlan> = (0..servers).map(|_| draw_server(&mut random, hooks.len())).collect();
        // Somebody runs each hook, or nothing would ever come to rest.
        for hook in 0..hooks.len() {
            let willing = random.random_range(0..servers);
            plans[willing].rooms[hook] = plans[willing].rooms[hook].max(1);
        }
        let troubles = draw_troubles(&mut random);
        let things = random.random_range(1..=5);
        let warm = random.random_bool(0.75);
        let mut drawing = Drawing { random, servers, things, value: 0, troubles: troubles.clone(), steps: Vec::new() };
        let length = drawing.random.random_range(12..50);
        while drawing.steps.len() < length {
            drawing.next();
        }
        Plan { seed, servers: plans, hooks, things, warm, troubles, steps: drawing.steps }
    }

    /// Whether nothing in it ends a lease or a run before its time.
    pub(crate) fn is_gentle(&self) -> bool {
        self.troubles.iter().all(|trouble| trouble.is_gentle())
    }

    /// Whether hooks get further definition versions.
    pub(crate) fn upgrades(&self) -> bool {
        self.troubles.contains(&Trouble::Upgrades)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "seed {}: {} things, warm {}, {:?}", self.seed, self.things, self.warm, self.troubles)?;
        for (number, server) in self.servers.iter().enumerate() {
            writeln!(formatter, "  server-{number}: {server:?}")?;
        }
        for hook in &self.hooks {
            writeln!(formatter, "  {hook:?}")?;
        }
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(formatter, "  {number:3} {step:?}")?;
        }
        Ok(())
    }
}

fn draw_troubles(random: &mut StdRng) -> Vec<Trouble> {
    // Now and then none at all: what holds amid faults is to hold without them.
    let count = [0, 1, 1, 2, 2, 3, 4, 6][random.random_range(0..8_usize)];
    let mut drawn = Vec::new();
    for _ in 0..count {
        let trouble = Trouble::ALL[random.random_range(0..Trouble::ALL.len())];
        if !drawn.contains(&trouble) {
            drawn.push(trouble);
        }
    }
    drawn
}

fn draw_server(random: &mut StdRng, hooks: usize) -> ServerPlan {
    let rooms = (0..hooks).map(|_| [0, 1, 1, 2, 8][random.random_range(0..5_usize)]).collect();
    ServerPlan {
        rooms,
        poll: Duration::from_millis(random.random_range(5..40)),
        entities_behind: Duration::from_millis([3, 10, 100][random.random_range(0..3_usize)]),
        drain_limit: Duration::from_millis([0, 20, 5_000, 5_000, 5_000, 5_000][random.random_range(0..6_usize)]),
        commit_group_max: [1, 3, 512][random.random_range(0..3_usize)],
        // So few that some of the log is to be read again.
        hook_requests_in_memory: [2, 16, 250_000][random.random_range(0..3_usize)],
    }
}

struct Drawing {
    random: StdRng,
    servers: usize,
    things: u64,
    /// The last value that was written: none is written twice, so that every put is a change.
    value: u64,
    troubles: Vec<Trouble>,
    steps: Vec<Step>,
}

impl Drawing {
    fn server(&mut self) -> usize {
        self.random.random_range(0..self.servers)
    }

    fn next(&mut self) {
        let server = self.server();
        match self.random.random_range(0..100) {
            0..40 => {
                let count = [1, 1, 2, 3, 8][self.random.random_range(0..5_usize)];
                let operations = (0..count).map(|_| {
                    self.value += 1;
                    Operation::draw(&mut self.random, self.things, self.value)
                });
                let operations = operations.collect();
                self.steps.push(Step::Write(server, operations));
            }
            40..58 => {
                let runs = self.random.random_range(1..8);
                self.steps.push(Step::Await(runs));
            }
            58..68 => {
                let time = Duration::from_millis(self.random.random_range(100..4_000));
                self.steps.push(Step::Pass(time));
            }
            68..74 => {
                let act = [Act::Retry, Act::Retry, Act::Discard, Act::Cancel][self.random.random_range(0..4_usize)];
                let place = self.random.random_range(0..8);
                self.steps.push(Step::Act(server, place, act));
            }
            74..80 => {
                let (place, cut) = (self.random.random_range(0..4), self.random.random_bool(0.3));
                self.steps.push(Step::LetGo(place, cut));
            }
            _ if self.troubles.is_empty() => self.steps.push(Step::Await(1)),
            _ => {
                let trouble = self.troubles[self.random.random_range(0..self.troubles.len())];
                self.trouble(trouble, server);
            }
        }
    }

    fn answers(&mut self, late: bool) -> Vec<Answered> {
        let count = self.random.random_range(1..4);
        (0..count).map(|_| Answered::draw(&mut self.random, late)).collect()
    }

    fn trouble(&mut self, trouble: Trouble, server: usize) {
        let on = self.random.random_bool(0.5);
        let step = match trouble {
            Trouble::Kills if on => Step::Kill(server),
            Trouble::Kills | Trouble::Drains if self.random.random_bool(0.5) => Step::Start(server),
            Trouble::Kills => Step::Kill(server),
            Trouble::Drains => Step::Drain(server),
            Trouble::Restarts => Step::RestartAll,
            Trouble::Holds => Step::Hold(server, POINTS[self.random.random_range(0..POINTS.len())]),
            Trouble::Cuts => Step::Cut(server, CUTS[self.random.random_range(0..CUTS.len())]),
            Trouble::Jumps => {
                Step::Jump(Duration::from_millis([3_000, 9_000, 11_000, 30_000][self.random.random_range(0..4_usize)]))
            }
            Trouble::Lapses => {
                self.steps.push(Step::Stun(server));
                if on {
                    self.steps.push(Step::Await(2));
                }
                Step::Pass(Duration::from_secs(12))
            }
            Trouble::Absences => Step::Absent(server, on),
            Trouble::Deafness => Step::Deaf(server, on),
            Trouble::LostHeartbeats => Step::LoseHeartbeats(server, on),
            Trouble::Commits if self.random.random_bool(0.3) => Step::LateCommitsArrive(server),
            Trouble::Commits => Step::Commits(server, self.answers(true)),
            Trouble::Settlements => Step::Settlements(server, self.answers(false)),
            Trouble::Takings => Step::Takings(server, self.answers(false)),
            Trouble::Errors if self.random.random_bool(0.2) => Step::Reconnect(server),
            Trouble::Errors => Step::Fail(server, CALLS[self.random.random_range(0..CALLS.len())]),
            Trouble::Upgrades => Step::Upgrade(server),
        };
        self.steps.push(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_plan_and_every_hook_somebody_who_runs_it() {
        assert_eq!(Plan::draw(7, 4), Plan::draw(7, 4));
        assert_ne!(Plan::draw(7, 4).steps, Plan::draw(8, 4).steps);
        for seed in 0..500 {
            let plan = Plan::draw(seed, 4);
            for hook in 0..plan.hooks.len() {
                assert!(plan.servers.iter().any(|server| server.rooms[hook] > 0), "{plan}");
            }
        }
    }
}
