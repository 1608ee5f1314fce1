//! Which faults happen when: a value, drawn from a seed, that a test can look at and a second run repeats.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::aim::{Aim, Hit, HitAt};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `kill -9`, and a start a second later.
    Kill,
    /// SIGSTOP for two to three leases, then SIGCONT.
    Stop,
    /// SIGTERM: it drains and leaves, and is started again.
    Drain,
    /// The database is stopped, in order or as in a crash, and started again.
    Database,
    /// All connections of a server are closed.
    Cut,
    /// Packets of a server vanish, one way or both, and nothing is closed.
    Silence,
    /// A server runs no hook for a while, and goes on writing.
    Withdraw,
    /// Runs of a server take so long for a while that it has no room.
    Crowd,
}

impl Kind {
    /// What moves slots and ends no lease.
    pub(crate) const MOVING: [Kind; 3] = [Kind::Drain, Kind::Withdraw, Kind::Crowd];
    pub(crate) const ALL: [Kind; 6] = [Kind::Kill, Kind::Stop, Kind::Drain, Kind::Database, Kind::Cut, Kind::Silence];

    pub(crate) fn parse(word: &str) -> Option<Kind> {
        Some(match word {
            "kill" => Kind::Kill,
            "stop" => Kind::Stop,
            "drain" => Kind::Drain,
            "database" => Kind::Database,
            "cut" => Kind::Cut,
            "silence" => Kind::Silence,
            _ => return None,
        })
    }
}

/// Which way packets vanish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silent {
    ToDatabase,
    FromDatabase,
    Both,
}

/// One thing that is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Kill(usize),
    Start(usize),
    Stop(usize),
    /// It is killed, or stopped, at a point of its work; wherever it is, where it does not come there.
    Hit(usize, HitAt),
    Continue(usize),
    Drain(usize),
    StopDatabase {
        crash: bool,
    },
    StartDatabase,
    Cut(usize),
    Silence(usize, Silent),
    Resume(usize),
    Withdraw(usize),
    Declare(usize),
    Crowd(usize),
    Relieve(usize),
    /// The hook at this place gets so many slots.
    Slots {
        hook: usize,
        count: u32,
    },
}

impl Action {
    /// Whether it is a fault, and not the end of one.
    pub(crate) fn is_fault(self) -> bool {
        !matches!(
            self,
            Action::Start(_)
                | Action::Continue(_)
                | Action::StartDatabase
                | Action::Resume(_)
                | Action::Declare(_)
                | Action::Relieve(_)
        )
    }
}

/// Has every other kill and stop of a plan hit a point of a server's work.
pub(crate) fn aimed(seed: u64, actions: &mut [(Duration, Action)]) {
    let mut random = StdRng::seed_from_u64(seed.rotate_left(32));
    for (_, action) in actions {
        let (server, hit) = match *action {
            Action::Kill(server) => (server, Hit::Kill),
            Action::Stop(server) => (server, Hit::Stop),
            _ => continue,
        };
        if random.random_bool(0.5) {
            let aim = Aim::ALL[random.random_range(0..Aim::ALL.len())];
            *action = Action::Hit(server, HitAt { aim, hit, after_us: random.random_range(0..3_000) });
        }
    }
}

/// What is done when, in order. Every fault ends before `length` is over, and no two meet on one server.
pub(crate) fn plan(
    seed: u64,
    kinds: &[Kind],
    servers: usize,
    every: Duration,
    lease: Duration,
    length: Duration,
) -> Vec<(Duration, Action)> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut actions = Vec::new();
    let mut free_at = vec![Duration::ZERO; servers];
    let mut database_free_at = Duration::ZERO;
    let mut at = every;
    while !kinds.is_empty() && at < length {
        let kind = kinds[random.random_range(0..kinds.len())];
        let server = random.random_range(0..servers);
        let leases = random.random_range(2.0..3.0);
        let (lasts, begins, ends) = match kind {
            Kind::Kill => (Duration::from_secs(1), Action::Kill(server), Some(Action::Start(server))),
            Kind::Stop => (lease.mul_f64(leases), Action::Stop(server), Some(Action::Continue(server))),
            Kind::Drain => (Duration::from_secs(2), Action::Drain(server), Some(Action::Start(server))),
            Kind::Database => {
                let crash = random.random_bool(0.5);
                (Duration::from_millis(700), Action::StopDatabase { crash }, Some(Action::StartDatabase))
            }
            Kind::Withdraw => (Duration::from_secs(2), Action::Withdraw(server), Some(Action::Declare(server))),
            Kind::Crowd => (Duration::from_secs(2), Action::Crowd(server), Some(Action::Relieve(server))),
            Kind::Cut => (Duration::ZERO, Action::Cut(server), None),
            Kind::Silence => {
                let way = [Silent::ToDatabase, Silent::FromDatabase, Silent::Both][random.random_range(0..3)];
                (lease.mul_f64(leases), Action::Silence(server, way), Some(Action::Resume(server)))
            }
        };
        let busy = if kind == Kind::Database { &mut database_free_at } else { &mut free_at[server] };
        if *busy <= at && at + lasts < length {
            *busy = at + lasts + Duration::from_millis(500);
            actions.push((at, begins));
            actions.extend(ends.map(|ends| (at + lasts, ends)));
        }
        at += every.mul_f64(random.random_range(0.5..1.5));
    }
    actions.sort_by_key(|(at, _)| *at);
    actions
}

/// The hook that gets another number of slots, and how many, again and again: half or twice of what it began with, drawn
/// from a seed.
pub(crate) fn slot_changes(seed: u64, slots: u32, every: Duration, length: Duration) -> Vec<(Duration, Action)> {
    let mut random = StdRng::seed_from_u64(!seed);
    let mut changes = Vec::new();
    let mut counts = [slots; 2];
    let mut at = every;
    while at < length {
        let hook = random.random_range(0..counts.len());
        let others = [slots / 2, slots, slots * 2].into_iter().filter(|count| *count != counts[hook]);
        counts[hook] = others.collect::<Vec<_>>()[random.random_range(0..2)];
        changes.push((at, Action::Slots { hook, count: counts[hook] }));
        at += every;
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_and_stops_of_a_plan_are_aimed_and_nothing_else_of_it_changes() {
        let every = Duration::from_secs(2);
        let plain = plan(7, &Kind::ALL, 3, every, every, Duration::from_secs(600));
        let mut hit = plain.clone();
        aimed(7, &mut hit);
        for ((at, before), (aimed_at, after)) in plain.iter().zip(&hit) {
            assert_eq!(at, aimed_at);
            match (before, after) {
                (Action::Kill(server), Action::Hit(of, HitAt { hit: Hit::Kill, .. }))
                | (Action::Stop(server), Action::Hit(of, HitAt { hit: Hit::Stop, .. })) => assert_eq!(server, of),
                (before, after) => assert_eq!(before, after),
            }
        }
        assert!(hit.iter().any(|(_, action)| matches!(action, Action::Hit(..))));
    }

    #[test]
    fn a_seed_gives_one_plan_whose_faults_all_end() {
        let draw =
            |seed| plan(seed, &Kind::ALL, 3, Duration::from_secs(2), Duration::from_secs(3), Duration::from_secs(300));
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        for seed in 0..50 {
            let mut open = 0_i32;
            for (at, action) in draw(seed) {
                assert!(at < Duration::from_secs(300));
                match action {
                    Action::Cut(_) => {}
                    action if action.is_fault() => open += 1,
                    _ => open -= 1,
                }
            }
            assert_eq!(open, 0, "seed {seed}");
        }
    }
}
