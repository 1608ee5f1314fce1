//! One run: starts everything, injects what the plan says while versions are pushed and read, lets it come to rest, pushes
//! once more, and judges what was left behind.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tidegate_api::{LimitsPatch, RegionView, StoreCreate, StorePatch};
use tidegate_client::Client;
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::evidence::{Evidence, Intent, Rest, STORE, facts};
use super::fleet::{Fleet, PROBE, SCHEMA};
use super::guarantees::Guarantees;
use super::plan::{Fault, Part, plan};
use super::process::{PATIENCE, POLL};
use super::pushes::Pusher;
use super::readers::Reader;
use super::settings::Settings;
use super::verdict::{Verdict, judge};

/// A push whose client is silent for longer than this ends.
const SILENCE_MS: u64 = 4_000;

/// How many violations are printed.
const PRINTED: usize = 30;

/// What a run did and found.
pub(crate) struct Report {
    /// By the name of a fault: how long what was hit took to work again, each time.
    pub(crate) faults: BTreeMap<String, Vec<Option<Duration>>>,
    /// From the end of the last fault until every region served what it was told.
    pub(crate) rested_within: Duration,
    /// How often a push client ended without having seen its push end, unkilled.
    pub(crate) given_up: usize,
    pub(crate) verdict: Verdict,
    pub(crate) guarantees: Guarantees,
}

/// Makes a run and judges it.
pub(crate) async fn run(settings: &Settings) -> Report {
    let temporary = tempfile::tempdir().unwrap();
    let folder = settings.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder).unwrap();
    let fleet = Arc::new(Fleet::start(settings, &folder).await);
    let readers: Vec<Reader> =
        fleet.place_urls().into_iter().enumerate().map(|(place, url)| Reader::new(place, url)).collect();
    let clients: Vec<Client> = (0..settings.servers).map(|server| fleet.client(server)).collect();
    create_stores(&clients[0]).await;
    fleet.start_all(|part| !matches!(part, Part::Server(_))).await;
    let mut pusher = Pusher::new(Arc::clone(&fleet), folder.clone(), settings.seed);
    // There is a way back from the first push under faults, too.
    pusher.push(Intent::Complete).await.unwrap();
    at_rest(&clients, &readers).await.expect("everything serves the first version");

    let stop_reading = CancellationToken::new();
    let mut reading = JoinSet::new();
    for reader in readers.clone() {
        reading.spawn(reader.read_on(stop_reading.clone()));
    }
    let stop_pushing = CancellationToken::new();
    let told_to_stop = stop_pushing.clone();
    let pushing = tokio::spawn(async move {
        let pushed = pusher.push_on(&told_to_stop).await;
        (pusher, pushed)
    });
    let (faults, mut trouble) = inject(&fleet, settings).await;
    let stopped = Instant::now();
    stop_pushing.cancel();
    let (mut pusher, pushed) = pushing.await.unwrap();
    trouble.extend(pushed.err());
    trouble.extend(at_rest(&clients, &readers).await.err());
    let rested_within = stopped.elapsed();
    let next = pusher.push(Intent::Complete).await;
    trouble.extend(at_rest(&clients, &readers).await.err());

    let mut rest = Rest { trouble, ..Rest::default() };
    match next {
        Ok(next) => rest.next = next,
        Err(why) => rest.trouble.push(why),
    }
    if let Ok(regions) = clients[0].regions().await {
        let serving = |region: &RegionView| region.stores.get(STORE).and_then(|store| store.serving);
        rest.reported = regions.iter().map(|region| (region.name.clone(), serving(region))).collect();
    }
    for (place, reader) in readers.iter().enumerate() {
        rest.answered.insert(place, reader.version().await);
    }
    stop_reading.cancel();
    let mut reads = Vec::new();
    while let Some(read) = reading.join_next().await {
        reads.extend(read.unwrap());
    }
    rest.trouble.extend(fleet.leave().await);

    let store = PostgresStore::new(&fleet.database_url().await, PostgresOptions::in_schema(SCHEMA)).unwrap();
    let stored = store.driver().stored().await.unwrap();
    let evidence = Evidence {
        places: fleet.places().to_vec(),
        reads,
        downtimes: fleet.downtimes(),
        pushed: pusher.pushed,
        facts: facts(&stored),
        rest,
    };
    let verdict = judge(&evidence);
    let guarantees = Guarantees::judge(&folder, settings.servers, &stored);
    if !verdict.violations.is_empty() || !guarantees.violations.is_empty() {
        // What would have to be looked at outlives the run.
        let log: String = evidence.facts.iter().fold(String::new(), |mut text, fact| {
            writeln!(text, "{} {:?}", fact.at, fact.what).unwrap();
            text
        });
        std::fs::write(folder.join("facts"), log).unwrap();
        let kept = temporary.keep();
        println!("the logs are in {}", settings.folder.as_ref().unwrap_or(&kept).display());
    }
    Report { faults, rested_within, given_up: pusher.given_up, verdict, guarantees }
}

