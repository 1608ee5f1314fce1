//! A push with everything that people want to see of it.

use std::collections::BTreeMap;

use tidegate_api::{
    ArtifactView, ClientView, EmbeddedCounts, GateStatus, GateView, Progress, PushRegionView, PushState, PushSummary,
    PushView, RegionFailure, RegionStage,
};
use tidegate_lifecycle::{Function, HooksConfiguration};
use tidegate_rollout::controller::{GateFacts, PushFacts, PushView as StoreFacts, gather};
use tidegate_rollout::entities::{
    BuildPhase, Call, Gate, IngestionStatus, Milestone, Push, PushName, RegionPush, RegionState, Store, VersionData,
    VersionManifest, VersionStatus,
};
use tidegate_rollout::job_status::region_job_status;
use tidegate_state::Ref;

use super::gate::gate_view;
use super::{Scene, explain, ms, words};
use crate::http::errors::{ApiError, ApiResult};

/// A push with all that is known about its store.
pub(crate) struct Found {
    pub(crate) id: String,
    pub(crate) reference: Ref<Push>,
    pub(crate) facts: StoreFacts,
}

impl Found {
    pub(crate) fn push(&self) -> &PushFacts {
        &self.facts.pushes[&self.id]
    }
}

impl Scene<'_> {
    /// Where a push is, by its id.
    pub(crate) fn push_reference(&self, id: &str) -> ApiResult<Ref<Push>> {
        let unknown = || ApiError::push_unknown(id);
        let name: Ref<PushName> = Ref::root(id).map_err(|_| unknown())?;
        let name = self.snapshot.get(&name)?.ok_or_else(unknown)?;
        let store: Ref<Store> = Ref::root(name.store.as_str())?;
        let push: Ref<Push> = store.child(id)?;
        if self.snapshot.contains(push.path()) { Ok(push) } else { Err(unknown()) }
    }

    /// Where a push is, in short.
    pub(crate) fn push_state(&self, id: &str) -> ApiResult<PushState> {
        let reference = self.push_reference(id)?;
        let push = self.snapshot.require(&reference)?;
        Ok(push_state(&reference, push))
    }

    /// A push with all that is known about its store, its gates included however long ago it
    /// ended.
    pub(crate) fn find_push(&self, id: &str) -> ApiResult<Found> {
        let reference = self.push_reference(id)?;
        let store = reference.parent::<Store>().id();
        let mut facts = gather(self.snapshot, self.registry, &store)
            .map_err(ApiError::internal)?
            .ok_or_else(|| ApiError::push_unknown(id))?;
        let push = facts.pushes.get_mut(id).ok_or_else(|| ApiError::push_unknown(id))?;
        if push.gates.is_empty() {
            push.gates = self.gates(&reference)?;
        }
        Ok(Found { id: id.to_owned(), reference, facts })
    }

    fn gates(&self, push: &Ref<Push>) -> ApiResult<BTreeMap<String, GateFacts>> {
        let mut gates = BTreeMap::new();
        for item in self.snapshot.children::<Gate>(push) {
            let (gate, value) = item?;
            let mut calls = BTreeMap::new();
            for item in self.snapshot.children::<Call>(&gate) {
                let (call, value) = item?;
                calls.insert(call.id(), value.clone());
            }
            gates.insert(gate.id(), GateFacts { gate: value.clone(), calls });
        }
        Ok(gates)
    }

    /// Everything about a push.
    pub(crate) fn push_view(&self, found: &Found) -> ApiResult<PushView> {
        let facts = &found.facts;
        let push = &found.push().push;
        let version = facts.versions.get(&push.version);
        let manifest = self.artifact(&found.reference, push)?;
        let mut gates: Vec<(Function, GateView)> = Vec::new();
        for gate in found.push().gates.values() {
            let view = gate_view(gate, &facts.hooks, push.end().is_some(), self.now);
            gates.push((gate.gate.state.function, view));
        }
        gates.sort_by_key(|(function, _)| order_of(*function));
        let of_region = |region: Option<&str>| {
            let gates = gates.iter().map(|(_, gate)| gate);
            let gates = gates.filter(|gate| gate.region.as_deref() == region);
            gates.cloned().collect::<Vec<_>>()
        };
        let mut regions: Vec<PushRegionView> = push
            .regions
            .iter()
            .map(|(name, region)| {
                let gates = of_region(Some(name));
                self.region_view_of(found, name, region, gates)
            })
            .collect();
        let order = self.region_order(facts)?;
        regions.sort_by_key(|region| {
            let place = order.iter().position(|name| *name == region.region);
            (place.unwrap_or(usize::MAX), region.region.clone())
        });
        Ok(PushView {
            state: push_state(&found.reference, push),
            pushed_by: push.pushed_by.clone(),
            attributes: push.attributes.clone(),
            now: ms(self.now),
            created_at: ms(push.created_at),
            completed_at: push.completed_at.map(ms),
            ended_at: push.end().map(|end| ms(end.at)),
            client: client_view(found.push()),
            artifact: manifest,
            version_status: version.map(|version| words::version_status(version.status)),
            gates: of_region(None),
            regions,
            holds: explain::hold_views(found, self.now),
        })
    }

    fn artifact(&self, reference: &Ref<Push>, push: &Push) -> ApiResult<Option<ArtifactView>> {
        let version = reference.parent::<Store>().child::<tidegate_rollout::entities::Version>(push.version)?;
        let manifest = version.child::<VersionManifest>(VersionManifest::ID)?;
        let manifest = self.snapshot.get(&manifest)?;
        Ok(manifest.map(|kept| ArtifactView {
            id: kept.manifest.artifact_id.clone(),
            records: kept.manifest.record_count,
            duplicates: kept.manifest.duplicate_count,
            parts: kept.manifest.parts.len() as u64,
            bytes: kept.manifest.bytes,
        }))
    }

    /// The order in which regions go, as far as one is set for the store: every name that the
    /// setting mentions, in its order.
    fn region_order(&self, facts: &StoreFacts) -> ApiResult<Vec<String>> {
        let configuration = self.snapshot.get(&HooksConfiguration::place())?;
        let settings =
            configuration.map(|configuration| configuration.merged("region-order", &facts.store.hook_overrides));
        let order = settings.as_ref().and_then(|settings| settings.get("order"));
        let Some(order) = order else {
            return Ok(Vec::new());
        };
        let mut places: Vec<(usize, String)> =
            facts.regions.keys().filter_map(|region| Some((place_of(order, region)?, region.clone()))).collect();
        places.sort();
        Ok(places.into_iter().map(|(_, region)| region).collect())
    }

    fn region_view_of(&self, found: &Found, name: &str, push: &RegionPush, gates: Vec<GateView>) -> PushRegionView {
        let facts = &found.facts;
        let version = found.push().push.version;
        let region = facts.regions.get(name);
        let report = region.and_then(|region| region.current_report(&facts.store));
        let job_status = region_job_status(facts, version, name, push, self.now);
        let status = facts.versions.get(&version).and_then(|version| version.regions.get(name));
        let mut times = times(push);
        if let Some(status) = status {
            let word = status_word(status.status);
            times.entry(word).or_insert(ms(status.at));
        }
        if let RegionState::Failed(failure) = &push.state {
            let word = job_status.word().to_owned();
            times.entry(word).or_insert(ms(failure.at));
        }
        let progress =
            region.and_then(|region| region.reported(&facts.store, version)).and_then(|status| match status {
                IngestionStatus::Progress { bytes, of } => Some(Progress { bytes: *bytes, of: Some(*of) }),
                _ => None,
            });
        let (failure, left_out) = match &push.state {
            RegionState::Failed(failure) => (
                Some(RegionFailure {
                    kind: words::failure_kind(failure.kind).to_owned(),
                    message: failure.message.clone(),
                }),
                None,
            ),
            RegionState::LeftOut { reason, .. } => (None, Some(reason.clone())),
            _ => (None, None),
        };
        let embedded = report.map_or_else(EmbeddedCounts::default, |report| {
            let counts = report.embedded.versions.get(&version).copied();
            let counts = counts.unwrap_or_default();
            EmbeddedCounts {
                alive: u64::from(report.embedded.live),
                ingested: u64::from(counts.ingested),
                serving: u64::from(counts.serving),
                dead: u64::from(report.embedded.dead),
            }
        });
        PushRegionView {
            region: name.to_owned(),
            stage: stage(found, push, &gates, &embedded),
            version_status: status.map(|status| words::version_status(status.status)),
            job_status,
            times,
            progress,
            failure,
            left_out,
            previous_version: push.previous,
            serving: report.and_then(|report| report.serving),
            serving_since: report.and_then(|report| report.serving_since).map(ms),
            heard_at: region.and_then(|region| region.heard_at()).map(ms),
            available: region.is_some_and(|region| region.region.availability.is_available()),
            lagging_nodes: report.map_or_else(Vec::new, |report| report.lagging_nodes.clone()),
            pin: report.and_then(|report| report.pin.as_ref()).map(super::region::pin_view),
            embedded,
            gates,
        }
    }

    /// Pushes, the newest first, of one store or of all.
    pub(crate) fn pushes(
        &self,
        store: Option<&str>,
        limit: usize,
        is_shown: impl Fn(&str) -> bool,
    ) -> ApiResult<Vec<PushSummary>> {
        if let Some(name) = store {
            self.find_store(name)?;
        }
        let mut pushes = Vec::new();
        for item in self.snapshot.roots::<PushName>() {
            let (id, name) = item?;
            // The name of a push whose store was deleted and made again is not yet free, and leads nowhere.
            let Ok(reference) = self.push_reference(&id.id()) else { continue };
            if store.is_none_or(|store| store == name.store) && is_shown(&name.store) {
                pushes.push(self.summary(&reference)?);
            }
        }
        let newest_first = |a: &PushSummary, b: &PushSummary| {
            b.created_at
                .cmp(&a.created_at)
                .then_with(|| (&b.state.store, &b.state.push).cmp(&(&a.state.store, &a.state.push)))
        };
        pushes.sort_by(newest_first);
        pushes.truncate(limit);
        Ok(pushes)
    }

    fn summary(&self, reference: &Ref<Push>) -> ApiResult<PushSummary> {
        if let Some(view) = self.later_push(reference) {
            let PushView { state, pushed_by, created_at, ended_at, .. } = view;
            return Ok(PushSummary { state, pushed_by, created_at, ended_at });
        }
        let push = self.snapshot.require(reference)?;
        Ok(PushSummary {
            state: push_state(reference, push),
            pushed_by: push.pushed_by.clone(),
            created_at: ms(push.created_at),
            ended_at: push.end().map(|end| ms(end.at)),
        })
    }
}

