//! Servers on one state tree with the rollout's own cluster hooks, a recording lifecycle hook, and regions played by a task
//! that follows the changes: it reports what each assignment leads to, at once unless a region is held back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_api::manifest::{Field, FieldType, HASH_FUNCTION, MANIFEST_FORMAT, Manifest, Part, Sample, Schema};
use tidegate_lifecycle::{
    Answer, CallRecord, Context, Function, HookError, HooksConfiguration, Lifecycle, LifecycleOptions, PoolOptions,
    Registry, StoreLifecycleEventOutcome as Two, StoreLifecycleHooks, StoreVersionLifecycleEventOutcome as Four,
    Verdict,
};
use tidegate_rollout::context::{PushContexts, RegistrationContexts};
use tidegate_rollout::entities::{
    Assignment, Availability, Call, HeldReport, IngestionStatus, Push, PushName, PushStatus, Region, RegistrationCall,
    Report, Store, Version, WrapUp,
};
use tidegate_rollout::operations::{NewStore, OperatorAction, StartPush};
use tidegate_rollout::{
    ArtifactRemover, OperationError, Operations, RolloutDependencies, RolloutHooks, RolloutMetrics,
};
use tidegate_state::testing::{Cluster, StoreKind};
use tidegate_state::{FeedItem, HookHandle, HookSelection, Ref, Snapshot, State, Transaction, TransactionError};

/// Nothing in these tests takes this long unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

type Script = Arc<dyn Fn(&Context) -> Verdict + Send + Sync>;

/// A hook that answers as its script says, and remembers every context.
#[derive(Clone)]
pub(crate) struct Recorder {
    script: Arc<Mutex<Script>>,
    /// The store whose calls at its swap gates go on until they are let end.
    slow: tokio::sync::watch::Sender<Option<String>>,
    pub(crate) asked: Arc<Mutex<Vec<Context>>>,
}

impl Recorder {
    pub(crate) fn new() -> Recorder {
        let proceed: Script = Arc::new(|_| Verdict::Proceed);
        let slow = tokio::sync::watch::Sender::new(None);
        Recorder { script: Arc::new(Mutex::new(proceed)), slow, asked: Arc::default() }
    }

    /// Calls at this store's swap gates do not end from now on; with none, those that go on do.
    pub(crate) fn hold(&self, store: Option<&str>) {
        self.slow.send_replace(store.map(str::to_owned));
    }

    pub(crate) fn say(&self, script: impl Fn(&Context) -> Verdict + Send + Sync + 'static) {
        *self.script.lock() = Arc::new(script);
    }

    async fn note(&self, context: &Context) -> Verdict {
        self.asked.lock().push(context.clone());
        let is_swap = context.function == Function::PreStoreVersionSwap;
        let is_let = |slow: &Option<String>| !is_swap || slow.as_ref() != Some(&context.store);
        self.slow.subscribe().wait_for(is_let).await.expect("the sender is this recorder's");
        let script = Arc::clone(&self.script.lock());
        script(context)
    }

    async fn two(&self, context: &Context) -> Result<Answer<Two>, HookError> {
        Ok(match self.note(context).await {
            Verdict::Proceed | Verdict::Wait => Two::Proceed.into(),
            Verdict::Abort | Verdict::Rollback => Two::Abort { reason: "3 of 2".into() }.into(),
        })
    }

    async fn four(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        let reason = "3 of 2".to_owned();
        Ok(match self.note(context).await {
            Verdict::Proceed => Four::Proceed.into(),
            Verdict::Wait => Four::Wait { reason, ask_again_at: None }.into(),
            Verdict::Abort => Four::Abort { reason }.into(),
            Verdict::Rollback => Four::Rollback { reason }.into(),
        })
    }

    async fn none(&self, context: &Context) -> Result<(), HookError> {
        self.note(context).await;
        Ok(())
    }
}

