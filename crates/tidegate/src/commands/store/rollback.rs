//! `tidegate store rollback`: the order, and with `--watch` following it until every region serves what it goes back to.
//!
//! The order is the server's; what is followed is what each region is told to serve and what it serves.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_api::{RegionStoreView, RegionView, RollbackAnswer, RollbackRequest};
use tidegate_client::{Client, Error as ClientError};
use tokio::time::Instant;

use crate::arguments::RollbackArguments;
use crate::commands::confirm;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, elapsed, moment, plain, say};

/// How often it is looked whether the regions are there.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// In how many looks in a row a region has to be found not to come: another server may be a moment behind the one that took
/// the order.
const LOOKS_SURE: u32 = 8;

pub(super) async fn run(arguments: RollbackArguments, client: &Client, output: Output) -> Result<Exit, Failure> {
    let RollbackArguments { name, region, to, reason, watch, timeout, yes } = arguments;
    let place = region.as_deref().map_or("all regions".to_owned(), |region| format!("region {region}"));
    let target = to.map_or("what was served before".to_owned(), |version| format!("version {version}"));
    confirm(&format!("Roll {} back in {place} to {target}?", plain(&name)), yes)?;
    let started = Instant::now();
    let client = &timeout.map_or_else(|| client.clone(), |limit| client.with_patience(limit));
    let answer = client.roll_back_store(&name, &RollbackRequest { region, version: to, reason }).await?;
    if !watch {
        output.result(&answer, |answer, style| ordered(answer, style).concat())?;
        return Ok(Exit::Done);
    }
    if !output.is_json() {
        ordered(&answer, output.error_style).iter().for_each(|line| say(line.trim_end()));
    }
    let limit = match timeout {
        Some(limit) => Limit::Given(limit),
        None => Limit::Store(Duration::from_millis(client.store(&name).await?.limits.confirmation_ms)),
    };
    let mut following = Following { store: name, targets: answer.regions, known: BTreeMap::new(), output };
    let done = tokio::select! {
        done = tokio::time::timeout_at(started + limit.duration(), following.run(client)) => done,
        Ok(()) = tokio::signal::ctrl_c() => return Err(following.interrupted()),
    };
    match done {
        Ok(followed) => followed?,
        Err(_) => return following.timed_out(limit),
    }
    following.end()
}

/// What limits the following.
#[derive(Debug, Clone, Copy)]
enum Limit {
    /// `--timeout`.
    Given(Duration),
    /// The store's limit on the confirmation of a rollback.
    Store(Duration),
}

impl Limit {
    fn duration(self) -> Duration {
        match self {
            Limit::Given(limit) | Limit::Store(limit) => limit,
        }
    }
}

/// How a region stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// It serves what it goes back to.
    There,
    /// It does not yet, and why where that is known.
    OnItsWay(Option<String>),
    /// It will not, unless somebody does something.
    Never(String),
}

/// How a region stands that is to serve this version. Pure.
fn standing(region: Option<&RegionView>, store: &str, target: Option<u64>) -> Standing {
    let Some(region) = region else { return Standing::Never("is no region any more".to_owned()) };
    let Some(state) = region.stores.get(store) else {
        return Standing::Never("has nothing to do with the store any more".to_owned());
    };
    if state.serving == target {
        return Standing::There;
    }
    if let Some(pin) = &state.pin
        && Some(pin.version) != target
    {
        return Standing::Never(format!(
            "is pinned to version {} by {}: {}",
            pin.version,
            plain(&pin.by),
            plain(&pin.reason)
        ));
    }
    if state.told_to_serve != target {
        return Standing::Never(format!("was told to serve {} since", version(state.told_to_serve)));
    }
    Standing::OnItsWay(hindrance(region, state, target))
}

/// What keeps a region from serving what it is told to.
fn hindrance(region: &RegionView, state: &RegionStoreView, target: Option<u64>) -> Option<String> {
    match &region.host {
        None => return Some("waits: nobody hosts it".to_owned()),
        Some(host) if host.lapsed => return Some(format!("waits: nobody hosts it since {}", moment(host.until))),
        Some(_) => {}
    }
    let held = state.held.get(&target?)?;
    let message = held.message.as_ref()?;
    Some(format!("waits: {} of version {}: {}", held.status.word(), version(target), plain(message)))
}

/// A line for each region that was told.
fn ordered(answer: &RollbackAnswer, style: Style) -> Vec<String> {
    let line = |(region, target): (&String, &Option<u64>)| {
        format!("{} {} goes back to {}\n", style.mark(Paint::Good), plain(region), version(*target))
    };
    answer.regions.iter().map(line).collect()
}

fn version(version: Option<u64>) -> String {
    version.map_or("no version".to_owned(), |version| format!("version {version}"))
}

/// A rollback that is followed.
struct Following {
    store: String,
    targets: BTreeMap<String, Option<u64>>,
    /// How each region stands, as it was told last.
    known: BTreeMap<String, Standing>,
    output: Output,
}

