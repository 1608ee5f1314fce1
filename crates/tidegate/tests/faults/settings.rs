//! What a run is made of.

use std::path::PathBuf;
use std::time::Duration;

use super::plan::{Kind, Shape};

/// Regions of a run, in the order in which they swap.
const REGIONS: [&str; 3] = ["a", "b", "c"];

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
            Err(_) => Kind::ALL.map(|(_, kind)| kind).to_vec(),
        };
        let servers = usize::try_from(number("TIDEGATE_FAULTS_SERVERS").unwrap_or(2)).unwrap();
        assert!(servers > 0, "a run needs a server");
        Settings {
            seconds: number("TIDEGATE_FAULTS_SECONDS").unwrap_or(15),
            servers,
            seed: number("TIDEGATE_FAULTS_SEED").unwrap_or_else(rand::random),
            kinds,
            every: Duration::from_millis(number("TIDEGATE_FAULTS_EVERY_MS").unwrap_or(1_500)),
            lease: Duration::from_secs(2),
            folder: std::env::var_os("TIDEGATE_FAULTS_FOLDER")
                .filter(|folder| !folder.is_empty())
                .map(|folder| PathBuf::from(folder).join("system")),
        }
    }

    /// The regions: as many as servers, two at least.
    pub(crate) fn regions(&self) -> &'static [&'static str] {
        &REGIONS[..self.servers.clamp(2, REGIONS.len())]
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape { servers: self.servers, regions: self.regions().len(), lease: self.lease }
    }
}