#[async_trait]
impl StoreLifecycleHooks for Recorder {
    async fn pre_start_of_push_job(&self, context: &Context) -> Result<Answer<Two>, HookError> {
        self.two(context).await
    }
    async fn post_start_of_push_job(&self, context: &Context) -> Result<(), HookError> {
        self.none(context).await
    }
    async fn pre_schema_registration(&self, context: &Context) -> Result<Answer<Two>, HookError> {
        self.two(context).await
    }
    async fn post_schema_registration(&self, context: &Context) -> Result<(), HookError> {
        self.none(context).await
    }
    async fn pre_store_version_creation(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_store_version_creation(&self, context: &Context) -> Result<(), HookError> {
        self.none(context).await
    }
    async fn pre_start_of_store_version_ingestion_for_da_vinci(
        &self,
        context: &Context,
    ) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_start_of_store_version_ingestion_for_da_vinci(
        &self,
        context: &Context,
    ) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_store_version_leader_replication(&self, context: &Context) -> Result<(), HookError> {
        self.none(context).await
    }
    async fn pre_store_version_swap(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_store_version_swap(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn pre_end_of_push_job(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_end_of_push_job(&self, context: &Context) -> Result<(), HookError> {
        self.none(context).await
    }
}

/// Remembers what it was told to remove.
#[derive(Default)]
pub(crate) struct Removals(pub(crate) Mutex<Vec<String>>);

#[async_trait]
impl ArtifactRemover for Removals {
    async fn remove_artifact(&self, artifact: &str, _manifest_sha256: &str) -> Result<(), String> {
        self.0.lock().push(artifact.to_owned());
        Ok(())
    }
    async fn remove_upload(&self, _store: &str, push: &str) -> Result<(), String> {
        self.0.lock().push(format!("upload of {push}"));
        Ok(())
    }
}

/// Which regions are held back, and how.
#[derive(Default, Clone)]
pub(crate) struct Hold {
    /// They do and say nothing.
    pub(crate) silent: BTreeSet<String>,
    /// They copy for ever.
    pub(crate) slow: BTreeSet<String>,
}

struct Running {
    lifecycle: Lifecycle,
    operations: Operations,
    _rollout: RolloutHooks,
    _calls: Vec<HookHandle>,
}

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) hook: Recorder,
    pub(crate) removals: Arc<Removals>,
    pub(crate) metrics: RolloutMetrics,
    pub(crate) hold: Arc<Mutex<Hold>>,
    /// What each region's engine has served of each store, in order: an entry for each swap that it made. Like a real one it
    /// outlives the servers, and what was or was not reported of it.
    pub(crate) served: Arc<Mutex<BTreeMap<(String, String), Vec<Option<u64>>>>>,
    servers: Vec<Option<Running>>,
    regions: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(regions) = self.regions.take() {
            regions.abort();
        }
    }
}

impl World {
    /// One server, regions a, b and c, store `s`, and the hook `x` enabled where that is asked for.
    pub(crate) async fn new(hooked: bool) -> World {
        World::with_servers(1, hooked, Duration::from_secs(86_400 * 60)).await
    }

    pub(crate) async fn with_servers(servers: usize, hooked: bool, lease: Duration) -> World {
        let cluster = Cluster::builder()
            .servers(servers)
            .configure(move |_, mut options| {
                options.lease = lease;
                options.record::<CallRecord>().record::<OperatorAction>()
            })
            .open(&StoreKind::Memory)
            .await;
        let mut world = World {
            cluster,
            hook: Recorder::new(),
            removals: Arc::default(),
            metrics: RolloutMetrics::default(),
            hold: Arc::default(),
            served: Arc::default(),
            servers: Vec::new(),
            regions: None,
        };
        world.configure(if hooked { &["x"] } else { &[] }, BTreeMap::new()).await;
        for server in 0..servers {
            world.servers.push(None);
            world.start_server(server).await;
        }
        for name in ["a", "b", "c"] {
            let region = Region {
                nodes: 2,
                enough: 2,
                shares_source: name == "a",
                agent: false,
                availability: Availability::Available,
                added_at: world.cluster.clock_now(),
            };
            world.operations().register_region(name, region, "eve").await.unwrap();
        }
        world.follow_regions();
        world.create_store("s").await;
        world
    }

    /// The whole cast of the acceptance cases: `s` serves v1 everywhere.
    pub(crate) async fn serving(hooked: bool) -> World {
        let world = World::new(hooked).await;
        world.push("first", "s").await;
        world.ended("first").await;
        world.hook.asked.lock().clear();
        world
    }

    /// Publishes which hooks are enabled, with their settings.
    pub(crate) async fn configure(&self, enabled: &[&str], hooks: BTreeMap<String, BTreeMap<String, String>>) {
        let enabled: Vec<String> = enabled.iter().map(|name| (*name).to_owned()).collect();
        self.write(move |transaction| {
            let place = HooksConfiguration::place();
            let generation = transaction.get(&place)?.map_or(0, |published| published.generation) + 1;
            let configuration = HooksConfiguration {
                generation,
                enabled: enabled.clone(),
                threads: 4,
                timeout_ms: 30_000,
                wait_interval_ms: 60_000,
                hooks: hooks.clone(),
                published_by: "tests".into(),
                digest: generation.to_string(),
            };
            transaction.put(&place, configuration)
        })
        .await;
    }