/// Where a push is, in short.
pub(crate) fn push_state(reference: &Ref<Push>, push: &Push) -> PushState {
    let end = push.end();
    PushState {
        push: reference.id(),
        store: reference.parent::<Store>().id(),
        version: Some(push.version),
        status: words::push_status(push.status()),
        phase: words::push_phase(&push.state),
        ended_by: end.and_then(|end| end.by).map(words::ended_by),
        reason: end.map(|end| end.reason.clone()).filter(|reason| !reason.is_empty()),
    }
}

fn client_view(facts: &PushFacts) -> Option<ClientView> {
    let client = facts.client.as_ref()?;
    if !facts.push.needs_client() {
        return None;
    }
    let told = &client.progress;
    let (bytes, of) = match told.phase {
        BuildPhase::Uploading | BuildPhase::Complete => (told.uploaded_bytes, told.uploaded_bytes_total),
        BuildPhase::Waiting | BuildPhase::Reading | BuildPhase::Building => (told.input_bytes, told.input_bytes_total),
    };
    Some(ClientView {
        phase: words::client_phase(told.phase),
        progress: (told.phase != BuildPhase::Waiting).then_some(Progress { bytes, of }),
        heard_at: ms(client.heard_at),
    })
}

fn stage(found: &Found, push: &RegionPush, gates: &[GateView], embedded: &EmbeddedCounts) -> RegionStage {
    match &push.state {
        RegionState::Waiting => {
            let version = found.facts.versions.get(&found.push().push.version);
            let complete = version.is_some_and(|version| matches!(version.data, VersionData::Complete { .. }));
            if complete { RegionStage::Creation } else { RegionStage::Waiting }
        }
        RegionState::Ingesting { .. } => RegionStage::Ingestion,
        RegionState::Ingested { .. } => {
            use Function::{
                PostStartOfStoreVersionIngestionForDaVinci, PreStartOfStoreVersionIngestionForDaVinci,
                PreStoreVersionSwap,
            };
            let of = |function: Function| gates.iter().filter(move |gate| gate.gate == function.short_name());
            let asked = of(PreStoreVersionSwap).next().is_some();
            let embedded_gate_waits = of(PreStartOfStoreVersionIngestionForDaVinci)
                .chain(of(PostStartOfStoreVersionIngestionForDaVinci))
                .any(|gate| gate.status != GateStatus::Open);
            if !asked && (embedded.alive > 0 || embedded_gate_waits) {
                RegionStage::Embedded
            } else {
                RegionStage::SwapGate
            }
        }
        RegionState::Swapping { .. } => RegionStage::Swapping,
        RegionState::Baking { .. } => RegionStage::Bake,
        RegionState::Done { .. } => RegionStage::Done,
        RegionState::GoingBack { .. } => RegionStage::GoingBack,
        RegionState::Failed(_) => RegionStage::Failed,
        RegionState::LeftOut { .. } => RegionStage::LeftOut,
        RegionState::Stopped { .. } => {
            if push.reached.contains_key(&Milestone::BackConfirmed) {
                RegionStage::WentBack
            } else {
                RegionStage::Stopped
            }
        }
    }
}