impl Following {
    /// Until each region is there or never will be.
    async fn run(&mut self, client: &Client) -> Result<(), ClientError> {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks_settled = 0;
        loop {
            looks.tick().await;
            let regions = client.regions().await?;
            for (name, target) in &self.targets {
                let region = regions.iter().find(|region| region.name == *name);
                let now = standing(region, &self.store, *target);
                if self.known.get(name) != Some(&now) {
                    tell(name, &now, self.output);
                    self.known.insert(name.clone(), now);
                }
            }
            let is = |wanted: fn(&Standing) -> bool| self.known.values().all(wanted);
            if is(|standing| *standing == Standing::There) {
                return Ok(());
            }
            looks_settled =
                if is(|standing| !matches!(standing, Standing::OnItsWay(_))) { looks_settled + 1 } else { 0 };
            if looks_settled >= LOOKS_SURE {
                return Ok(());
            }
        }
    }

    /// `c serves not yet what it goes back to, …`, of regions that are not there.
    fn missing(&self) -> String {
        let of = |name: &String| match self.known.get(name) {
            Some(Standing::There) => None,
            Some(Standing::OnItsWay(Some(why)) | Standing::Never(why)) => Some(format!("{} {why}", plain(name))),
            Some(Standing::OnItsWay(None)) | None => Some(format!("{} is on its way", plain(name))),
        };
        self.targets.keys().filter_map(of).collect::<Vec<_>>().join(", ")
    }

    fn end(self) -> Result<Exit, Failure> {
        if self.known.values().any(|standing| *standing != Standing::There) {
            return Err(Failure::new(
                format!("store {} did not go back everywhere", plain(&self.store)),
                self.missing(),
                "The other regions serve what they went back to.",
                "Mend what the text names; `tidegate region show REGION` says how a region is.",
            ));
        }
        let answer = RollbackAnswer { regions: self.targets };
        self.output.result(&answer, |answer, style| {
            let line = |(region, target): (&String, &Option<u64>)| {
                format!("{} {} serves {} again\n", style.mark(Paint::Good), plain(region), version(*target))
            };
            answer.regions.iter().map(line).collect()
        })?;
        Ok(Exit::Done)
    }

    fn timed_out(self, limit: Limit) -> Result<Exit, Failure> {
        let store = plain(&self.store);
        let time = elapsed(i64::try_from(limit.duration().as_millis()).unwrap_or(i64::MAX));
        let (what, exit) = match limit {
            Limit::Given(_) => ("within --timeout".to_owned(), Exit::PushTimedOut),
            Limit::Store(_) => (format!("within {time}, the store's limit on confirming a rollback"), Exit::Failed),
        };
        Err(Failure::new(
            format!("store {store} has not gone back {what}"),
            self.missing(),
            "The rollback goes on: a region goes back as soon as it can.",
            "`tidegate region show REGION` says how a region is, and `tidegate store show` what each serves.",
        )
        .with_exit(exit))
    }

    fn interrupted(&self) -> Failure {
        Failure::new(
            format!("the command was interrupted, and the rollback of {} was not", plain(&self.store)),
            "Ctrl-C ends the command alone.",
            "The rollback goes on.",
            "`tidegate region list` says what each region serves.",
        )
        .with_exit(Exit::Interrupted)
    }
}

fn tell(region: &str, standing: &Standing, output: Output) {
    if output.is_json() {
        return;
    }
    // The others are told at the end.
    if let Standing::OnItsWay(Some(why)) = standing {
        say(&format!("{} {} {why}", output.error_style.mark(Paint::Held), plain(region)));
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::PinView;

    use super::*;

    fn region(name: &str, told: u64, serving: u64) -> RegionView {
        let state = RegionStoreView { told_to_serve: Some(told), serving: Some(serving), ..RegionStoreView::default() };
        RegionView {
            name: name.to_owned(),
            nodes: 1,
            enough: 1,
            shares_source: false,
            agent: false,
            host: None,
            available: true,
            reason: None,
            by: None,
            since: None,
            stores: [("s".to_owned(), state)].into(),
        }
    }

    fn pinned(mut region: RegionView, version: u64) -> RegionView {
        let pin =
            PinView { version, by: "ada".to_owned(), at: 0, reason: "night".to_owned(), ended_at: None, ended: None };
        region.stores.entry("s".to_owned()).or_default().pin = Some(pin);
        region
    }

    #[test]
    fn b8_a_region_is_there_on_its_way_or_never_comes() {
        let stands = |region: &RegionView| standing(Some(region), "s", Some(1));
        assert_eq!(stands(&region("a", 1, 1)), Standing::There);
        assert!(matches!(stands(&region("a", 1, 2)), Standing::OnItsWay(Some(why)) if why.contains("nobody hosts it")));
        assert!(matches!(stands(&region("a", 3, 2)), Standing::Never(why) if why.contains("version 3")));
        assert!(matches!(stands(&pinned(region("a", 1, 2), 2)), Standing::Never(why) if why.contains("pinned")));
        assert_eq!(stands(&pinned(region("a", 1, 1), 1)), Standing::There);
        assert!(matches!(standing(None, "s", Some(1)), Standing::Never(_)));
        assert!(matches!(standing(Some(&region("a", 1, 2)), "other", Some(1)), Standing::Never(_)));
    }
}