    pub(crate) async fn start_server(&mut self, server: usize) {
        let hook = self.hook.clone();
        let registry = Registry::shipped().with("x", move |_| Ok(Arc::new(hook.clone())));
        let timer = Arc::new(self.cluster.clock().clone());
        let options = LifecycleOptions {
            pool: PoolOptions { timer, ..PoolOptions::default() },
            slots: 2,
            ..LifecycleOptions::default()
        };
        let state = self.cluster.server(server).clone();
        let lifecycle = Lifecycle::new(registry.clone(), options);
        let mut calls = lifecycle.register::<Call>(&state, Arc::new(PushContexts)).await.unwrap();
        let registrations = Arc::new(RegistrationContexts);
        calls.extend(lifecycle.register::<RegistrationCall>(&state, registrations).await.unwrap());
        let registry = Arc::new(registry);
        let dependencies = RolloutDependencies {
            registry: Arc::clone(&registry),
            remover: Arc::clone(&self.removals) as Arc<dyn ArtifactRemover>,
            metrics: self.metrics.clone(),
            selection: HookSelection::default(),
        };
        let rollout = RolloutHooks::register(&state, dependencies).await.unwrap();
        let operations = Operations::new(state, registry);
        self.servers[server] = Some(Running { lifecycle, operations, _rollout: rollout, _calls: calls });
    }

    pub(crate) fn kill_server(&mut self, server: usize) {
        self.cluster.kill(server);
        self.servers[server] = None;
    }

    pub(crate) fn state(&self) -> State {
        self.cluster.running().into_iter().next().expect("a server that runs")
    }

    pub(crate) fn operations(&self) -> &Operations {
        let running = self.servers.iter().flatten().next().expect("a server that runs");
        &running.operations
    }

    pub(crate) fn lifecycle(&self) -> &Lifecycle {
        &self.servers.iter().flatten().next().expect("a server that runs").lifecycle
    }

    pub(crate) fn operations_of(&self, server: usize) -> &Operations {
        &self.servers[server].as_ref().unwrap().operations
    }

    pub(crate) async fn write(
        &self,
        closure: impl Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static,
    ) {
        self.state().write(closure).await.unwrap();
    }

    /// Plays the regions on the first server that runs, until the world ends or the server dies.
    pub(crate) fn follow_regions(&mut self) {
        if let Some(regions) = self.regions.take() {
            regions.abort();
        }
        let (state, hold, served) = (self.state(), Arc::clone(&self.hold), Arc::clone(&self.served));
        self.regions = Some(tokio::spawn(async move {
            let mut feed = state.changes(None);
            let mut seen = None;
            while let Some(item) = feed.next().await {
                let at = match &item {
                    FeedItem::Snapshot(snapshot) => (snapshot.epoch(), snapshot.revision()),
                    FeedItem::Transaction(applied) => (applied.snapshot.epoch(), applied.revision),
                };
                if seen.is_some_and(|(epoch, revision)| epoch == at.0 && revision >= at.1) {
                    continue;
                }
                // As an agent does: by what is assigned now, however much has happened since the last look.
                let snapshot = state.snapshot();
                seen = Some((snapshot.epoch(), snapshot.revision()));
                report(&state, &snapshot, &hold, &served).await;
            }
        }));
    }

    /// Lets held regions look again, after `hold` was changed.
    pub(crate) async fn nudge(&self) {
        report(&self.state(), &self.state().snapshot(), &self.hold, &self.served).await;
    }

    pub(crate) async fn create_store(&self, name: &str) {
        self.operations().create_store(NewStore::new(name, ["key"]), "ada", |_| {}).await.unwrap();
    }

    pub(crate) fn request(id: &str, store: &str) -> StartPush {
        StartPush { id: id.into(), store: store.into(), pushed_by: "ada".into(), ..StartPush::default() }
    }

    /// Starts a push and brings it to a complete artifact, as its client would.
    pub(crate) async fn push(&self, id: &str, store: &str) {
        let accepted = self.operations().start_push(World::request(id, store)).await.unwrap();
        self.build(id, accepted.push.version).await;
    }

