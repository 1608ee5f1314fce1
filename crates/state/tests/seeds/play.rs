//! One seed: its plan is played on a cluster of its own, everything comes to rest, and what is there then is kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_state::driver::{ExceptionState, StoredState};
use tidegate_state::testing::StoreKind;
use tidegate_state::testing::history::Line;
use tidegate_state::{HooksReport, RegistrationEntity, Snapshot, State, WaitError, WaitForHooks};

use super::hooks::{Flaw, HookKind};
use super::operations::Tree;
use super::plan::Plan;
use super::world::{Submitted, World};

/// How long anything may take to come to rest, by the machine's clock; only a failure takes as long.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// How often an operator deals with dead letters before everything is let go of.
const ROUNDS: usize = 3;
/// How many errors of the store may be left over when faults have ended.
const ERRORS_MAX: usize = 50;

/// What a seed leaves behind.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    pub(crate) plan: Arc<Plan>,
    pub(crate) history: Vec<Line>,
    pub(crate) submitted: Vec<Submitted>,
    pub(crate) stored: StoredState,
    /// What each server's tree holds in the end, by its name; a latecomer's too, whose tree comes from the store alone.
    pub(crate) trees: Vec<(String, Tree)>,
    /// Which hook each number is of.
    pub(crate) hooks: HashMap<u32, HookKind>,
    pub(crate) linted: Vec<String>,
    /// Why it did not come to rest.
    pub(crate) unrest: Option<String>,
    pub(crate) faults: usize,
}

/// Plays a plan.
pub(crate) async fn play(kind: StoreKind, plan: Arc<Plan>, flaw: Flaw) -> Evidence {
    let mut world = World::open(kind, plan.clone(), flaw).await;
    if plan.warm {
        world.warm_up().await;
    }
    for step in &plan.steps {
        world.play(step).await;
    }
    let mut trees = Vec::new();
    let mut hooks = HashMap::new();
    let mut unrest = world.mend().await.err();
    let mut stored = world.cluster.stored().await;
    let until = Instant::now() + LIMIT * 4;
    while unrest.is_none() {
        if Instant::now() > until {
            unrest = Some(format!("something is committed on and on, or is not let go of: {:?}", stored.exceptions));
            break;
        }
        let before = stored.meta.head;
        unrest = come_to_rest(&world).await.err();
        stored = world.cluster.stored().await;
        // A hook has begun to ask for what exists, or has just ended: what came of that is to be done as well. What was let
        // go of is told as done at once, and stays stored until its owner has heeded it.
        let heeded = stored.exceptions.iter().all(|exception| matches!(exception.state, ExceptionState::Dead));
        if unrest.is_some() || stored.meta.head != before || !heeded {
            tokio::time::sleep(Duration::from_millis(1)).await;
            world.pass(Duration::from_millis(500)).await;
            continue;
        }
        trees.clear();
        for state in world.cluster.running() {
            match state.wait_for(before, LIMIT).await {
                Ok(()) => trees.push((state.server().to_string(), tree_of(&state.snapshot()))),
                Err(error) => unrest = Some(format!("{} can't catch up: {error}", state.server())),
            }
        }
        let latecomer = world.cluster.latecomer().await;
        trees.push(("latecomer".to_owned(), tree_of(&latecomer.snapshot())));
        hooks = numbers(&latecomer);
        latecomer.close().await;
        if world.cluster.stored().await.meta.head == before {
            break;
        }
    }
    let mut linted: Vec<String> = world.cluster.lint().await.iter().map(ToString::to_string).collect();
    world.end(plan.seed.is_multiple_of(4)).await;
    linted.extend(world.cluster.lint().await.iter().map(|found| format!("after the end: {found}")));
    let submitted = world.submitted.lock().clone();
    let (history, faults) = (world.recorder.lines(), world.faults);
    Evidence { plan, history, submitted, stored, trees, hooks, linted, unrest, faults }
}

/// Everything that was asked for is done, or an operator lets go of it.
async fn come_to_rest(world: &World) -> Result<(), String> {
    for round in 0.. {
        let state = world.cluster.server(0);
        let waited = state.wait_for_hooks(WaitForHooks::all().limit(LIMIT));
        let report: HooksReport = match world.passing(waited).await {
            Some(Ok(report)) => report,
            // An error that was set up before the faults ended.
            Some(Err(WaitError::Store(_))) if round < ERRORS_MAX => continue,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("waiting for hooks did not end".to_owned()),
        };
        if report.finished {
            return Ok(());
        }
        for letter in &report.dead {
            let queue = state.queue();
            // One that has died in the meantime, or has been revived, is there in the next round.
            let acted = if round < ROUNDS && letter.request.revision.0.is_multiple_of(2) {
                queue.retry(letter.request, "operator").await
            } else {
                queue.discard(letter.request, "operator").await
            };
            if round > ROUNDS * 10 {
                return Err(format!("{} can't be let go of: {acted:?}", letter.request));
            }
        }
    }
    Ok(())
}

pub(crate) fn tree_of(snapshot: &Snapshot) -> Tree {
    let paths = snapshot.paths().into_iter();
    paths
        .map(|path| {
            let document = snapshot.document(&path).unwrap();
            (path.as_str().to_owned(), serde_json::from_str(document.json()).unwrap())
        })
        .collect()
}

fn numbers(state: &State) -> HashMap<u32, HookKind> {
    let snapshot = state.snapshot();
    let registrations = snapshot.roots::<RegistrationEntity>().map(|registration| registration.unwrap());
    registrations.map(|(path, entity)| (entity.number().0, HookKind::named(&path.id()).unwrap())).collect()
}
