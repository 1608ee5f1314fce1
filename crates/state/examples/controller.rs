//! A closed-loop controller: desired state and observed state are entities, and a `LatestState` hook looks at both and
//! takes the next step, until they agree. It is level-triggered: it never matters which change woke it, or how often.
//!
//! `cargo run --release -p tidegate-state --example controller`

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_state::driver::memory::MemoryStore;
use tidegate_state::{
    Entity, Outcome, Ref, Registration, Root, Run, State, StateOptions, Transaction, TransactionError, WaitForHooks,
    WriteError,
};

/// What users write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pool {
    wanted: u32,
}
impl Entity for Pool {
    const COLLECTION: &'static str = "pools";
    type Parent = Root;
    type Id = String;
}

/// What the controller has brought about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Machines {
    running: u32,
}
impl Entity for Machines {
    const COLLECTION: &'static str = "machines";
    type Parent = Root;
    type Id = String;
}

/// The next step from what is there to what is wanted; a pure function, so it is easy to test.
fn next(wanted: u32, running: u32) -> Option<u32> {
    match running.cmp(&wanted) {
        std::cmp::Ordering::Less => Some(running + 1),
        std::cmp::Ordering::Greater => Some(running - 1),
        std::cmp::Ordering::Equal => None,
    }
}

async fn control(run: Run) -> Outcome {
    let name = run.key().to_string();
    let step = || -> Result<Outcome, Box<dyn std::error::Error>> {
        let (pool, machines) = (Ref::<Pool>::root(name.as_str())?, Ref::<Machines>::root(name.as_str())?);
        let wanted = run.snapshot().get(&pool)?.map_or(0, |pool| pool.wanted);
        let running = run.snapshot().get(&machines)?.map_or(0, |machines| machines.running);
        let Some(then) = next(wanted, running) else { return Ok(Outcome::Done) };
        println!("{name}: {running} of {wanted} run, going to {then}");
        // Here a machine would be started or stopped, idempotently. What was observed and the time to look again commit
        // together; a change of the pool brings that time forward.
        let look_again = run.now().after(Duration::from_millis(20));
        Ok(Outcome::retry_at_with(look_again, move |tx| tx.put(&machines, Machines { running: then })))
    };
    step().unwrap_or_else(Outcome::fail)
}

async fn want(state: &State, name: &str, wanted: u32) -> Result<(), Box<dyn std::error::Error>> {
    let pool = Ref::<Pool>::root(name)?;
    let written: Result<_, WriteError<TransactionError>> =
        state.write(move |tx: &mut Transaction| tx.put(&pool, Pool { wanted })).await;
    written?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let state = State::open(MemoryStore::new().driver(), StateOptions::new("server-a")).await?;
    let registration = Registration::new("machines", 1)
        .on("/pools/{pool}")
        .key("{pool}")
        .latest_state()
        .from_existing()
        .attempts_unlimited()
        .backoff(Duration::from_millis(100), Duration::from_secs(10));
    let _running = state.register(registration, 4, Arc::new(control)).await?;

    want(&state, "small", 2).await?;
    want(&state, "large", 5).await?;
    state.wait_for_hooks(WaitForHooks::all()).await?;
    want(&state, "large", 3).await?;
    state.wait_for_hooks(WaitForHooks::all()).await?;
    for machines in state.snapshot().roots::<Machines>() {
        let (path, machines) = machines?;
        println!("{}: {} running", path.id(), machines.running);
    }
    state.close().await;
    Ok(())
}