    /// What a client does once its push is accepted.
    pub(crate) async fn build(&self, id: &str, version: u64) {
        self.until(id, |push| push.phase() == Some(&tidegate_rollout::entities::Phase::Build)).await;
        self.operations().register_schema(id, schema(&[])).await.unwrap();
        self.until(id, |push| push.phase() == Some(&tidegate_rollout::entities::Phase::Upload)).await;
        self.operations().complete_push(id, manifest(version, schema(&[])), format!("sha-{version}")).await.unwrap();
    }

    pub(crate) fn push_value(snapshot: &Snapshot, id: &str) -> Option<Push> {
        let name = snapshot.get(&Ref::<PushName>::root(id).unwrap()).unwrap()?;
        let push = Ref::<Store>::root(name.store.clone()).unwrap().child::<Push>(id).unwrap();
        snapshot.get(&push).unwrap().cloned()
    }

    pub(crate) fn status(&self, id: &str) -> PushStatus {
        World::push_value(&self.state().snapshot(), id).unwrap().status()
    }

    pub(crate) fn version(&self, store: &str, number: u64) -> Version {
        let version = Ref::<Store>::root(store).unwrap().child::<Version>(number).unwrap();
        self.state().snapshot().require(&version).unwrap().clone()
    }

    /// Waits until something holds of a push.
    pub(crate) async fn until(&self, id: &str, holds: impl Fn(&Push) -> bool) {
        let what = format!("{id}: {:?}", World::push_value(&self.state().snapshot(), id));
        self.until_state(&what, |snapshot| World::push_value(snapshot, id).is_some_and(|push| holds(&push))).await;
    }

    /// Waits until something holds of the tree.
    pub(crate) async fn until_state(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) {
        World::until_state_of(&self.state(), what, holds).await;
    }

    /// As [`World::until_state`], on a certain server.
    pub(crate) async fn until_state_of(state: &State, what: &str, holds: impl Fn(&Snapshot) -> bool) {
        let mut feed = state.changes(None);
        let wait = async {
            while let Some(item) = feed.next().await {
                let snapshot = match item {
                    FeedItem::Snapshot(snapshot) => snapshot,
                    FeedItem::Transaction(applied) => applied.snapshot.clone(),
                };
                if holds(&snapshot) {
                    return;
                }
            }
            panic!("the feed has ended");
        };
        if tokio::time::timeout(LIMIT, wait).await.is_err() {
            let snapshot = state.snapshot();
            let mut told: Vec<_> = snapshot.all::<Push>().map(|push| format!("{push:?}")).collect();
            told.extend(snapshot.all::<Assignment>().map(|assignment| format!("{assignment:?}")));
            told.extend(snapshot.all::<Report>().map(|report| format!("{report:?}")));
            panic!("does not come: {what}\n{}", told.join("\n"));
        }
    }

    /// Waits until a push has ended and everyone was told.
    pub(crate) async fn ended(&self, id: &str) {
        use tidegate_rollout::entities::PushState;
        self.until(id, |push| matches!(push.state, PushState::Ended { wrap_up: WrapUp::Done, .. })).await;
    }

    /// What the regions say they serve.
    pub(crate) fn serving_now(snapshot: &Snapshot, store: &str) -> Vec<Option<u64>> {
        snapshot
            .roots::<Region>()
            .map(|region| {
                let (region, _) = region.unwrap();
                snapshot.get(&region.child::<Report>(store).unwrap()).unwrap().and_then(|report| report.serving)
            })
            .collect()
    }

    pub(crate) async fn serves(&self, store: &str, expected: &[Option<u64>]) {
        self.until_state(&format!("{store} serves {expected:?}"), |snapshot| {
            World::serving_now(snapshot, store) == expected
        })
        .await;
    }

    pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, OperationError>) -> String {
        let error = result.unwrap_err();
        let body = error.body();
        // Every refusal says what, why, what follows and what to do.
        for part in [&body.what, &body.why, &body.consequences, &body.countermeasures] {
            assert!(!part.is_empty(), "{body:?}");
        }
        format!("{} {}", body.why, body.countermeasures)
    }
}

trait ClockNow {
    fn clock_now(&self) -> tidegate_state::Timestamp;
}

impl ClockNow for Cluster {
    fn clock_now(&self) -> tidegate_state::Timestamp {
        tidegate_state::Clock::now(self.clock())
    }
}

