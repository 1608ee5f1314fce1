//! What a run is made of.

use std::path::PathBuf;
use std::time::Duration;

use super::plan::Kind;

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
}

impl Settings {
    /// From the variables that the binary's documentation lists.
    pub(crate) fn from_environment() -> Settings {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
        let kinds = match std::env::var("TIDEGATE_FAULTS_KINDS").as_deref() {
            Ok("none") => Vec::new(),
            Ok(text) => text.split(',').map(|word| Kind::parse(word).unwrap_or_else(|| panic!("{word:?}"))).collect(),
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

    fn of(mut self, name: &str, kinds: &[Kind], seconds: u64) -> Settings {
        self.kinds = kinds.to_vec();
        self.seconds = self.seconds.min(seconds);
        self.folder = self.folder.map(|folder| folder.join(name));
        self
    }
}
