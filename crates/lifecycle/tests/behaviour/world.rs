//! A small world to call hooks in: servers on one state tree, stores with pushes and gates, hooks that say what a test
//! wants, and a driver for gates that does what a rollout controller does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate_lifecycle::{
    Answer, AnswerDocument, CallRecord, CallRequest, CallSite, CallState, Context, ContextSource, Event, EventSink,
    Function, GateState, GateStep, HookError, HooksConfiguration, HooksFile, Lifecycle, LifecycleOptions, Mode,
    PoolOptions, Recorded, Registry, StoreLifecycleEventOutcome as Two, StoreLifecycleHooks,
    StoreVersionLifecycleEventOutcome as Four, Verdict, next_round,
};
use tidegate_state::testing::{Cluster, StoreKind};
use tidegate_state::{
    Entity, FeedItem, HookHandle, ManualClock, Path, RecordSearch, Ref, Root, Snapshot, State, Timestamp, Transaction,
    TransactionError,
};

/// Nothing in these tests takes this long unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(60);
pub const INTERVAL: Duration = Duration::from_secs(60);
/// Longer than any step of the clock, so that no server loses its keys by it.
const LEASE_LONG: Duration = Duration::from_secs(86_400);
pub const LEASE_SHORT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Store {
    pub overrides: BTreeMap<String, String>,
}
impl Entity for Store {
    const COLLECTION: &'static str = "stores";
    type Parent = Root;
    type Id = String;
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Push {
    pub ended: bool,
}
impl Entity for Push {
    const COLLECTION: &'static str = "pushes";
    type Parent = Store;
    type Id = String;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    pub state: GateState,
}
impl Entity for Gate {
    const COLLECTION: &'static str = "gates";
    type Parent = Push;
    type Id = String;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub state: CallState,
}
impl Entity for Call {
    const COLLECTION: &'static str = "calls";
    type Parent = Gate;
    type Id = String;
}
impl CallSite for Call {
    fn state(&self) -> &CallState {
        &self.state
    }
    fn set_state(&mut self, state: CallState) {
        self.state = state;
    }
    fn pattern(hook: &str) -> String {
        format!("/stores/{{store}}/pushes/{{push}}/gates/{{gate}}/calls/{hook}")
    }
}

struct Source;

impl ContextSource for Source {
    fn context(
        &self,
        snapshot: &Snapshot,
        call: &Path,
        request: &CallRequest,
        _now: Timestamp,
    ) -> Result<Option<Context>, Box<dyn std::error::Error + Send + Sync>> {
        let gate = Ref::<Call>::from_path(call)?.parent::<Gate>();
        let push = gate.parent::<Push>();
        let decided = snapshot.require(&push)?.ended || snapshot.require(&gate)?.state.is_decided();
        if decided && request.mode == Mode::Enforce {
            return Ok(None);
        }
        let mut context = Context::new(request.function, request.store.clone());
        context.push = Some(push.id());
        context.version = Some(2);
        Ok(Some(context))
    }

    fn overrides(
        &self,
        snapshot: &Snapshot,
        store: &str,
    ) -> Result<BTreeMap<String, String>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(snapshot.require(&Ref::<Store>::root(store)?)?.overrides.clone())
    }
}

/// What a hook of a test does when it is asked.
pub enum Say {
    Answer(AnswerDocument),
    Fail(&'static str),
    Panic,
    Hang,
    /// Answers once the test has opened this.
    When(Arc<tokio::sync::Semaphore>, AnswerDocument),
}

pub fn proceed() -> Say {
    Say::Answer(AnswerDocument::PROCEED)
}

pub fn document(verdict: Verdict) -> AnswerDocument {
    AnswerDocument { verdict, reason: format!("says {verdict}"), ..AnswerDocument::PROCEED }
}

pub fn say(verdict: Verdict) -> Say {
    Say::Answer(document(verdict))
}

type Script = Arc<dyn Fn(&Context) -> Say + Send + Sync>;

/// A hook that does what the script says, and remembers every context.
#[derive(Clone)]
pub struct Scripted {
    script: Script,
    asked: Arc<Mutex<Vec<Context>>>,
    news: Arc<tokio::sync::watch::Sender<usize>>,
}

impl Scripted {
    pub fn new(script: impl Fn(&Context) -> Say + Send + Sync + 'static) -> Scripted {
        Scripted { script: Arc::new(script), asked: Arc::default(), news: Arc::new(tokio::sync::watch::Sender::new(0)) }
    }

