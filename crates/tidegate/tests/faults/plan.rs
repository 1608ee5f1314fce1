//! Which faults happen when: a value, drawn from a seed, that a second run repeats.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A kind of fault, by the word in the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `kill -9` of a server, an agent or a node, and a start a second later.
    Kill,
    /// SIGSTOP for two to three leases, then SIGCONT.
    Stop,
    /// SIGTERM, and a start once it has left.
    Drain,
    /// The database is stopped, in order or as in a crash, and started again.
    Database,
    /// All connections of a server to the database, or of an agent to the servers, are closed.
    Cut,
    /// What goes over them vanishes, one way or both, and nothing is closed.
    Silence,
    /// `kill -9` of the push client, which is started again with the same push.
    Client,
}

impl Kind {
    pub(crate) const ALL: [(&str, Kind); 7] = [
        ("kill", Kind::Kill),
        ("stop", Kind::Stop),
        ("drain", Kind::Drain),
        ("database", Kind::Database),
        ("cut", Kind::Cut),
        ("silence", Kind::Silence),
        ("client", Kind::Client),
    ];

    pub(crate) fn parse(word: &str) -> Option<Kind> {
        Kind::ALL.iter().find(|(known, _)| *known == word).map(|(_, kind)| *kind)
    }
}

/// A process of a run, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Server(usize),
    Agent(usize),
    Node(usize),
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Part::Server(_) => "server",
            Part::Agent(_) => "agent",
            Part::Node(_) => "node",
        }
    }
}

/// Which way packets vanish, as the one who connects sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silent {
    Sent,
    Received,
    Both,
}

/// One thing that is done, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill { part: Part, dead: Duration },
    Stop { part: Part, stopped: Duration },
    Drain { part: Part },
    Database { crash: bool, down: Duration },
    Cut { part: Part },
    Silence { part: Part, way: Silent, silent: Duration },
    Client,
}

impl Fault {
    /// What the table of a run calls it.
    pub(crate) fn name(self) -> String {
        match self {
            Fault::Kill { part, .. } => format!("{} killed", part.word()),
            Fault::Stop { part, .. } => format!("{} stopped past its lease", part.word()),
            Fault::Drain { part } => format!("{} restarted", part.word()),
            Fault::Database { crash: true, .. } => "database crashed".to_owned(),
            Fault::Database { crash: false, .. } => "database restarted".to_owned(),
            Fault::Cut { part } => format!("{} cut off", part.word()),
            Fault::Silence { part, .. } => format!("{} half-open", part.word()),
            Fault::Client => "push client killed".to_owned(),
        }
    }
}

/// What there is to be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) servers: usize,
    pub(crate) regions: usize,
    pub(crate) lease: Duration,
}

/// What begins when, in order. Two faults may meet on one part: the later one waits there until the first is over.
pub(crate) fn plan(
    seed: u64,
    kinds: &[Kind],
    shape: Shape,
    every: Duration,
    length: Duration,
) -> Vec<(Duration, Fault)> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut faults = Vec::new();
    let mut at = every.mul_f64(0.5);
    while !kinds.is_empty() && at < length {
        let kind = kinds[random.random_range(0..kinds.len())];
        let server = Part::Server(random.random_range(0..shape.servers));
        let (agent, node) = (random.random_range(0..shape.regions), random.random_range(0..shape.regions));
        let any = [server, Part::Agent(agent), Part::Node(node)][random.random_range(0..3)];
        let linked = [server, Part::Agent(agent)][random.random_range(0..2)];
        let leases = shape.lease.mul_f64(random.random_range(2.0..3.0));
        let way = [Silent::Sent, Silent::Received, Silent::Both][random.random_range(0..3)];
        let crash = random.random_bool(0.5);
        faults.push((
            at,
            match kind {
                Kind::Kill => Fault::Kill { part: any, dead: Duration::from_secs(1) },
                Kind::Stop => Fault::Stop { part: any, stopped: leases },
                Kind::Drain => Fault::Drain { part: any },
                Kind::Database => Fault::Database { crash, down: Duration::from_millis(700) },
                Kind::Cut => Fault::Cut { part: linked },
                Kind::Silence => Fault::Silence { part: linked, way, silent: leases },
                Kind::Client => Fault::Client,
            },
        ));
        at += every.mul_f64(random.random_range(0.5..1.5));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_plan_with_every_kind_in_it() {
        let shape = Shape { servers: 3, regions: 2, lease: Duration::from_secs(2) };
        let kinds = Kind::ALL.map(|(_, kind)| kind);
        let draw = |seed| plan(seed, &kinds, shape, Duration::from_secs(1), Duration::from_secs(300));
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let names: std::collections::BTreeSet<String> = draw(7).iter().map(|(_, fault)| fault.name()).collect();
        assert_eq!(names.len(), 16, "{names:?}");
        assert!(draw(7).is_sorted_by_key(|(at, _)| *at));
    }
}