/// When each milestone was reached first, by the word of the status that it stands for.
fn times(push: &RegionPush) -> BTreeMap<String, u64> {
    let mut times = BTreeMap::new();
    for (milestone, at) in &push.reached {
        let words: &[&str] = match milestone {
            Milestone::Assigned => &["STARTED"],
            Milestone::Progress => &["PROGRESS"],
            Milestone::Ingested => &["COMPLETED", "PUSHED"],
            Milestone::EmbeddedAllowed => &["EMBEDDED_ALLOWED"],
            Milestone::SwapTold => &["SWAP_TOLD"],
            Milestone::Serving => &["ONLINE"],
            Milestone::Done => &["DONE"],
            Milestone::Failed => &["ERROR"],
            Milestone::BackConfirmed => &["ROLLED_BACK"],
            Milestone::Stopped => &["KILLED"],
        };
        for word in words {
            times.insert((*word).to_owned(), ms(*at));
        }
    }
    times
}

fn status_word(status: VersionStatus) -> String {
    let word = match status {
        VersionStatus::Started => "STARTED",
        VersionStatus::Pushed => "PUSHED",
        VersionStatus::Online => "ONLINE",
        VersionStatus::Error => "ERROR",
        VersionStatus::Killed => "KILLED",
        VersionStatus::RolledBack => "ROLLED_BACK",
        VersionStatus::PartiallyOnline => "PARTIALLY_ONLINE",
    };
    word.to_owned()
}

/// The place of a function on a push's way.
fn order_of(function: Function) -> usize {
    let place = Function::ALL.iter().position(|other| *other == function);
    place.unwrap_or(usize::MAX)
}

/// Where a setting mentions a region, as a whole word.
fn place_of(setting: &str, region: &str) -> Option<usize> {
    let is_boundary = |c: Option<char>| c.is_none_or(|c| c.is_whitespace() || ",;|>+&()[]\"".contains(c));
    setting.match_indices(region).map(|(place, _)| place).find(|place| {
        is_boundary(setting[..*place].chars().next_back())
            && is_boundary(setting[place + region.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_found_as_a_whole_word_only() {
        assert_eq!(place_of("eu-west, eu", "eu"), Some(9));
        assert_eq!(place_of("a,b+c", "c"), Some(4));
        assert_eq!(place_of("abc", "b"), None);
    }
}