    pub fn asked(&self) -> Vec<Context> {
        self.asked.lock().clone()
    }

    /// Waits until it has been asked so often.
    pub async fn was_asked(&self, times: usize) {
        let mut news = self.news.subscribe();
        let asked = news.wait_for(|asked| *asked >= times);
        tokio::time::timeout(LIMIT, asked).await.expect("the hook is not asked").unwrap();
    }

    async fn run(&self, context: &Context) -> Result<AnswerDocument, HookError> {
        self.asked.lock().push(context.clone());
        self.news.send_modify(|asked| *asked += 1);
        match (self.script)(context) {
            Say::Answer(document) => Ok(document),
            Say::Fail(text) => Err(HookError::new(text)),
            Say::Panic => panic!("boom"),
            Say::Hang => std::future::pending().await,
            Say::When(open, document) => {
                open.acquire().await.unwrap().forget();
                Ok(document)
            }
        }
    }

    async fn four(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        let document = self.run(context).await?;
        let reason = document.reason;
        let outcome = match document.verdict {
            Verdict::Proceed => Four::Proceed,
            Verdict::Wait => Four::Wait { reason, ask_again_at: document.ask_again_at },
            Verdict::Abort => Four::Abort { reason },
            Verdict::Rollback => Four::Rollback { reason },
        };
        let AnswerDocument { stops_clock, memo, events, pause, .. } = document;
        Ok(Answer { outcome, stops_clock, memo, events, pause })
    }
}

#[async_trait]
impl StoreLifecycleHooks for Scripted {
    async fn pre_start_of_push_job(&self, context: &Context) -> Result<Answer<Two>, HookError> {
        let document = self.run(context).await?;
        Ok(match document.verdict {
            Verdict::Proceed => Two::Proceed.into(),
            _ => Two::Abort { reason: document.reason }.into(),
        })
    }
    async fn post_store_version_creation(&self, context: &Context) -> Result<(), HookError> {
        self.run(context).await.map(|_| ())
    }
    async fn pre_store_version_swap(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_store_version_swap(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
}

/// Takes events, or not; remembers every delivery.
#[derive(Default)]
pub struct Receiver {
    pub down: Mutex<bool>,
    pub deliveries: Mutex<Vec<Event>>,
}

#[async_trait]
impl EventSink for Receiver {
    async fn deliver(&self, event: &Event) -> Result<(), String> {
        self.deliveries.lock().push(event.clone());
        if *self.down.lock() { Err("the receiver is down".to_owned()) } else { Ok(()) }
    }
}

pub struct World {
    pub cluster: Cluster,
    /// By server; none where it is down.
    pub lifecycles: Vec<Option<(Lifecycle, Vec<HookHandle>)>>,
    hooks: Vec<(&'static str, Scripted, Vec<usize>)>,
    pub receiver: Arc<Receiver>,
    /// The server that the test reads and writes through; the first that runs where it is not set.
    pub speak_through: Option<usize>,
}

pub struct WorldBuilder {
    servers: usize,
    hooks: Vec<(&'static str, Scripted, Vec<usize>)>,
    settings: String,
    lease: Duration,
    store: StoreKind,
}

impl World {
    pub fn with(name: &'static str, hook: &Scripted) -> WorldBuilder {
        WorldBuilder {
            servers: 1,
            hooks: Vec::new(),
            settings: String::new(),
            lease: LEASE_LONG,
            store: StoreKind::Memory,
        }
        .and(name, hook)
    }
}

impl WorldBuilder {
    pub fn and(mut self, name: &'static str, hook: &Scripted) -> Self {
        self.hooks.push((name, hook.clone(), Vec::new()));
        self
    }

    /// The last hook is only built into these servers.
    pub fn only_on(mut self, servers: &[usize]) -> Self {
        self.hooks.last_mut().unwrap().2 = servers.to_vec();
        self
    }

    pub fn servers(mut self, servers: usize) -> Self {
        self.servers = servers;
        self
    }

    /// For tests in which servers die: their keys move after this time.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    pub fn on(mut self, store: StoreKind) -> Self {
        self.store = store;
        self
    }

    /// TOML, after `[hooks]`.
    pub fn settings(mut self, settings: &str) -> Self {
        settings.clone_into(&mut self.settings);
        self
    }

    pub async fn open(self) -> World {
        let lease = self.lease;
        let cluster = Cluster::builder()
            .servers(self.servers)
            .configure(move |_, mut options| {
                options.lease = lease;
                options.record::<CallRecord>()
            })
            .open(&self.store)
            .await;
        let mut world = World {
            cluster,
            lifecycles: Vec::new(),
            hooks: self.hooks,
            receiver: Arc::new(Receiver::default()),
            speak_through: None,
        };
        let everything = world.hooks.iter().fold(Registry::empty(), |registry, (name, ..)| {
            registry.with(*name, |_| Err(HookError::new("only its name is wanted")))
        });
        let file = HooksFile::from_toml(&format!("[hooks]\n{}", self.settings), &everything).unwrap();
        world.publish(&file).await;
        for server in 0..self.servers {
            world.lifecycles.push(None);
            world.start(server).await;
        }
        world
    }
}

impl World {
    /// Runs this server's hooks.
    pub async fn start(&mut self, server: usize) {
        let mut registry = Registry::empty();
        for (name, hook, servers) in &self.hooks {
            if servers.is_empty() || servers.contains(&server) {
                let hook = hook.clone();
                registry = registry.with(*name, move |_| Ok(Arc::new(hook.clone())));
            }
        }
        let timer = Arc::new(self.clock().clone());
        let options = LifecycleOptions {
            pool: PoolOptions { timer, ..PoolOptions::default() },
            slots: 2,
            ..LifecycleOptions::default()
        };
        let lifecycle = Lifecycle::new(registry, options);
        let state = self.cluster.server(server);
        let mut handles = lifecycle.register::<Call>(state, Arc::new(Source)).await.unwrap();
        let sink: Arc<dyn EventSink> = Arc::clone(&self.receiver) as _;
        handles.extend(lifecycle.deliver_events(state, sink).await.unwrap());
        self.lifecycles[server] = Some((lifecycle, handles));
    }

    pub fn kill(&mut self, server: usize) {
        self.cluster.kill(server);
        self.lifecycles[server] = None;
    }

    pub fn clock(&self) -> &ManualClock {
        self.cluster.clock()
    }

    pub fn state(&self) -> State {
        match self.speak_through {
            Some(server) => self.cluster.server(server).clone(),
            None => self.cluster.running().into_iter().next().expect("a server that runs"),
        }
    }

    pub fn lifecycle(&self, server: usize) -> &Lifecycle {
        &self.lifecycles[server].as_ref().unwrap().0
    }

    pub async fn publish(&self, file: &HooksFile) {
        let file = file.clone();
        self.write(move |transaction| {
            let place = HooksConfiguration::place();
            let generation = transaction.get(&place)?.map_or(0, |there| there.generation);
            transaction.put(&place, file.configuration(generation + 1, "tests"))
        })
        .await;
    }

    pub async fn write(&self, closure: impl Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static) {
        self.state().write(closure).await.unwrap();
    }

    /// A gate of store `store`'s push `P`, in region `a` where the function has one.
    pub async fn gate(&self, store: &str, function: Function, region: &str) -> Ref<Gate> {
        let store_ref = Ref::<Store>::root(store).unwrap();
        let push = store_ref.child::<Push>("P").unwrap();
        let gate = push.child::<Gate>(format!("{function}@{region}")).unwrap();
        let (name, region, place) = (store.to_owned(), region.to_owned(), gate.clone());
        self.write(move |transaction| {
            if transaction.get(&store_ref)?.is_none() {
                transaction.put(&store_ref, Store::default())?;
            }
            if transaction.get(&push)?.is_none() {
                transaction.put(&push, Push::default())?;
            }
            let state = GateState::new(function, name.clone(), Some(region.clone()));
            transaction.put(&place, Gate { state })
        })
        .await;
        gate
    }

    /// Does what a controller does with a gate, until it waits for an answer or a time, or is decided.
    pub async fn step(&self, gate: &Ref<Gate>) -> GateStep {
        let place = gate.clone();
        let committed = self.state().write(move |transaction| drive(transaction, &place)).await;
        committed.unwrap().value
    }

    /// Steps until the gate waits for a time or is decided.
    pub async fn settle(&self, gate: &Ref<Gate>) -> GateStep {
        loop {
            match self.step(gate).await {
                GateStep::Waiting { until: None, .. } => {
                    let place = gate.clone();
                    self.until(move |snapshot| {
                        let state = &snapshot.require(&place).unwrap().state;
                        snapshot.children::<Call>(&place).any(|call| {
                            let call = call.unwrap().1;
                            let hook = &call.state.request().hook;
                            state.pending.contains_key(hook) && call.state.answer().is_some()
                        })
                    })
                    .await;
                }
                step => return step,
            }
        }
    }

    /// Settles, moves the clock to when the gate wants to be asked again, and settles again, so often.
    pub async fn settle_rounds(&self, gate: &Ref<Gate>, rounds: usize) -> GateStep {
        let mut step = self.settle(gate).await;
        for _ in 1..rounds {
            let GateStep::Waiting { until: Some(until), .. } = step else { panic!("does not wait: {step:?}") };
            self.clock().set(until);
            step = self.settle(gate).await;
        }
        step
    }

    /// Waits until a snapshot is as it should be.
    pub async fn until(&self, holds: impl Fn(&Snapshot) -> bool) {
        let state = self.state();
        let wait = async {
            let mut feed = state.changes(None);
            loop {
                let snapshot = match feed.next().await.expect("the state was closed") {
                    FeedItem::Snapshot(snapshot) => snapshot,
                    FeedItem::Transaction(applied) => applied.snapshot.clone(),
                };
                if holds(&snapshot) {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("never came to be");
    }

    /// All records of store `store`, oldest first.
    pub async fn records(&self, store: &str) -> Vec<CallRecord> {
        let search = RecordSearch::by("store").prefix(tidegate_state::IndexKey::new().text(store)).limit(200);
        let page = self.state().records::<CallRecord>(search).await.unwrap();
        let mut records: Vec<_> = page.items.into_iter().map(|stored| (stored.id, stored.value.unwrap())).collect();
        records.sort_by_key(|(id, _)| *id);
        records.into_iter().map(|(_, record)| record).collect()
    }

    /// Waits until store `store` has so many records.
    pub async fn records_are(&self, store: &str, count: usize) -> Vec<CallRecord> {
        let wait = async {
            loop {
                let records = self.records(store).await;
                if records.len() >= count {
                    return records;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("the records never came")
    }
}

fn drive(transaction: &mut Transaction, place: &Ref<Gate>) -> Result<GateStep, TransactionError> {
    let configuration = transaction.require(&HooksConfiguration::place())?;
    let store = transaction.require(&place.parent::<Push>().parent::<Store>())?;
    let mut gate = (*transaction.require(place)?).clone();
    for (_, call) in transaction.children::<Call>(place)? {
        if let CallState::Answered { request, answer } = &call.state
            && gate.state.pending.contains_key(&request.hook)
        {
            assert_eq!(gate.state.record(request, answer), Recorded::Counted);
        }
    }
    let hooks = configuration.effective_hooks(&Registry::empty(), gate.state.function, &store.overrides);
    let now = transaction.now();
    let step = loop {
        let step = next_round(&gate.state, &hooks, now, configuration.wait_interval());
        gate.state.apply(&step, now);
        let GateStep::Ask(requests) = step else { break step };
        for request in requests {
            let call = place.child::<Call>(request.hook.clone())?;
            transaction.put(&call, Call { state: CallState::Asked { request } })?;
        }
    };
    transaction.put(place, gate)?;
    Ok(step)
}