/// What regions report of the assignments in a snapshot. Only changes are written.
async fn report(
    state: &State,
    snapshot: &Snapshot,
    hold: &Mutex<Hold>,
    served: &Mutex<BTreeMap<(String, String), Vec<Option<u64>>>>,
) {
    let hold = hold.lock().clone();
    let mut writes = Vec::new();
    for item in snapshot.all::<Assignment>() {
        let (place, assignment) = item.unwrap();
        let (region, store) = (place.parent::<Region>(), place.id());
        let name = region.id();
        if hold.silent.contains(&name) {
            continue;
        }
        let report_place = region.child::<Report>(store.clone()).unwrap();
        let before = snapshot.get(&report_place).unwrap().cloned();
        let after = {
            let mut served = served.lock();
            let engine = served.entry((name.clone(), store)).or_default();
            let serves = engine.last().copied().flatten();
            let after = reported(before.as_ref(), serves, assignment, state.now(), hold.slow.contains(&name));
            if engine.is_empty() || after.serving != serves {
                engine.push(after.serving);
            }
            after
        };
        if before.as_ref() == Some(&after) {
            continue;
        }
        writes.push(state.write(move |transaction| -> Result<(), TransactionError> {
            // A store that was deleted, or an assignment that moved on, is for the next look.
            if transaction.contains(report_place.parent::<Region>().path()) {
                transaction.put(&report_place, after.clone())?;
            }
            Ok(())
        }));
    }
    // One that fails is for the next look, too.
    futures::future::join_all(writes).await;
}

/// What a region reports of a store before it has done anything there.
pub(crate) fn first_report(incarnation: uuid::Uuid, at: tidegate_state::Timestamp) -> Report {
    Report {
        generation: 0,
        incarnation,
        versions: BTreeMap::new(),
        serving: None,
        serving_since: None,
        lagging_nodes: Vec::new(),
        embedded: Default::default(),
        pin: None,
        past_pins: Vec::new(),
        at,
    }
}

fn reported(
    before: Option<&Report>,
    serves: Option<u64>,
    assignment: &Assignment,
    now: tidegate_state::Timestamp,
    slow: bool,
) -> Report {
    let same = before.filter(|before| before.incarnation == assignment.incarnation);
    let mut report = same.cloned().unwrap_or_else(|| first_report(assignment.incarnation, now));
    let unchanged = report.clone();
    if same.is_some() && report.serving != serves {
        // A report of its last swap was lost with a server.
        (report.serving, report.serving_since) = (serves, Some(now));
    }
    report.generation = assignment.generation;
    for number in assignment.hold.keys() {
        let held = report.versions.entry(*number).or_insert_with(|| HeldReport {
            status: IngestionStatus::Started,
            since: now,
            digest: None,
            nodes: 0,
            retrying: None,
        });
        if held.status == IngestionStatus::Started && !slow {
            held.status = IngestionStatus::Completed;
            held.nodes = 2;
        }
    }
    let ready =
        |number: &u64| report.versions.get(number).is_some_and(|held| held.status == IngestionStatus::Completed);
    if report.serving != assignment.serve && assignment.serve.as_ref().is_none_or(ready) {
        report.serving = assignment.serve;
        report.serving_since = Some(now);
    }
    let serving = report.serving;
    report.versions.retain(|number, _| assignment.hold.contains_key(number) || serving == Some(*number));
    if report != unchanged {
        report.at = now;
    }
    report
}

pub(crate) fn schema(further: &[&str]) -> Schema {
    let mut fields = vec![Field::required("key", FieldType::STRING)];
    fields.extend(further.iter().map(|name| Field::nullable(*name, FieldType::LONG)));
    Schema { fields }
}

/// A manifest of ten records in four parts.
pub(crate) fn manifest(version: u64, schema: Schema) -> Manifest {
    let parts = (0..4)
        .map(|part| Part {
            name: format!("part-{part}.parquet"),
            bytes: 100,
            rows: if part == 0 { 10 } else { 0 },
            sha256: format!("{part:064}"),
        })
        .collect();
    Manifest {
        format: MANIFEST_FORMAT,
        artifact_id: format!("artifact-{version}"),
        schema,
        key_columns: vec!["key".into()],
        hash_function: HASH_FUNCTION.into(),
        partition_count: 4,
        parts,
        record_count: 10,
        duplicate_count: 0,
        input_digest: "input".into(),
        statistics: Vec::new(),
        sample: Sample::default(),
        golden: Vec::new(),
        content_digest: "content".into(),
        bytes: 400,
        data_bytes: 1_000,
    }
}
