//! Regions and what they hold and serve.

use std::collections::BTreeMap;

use tidegate_api::{ExecutionStatus, HeldVersionView, PinView, Progress, RegionStoreView, RegionView};
use tidegate_rollout::entities::{
    Assignment, Availability, HeldReport, IngestionStatus, PastPin, Pin, Region, RegionHosting, Report,
};
use tidegate_rollout::region::hosting;
use tidegate_state::Ref;

use super::{Scene, ms, words};
use crate::http::errors::{ApiError, ApiResult};

impl Scene<'_> {
    /// All regions, in order of their names.
    pub(crate) fn regions(&self) -> ApiResult<Vec<RegionView>> {
        self.snapshot
            .roots::<Region>()
            .map(|item| {
                let (reference, region) = item?;
                self.region_view(&reference, region)
            })
            .collect()
    }

    /// The names of all regions.
    pub(crate) fn region_names(&self) -> ApiResult<Vec<String>> {
        let regions = self.snapshot.roots::<Region>();
        regions.map(|item| Ok(item?.0.id())).collect()
    }

    /// A region by its name.
    pub(crate) fn region(&self, name: &str) -> ApiResult<RegionView> {
        let reference = Ref::<Region>::root(name).ok();
        let region = match &reference {
            Some(reference) => self.snapshot.get(reference)?.map(|region| (reference, region)),
            None => None,
        };
        match region {
            Some((reference, region)) => self.region_view(reference, region),
            None => Err(ApiError::region_unknown(name, &self.region_names()?)),
        }
    }

    fn region_view(&self, reference: &Ref<Region>, region: &Region) -> ApiResult<RegionView> {
        let mut stores: BTreeMap<String, RegionStoreView> = BTreeMap::new();
        for item in self.snapshot.children::<Assignment>(reference) {
            let (assignment, value) = item?;
            let view = stores.entry(assignment.id()).or_default();
            view.told_to_serve = value.serve;
            view.told_to_hold = value.hold.keys().copied().collect();
        }
        for item in self.snapshot.children::<Report>(reference) {
            let (report, value) = item?;
            let view = stores.entry(report.id()).or_default();
            view.serving = value.serving;
            view.serving_since = value.serving_since.map(ms);
            view.lagging_nodes.clone_from(&value.lagging_nodes);
            view.heard_at = Some(ms(value.at));
            view.pin = value.pin.as_ref().map(pin_view);
            view.past_pins = value.past_pins.iter().map(past_pin_view).collect();
            view.held = value.versions.iter().map(|(version, held)| (*version, held_view(held))).collect();
        }
        let host = reference.child::<RegionHosting>(RegionHosting::ID).map_err(ApiError::internal)?;
        let host = self.snapshot.get(&host)?.map(|host| hosting::view(host, self.now));
        let (available, reason, by, since) = match &region.availability {
            Availability::Available => (true, None, None, None),
            Availability::Unavailable { reason, by, since } => {
                (false, Some(reason.clone()), Some(by.clone()), Some(ms(*since)))
            }
        };
        Ok(RegionView {
            name: reference.id(),
            nodes: region.nodes,
            enough: region.enough,
            shares_source: region.shares_source,
            agent: region.agent,
            host,
            available,
            reason,
            by,
            since,
            stores,
        })
    }
}

pub(crate) fn pin_view(pin: &Pin) -> PinView {
    PinView {
        version: pin.version,
        reason: pin.reason.clone(),
        by: pin.by.clone(),
        at: ms(pin.at),
        ended_at: None,
        ended: None,
    }
}

pub(crate) fn past_pin_view(past: &PastPin) -> PinView {
    PinView { ended_at: Some(ms(past.ended_at)), ended: Some(past.ended.clone()), ..pin_view(&past.pin) }
}

fn held_view(held: &HeldReport) -> HeldVersionView {
    let (status, progress, message) = match &held.status {
        IngestionStatus::Started => (ExecutionStatus::Started, None, None),
        IngestionStatus::Progress { bytes, of } => {
            let progress = Progress { bytes: *bytes, of: Some(*of) };
            (ExecutionStatus::Progress, Some(progress), None)
        }
        IngestionStatus::Completed => (ExecutionStatus::Completed, None, None),
        IngestionStatus::Failed { kind, message } => {
            let message = format!("{}: {message}", words::failure_kind(*kind));
            (ExecutionStatus::Error, None, Some(message))
        }
    };
    HeldVersionView { status, since: ms(held.since), progress, message: message.or_else(|| held.retrying.clone()) }
}
