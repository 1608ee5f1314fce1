//! What a run is made of.

use std::path::PathBuf;
use std::time::Duration;

use super::plan::Kind;
use super::serving::Serving;

/// A kind of fault that runs of the whole system alone know, from the same settings.
const ELSEWHERE: &str = "client";

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
        Settings {
            seconds: number("TIDEGATE_FAULTS_SECONDS").unwrap_or(15),
            servers: usize::try_from(number("TIDEGATE_FAULTS_SERVERS").unwrap_or(3)).unwrap(),
            seed: number("TIDEGATE_FAULTS_SEED").unwrap_or_else(rand::random),
            kinds,
            every: Duration::from_millis(number("TIDEGATE_FAULTS_EVERY_MS").unwrap_or(3_000)),
            lease: Duration::from_secs(3),
            folder: std::env::var_os("TIDEGATE_FAULTS_FOLDER").filter(|folder| !folder.is_empty()).map(PathBuf::from),
            writers: 4,
            towers: 0,
            rounds: number("TIDEGATE_FAULTS_ROUNDS").unwrap_or(6),
            long: std::env::var("TIDEGATE_FAULTS_LONG").is_ok_and(|long| long == "yes"),
            serving: Serving::default(),
            begin_with: None,
        }
    }

    /// A short run in which nothing goes wrong.
    pub(crate) fn without_faults(self) -> Settings {
        self.of("without-faults", &[], 6)
    }

    /// A short run with faults of one kind alone; its logs lie in a folder of its own.
    pub(crate) fn with_only(self, name: &str, kind: Kind) -> Settings {
        self.of(name, &[kind], 12)
    }

    /// A run in which nobody writes but when told to; leases are short, so that the dead are not waited for long.
    pub(crate) fn in_rounds(self) -> Settings {
        Settings { writers: 0, lease: Duration::from_millis(2_400), ..self.of("rounds", &[], 0) }
    }

    /// A short run in which towers are played and servers are killed.
    pub(crate) fn with_towers(self) -> Settings {
        Settings { writers: 0, towers: 4, ..self.of("towers", &[Kind::Kill], 12) }
    }

    /// A run of its own plan, with three servers at least.
    pub(crate) fn planned(self, name: &str) -> Settings {
        let servers = self.servers.max(3);
        Settings { servers, ..self.of(name, &[], 0) }
    }

    fn of(mut self, name: &str, kinds: &[Kind], seconds: u64) -> Settings {
        self.kinds = kinds.to_vec();
        self.seconds = self.seconds.min(seconds);
        self.folder = self.folder.map(|folder| folder.join(name));
        self
    }
}
