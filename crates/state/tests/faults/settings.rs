//! What a run is made of.

use std::path::PathBuf;
use std::time::Duration;

use super::plan::Kind;
use super::serving::Serving;
use super::workload::LATEST;

/// A kind of fault that runs of the whole system alone know, from the same settings.
const ELSEWHERE: &str = "client";

/// How long log rows are kept where compaction has no rest.
const LOG_KEEP_MS: u64 = 1_000;
/// The cap of the hook that has one.
const CAP: u32 = 12;
/// So long after something joined or left slots are to be spread evenly; where leases have to run out, a lease later.
const SPREAD_WITHIN: Duration = Duration::from_secs(3);
/// A lease for runs in which the dead are waited for: not much longer than the lock limit allows.
pub(crate) const SHORT_LEASE: Duration = Duration::from_millis(2_400);
/// How long a run with faults of one kind is in its long form: ten thousand changes and more.
const LONG_SECONDS: u64 = 120;
/// How long the mixed run is in its long form, and how many rounds of everything's death there are: the figures of the cases.
const LONG_MIXED_SECONDS: u64 = 1_800;
const LONG_ROUNDS: u64 = 100;

/// The settings of a run.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) seconds: u64,
    pub(crate) servers: usize,
    pub(crate) seed: u64,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) every: Duration,
    pub(crate) lease: Duration,
    pub(crate) folder: Option<PathBuf>,
    /// How many writers each server has that never rest for long.
    pub(crate) writers: u64,
    /// How many towers are played.
    pub(crate) towers: u64,
    /// How many rounds are played in which everything dies.
    pub(crate) rounds: u64,
    /// Cases with figures of their own have those, and not a part of them.
    pub(crate) long: bool,
    pub(crate) serving: Serving,
    /// Some faults hit servers at named points of their work.
    pub(crate) aimed: bool,
    /// So long after something joined, left or went wrong slots are to be spread evenly; none where that is not looked at.
    pub(crate) spread_within: Option<Duration>,
    /// How many servers are up at first; none for all of them.
    pub(crate) begin_with: Option<usize>,
}

impl Settings {
    /// From the variables that the binary's documentation lists.
    pub(crate) fn from_environment() -> Settings {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
        let kinds = match std::env::var("TIDEGATE_FAULTS_KINDS").as_deref() {
            Ok("none") => Vec::new(),
            Ok(text) => {
                let words = text.split(',').filter(|word| *word != ELSEWHERE);
                words.map(|word| Kind::parse(word).unwrap_or_else(|| panic!("{word:?}"))).collect()
            }
            Err(_) => Kind::ALL.to_vec(),
        };
        let long = std::env::var("TIDEGATE_FAULTS_LONG").is_ok_and(|long| long == "yes");
        let of_the_case = |case: u64, short: u64| if long { case } else { short };
        Settings {
            seconds: number("TIDEGATE_FAULTS_SECONDS").unwrap_or(of_the_case(LONG_MIXED_SECONDS, 60)),
            servers: usize::try_from(number("TIDEGATE_FAULTS_SERVERS").unwrap_or(3)).unwrap(),
            seed: number("TIDEGATE_FAULTS_SEED").unwrap_or_else(rand::random),
            kinds,
            every: Duration::from_millis(number("TIDEGATE_FAULTS_EVERY_MS").unwrap_or(3_000)),
            lease: Duration::from_secs(3),
            folder: std::env::var_os("TIDEGATE_FAULTS_FOLDER").filter(|folder| !folder.is_empty()).map(PathBuf::from),
            writers: 4,
            towers: 0,
            rounds: number("TIDEGATE_FAULTS_ROUNDS").unwrap_or(of_the_case(LONG_ROUNDS, 6)),
            long,
            serving: Serving::default(),
            aimed: false,
            spread_within: None,
            begin_with: None,
        }
    }

    /// The mixed run, its logs where the settings say: some faults are aimed, and upkeep has no rest.
    pub(crate) fn mixed(self) -> Settings {
        let spread_within = Some(self.lease + SPREAD_WITHIN);
        Settings { aimed: true, spread_within, ..self.compacting() }
    }

    /// A run in which nothing goes wrong.
    pub(crate) fn without_faults(self) -> Settings {
        Settings { spread_within: Some(SPREAD_WITHIN), ..self.of("without-faults", &[], 6) }
    }

    /// A run in which servers are killed, some of them at points of their work, upkeep among it.
    pub(crate) fn with_kills(self) -> Settings {
        let killed = self.of("kills", &[Kind::Kill], 12);
        let spread_within = Some(killed.lease + SPREAD_WITHIN);
        Settings { aimed: true, spread_within, ..killed.compacting() }
    }

    /// A run in which nobody writes but when told to; leases are short, so that the dead are not waited for long.
    pub(crate) fn in_rounds(self) -> Settings {
        Settings { writers: 0, lease: SHORT_LEASE, ..self.of("rounds", &[], 0) }
    }

    /// A run in which towers are played and servers are killed.
    pub(crate) fn with_towers(self) -> Settings {
        Settings { writers: 0, towers: 4, ..self.of("towers", &[Kind::Kill], 12) }
    }

    /// A run of its own plan, with three servers at least.
    pub(crate) fn planned(self, name: &str) -> Settings {
        let servers = self.servers.max(3);
        Settings { servers, ..self.of(name, &[], 0) }
    }

    /// The log is kept for seconds only, and records beside the effects as well: compaction and pruning are due throughout,
    /// by all servers. And one hook has a cap in the cluster.
    pub(crate) fn compacting(mut self) -> Settings {
        self.serving.log_keep_ms = Some(LOG_KEEP_MS);
        self.serving.traces = true;
        for hook in self.serving.hooks.iter_mut().filter(|hook| hook.name == LATEST) {
            hook.cap = Some(CAP);
        }
        self
    }

    /// A run of faults of these kinds alone, so short unless cases have figures of their own; its logs lie in a folder of its
    /// own.
    fn of(mut self, name: &str, kinds: &[Kind], seconds: u64) -> Settings {
        self.kinds = kinds.to_vec();
        self.seconds = if self.long { LONG_SECONDS } else { self.seconds.min(seconds) };
        self.folder = self.folder.map(|folder| folder.join(name));
        self
    }
}