async fn create_stores(client: &Client) {
    for name in [STORE, PROBE] {
        let limits = LimitsPatch { silence_ms: Some(SILENCE_MS), ..LimitsPatch::default() };
        let settings = StorePatch { limits: Some(limits), ..StorePatch::default() };
        let key_columns = vec!["id".to_owned()];
        let store = StoreCreate { name: name.to_owned(), key_columns, settings, ..StoreCreate::default() };
        client.create_store(&store).await.unwrap();
    }
}

/// Injects what the plan says, each fault in a task of its own; ends once all that was hit works again.
async fn inject(fleet: &Arc<Fleet>, settings: &Settings) -> (BTreeMap<String, Vec<Option<Duration>>>, Vec<String>) {
    let length = Duration::from_secs(settings.seconds);
    let begun = Instant::now();
    let mut going: JoinSet<(Fault, Result<Option<Duration>, String>)> = JoinSet::new();
    for (at, fault) in plan(settings.seed, &settings.kinds, settings.shape(), settings.every, length) {
        tokio::time::sleep_until(begun + at).await;
        let fleet = Arc::clone(fleet);
        going.spawn(async move { (fault, fleet.inflict(fault).await) });
    }
    tokio::time::sleep_until(begun + length).await;
    let (mut faults, mut trouble): (BTreeMap<String, Vec<_>>, _) = (BTreeMap::new(), Vec::new());
    while let Some(ended) = going.join_next().await {
        let (fault, recovered) = ended.unwrap();
        let times = faults.entry(fault.name()).or_default();
        match recovered {
            Ok(within) => times.push(within),
            Err(why) => {
                times.push(None);
                trouble.push(format!("after {}: {why}", fault.name()));
            }
        }
    }
    (faults, trouble)
}

/// Waits until every region reports, to every server, that it serves what it was told, and every place answers with that.
async fn at_rest(clients: &[Client], readers: &[Reader]) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let unrest = match unrest(clients, readers).await {
            None => return Ok(()),
            Some(unrest) => unrest,
        };
        if Instant::now() > until {
            return Err(format!("not at rest within {PATIENCE:?}: {unrest}"));
        }
        tokio::time::sleep(POLL * 5).await;
    }
}

async fn unrest(clients: &[Client], readers: &[Reader]) -> Option<String> {
    let mut told = BTreeMap::new();
    for (number, client) in clients.iter().enumerate() {
        let regions = match client.regions().await {
            Ok(regions) => regions,
            Err(error) => return Some(format!("server-{number}: {error}")),
        };
        for region in regions {
            let store = region.stores.get(STORE).cloned().unwrap_or_default();
            if store.told_to_serve.is_none() || store.told_to_serve != store.serving || !store.lagging_nodes.is_empty()
            {
                return Some(format!("server-{number} says of {}: {store:?}", region.name));
            }
            told.insert(region.name, store.told_to_serve);
        }
    }
    let versions: std::collections::BTreeSet<Option<u64>> = told.into_values().collect();
    for reader in readers {
        let version = reader.version().await;
        if version.is_none() || !versions.contains(&version) {
            return Some(format!("{reader:?} answers {version:?}, told are {versions:?}"));
        }
    }
    None
}

impl Report {
    /// The table, and the first violations.
    pub(crate) fn text(&self) -> String {
        let seconds =
            |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()));
        let mut text = String::from("| fault | injected | recovered within, half of them | all |\n|---|---|---|---|\n");
        for (name, times) in &self.faults {
            let mut known: Vec<Duration> = times.iter().flatten().copied().collect();
            known.sort_unstable();
            let half = known.get(known.len() / 2).copied();
            writeln!(text, "| {name} | {} | {} | {} |", times.len(), seconds(half), seconds(known.last().copied()))
                .unwrap();
        }
        let verdict = &self.verdict;
        let ended: Vec<String> =
            verdict.ended.iter().map(|(status, count)| format!("{count} {}", status.word())).collect();
        writeln!(text, "\npushes: {}; {} clients gave up and were started again", ended.join(", "), self.given_up)
            .unwrap();
        writeln!(
            text,
            "reads: {} made, {} failed at a place that was down, {} at one that was up",
            verdict.reads, verdict.excused, verdict.failed
        )
        .unwrap();
        writeln!(text, "at rest within {} of the last fault's end", seconds(Some(self.rested_within))).unwrap();
        let Guarantees { runs, repeated, violations } = &self.guarantees;
        writeln!(
            text,
            "runs of cluster hooks: {runs}, {repeated} of them repeated; guarantees violated: {}",
            violations.len()
        )
        .unwrap();
        for violation in violations.iter().take(PRINTED) {
            writeln!(text, "  {violation}").unwrap();
        }
        writeln!(text, "violations: {}", verdict.violations.len()).unwrap();
        for violation in verdict.violations.iter().take(PRINTED) {
            writeln!(text, "  {violation}").unwrap();
        }
        text
    }
}
