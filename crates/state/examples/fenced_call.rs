//! A cluster hook that calls a system outside: with a fencing token, so that a server that was overtaken changes nothing
//! there, and with an idempotency key, so that a repeated call is recognised.
//!
//! `cargo run --release -p tidegate-state --example fenced_call`

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tidegate_state::driver::memory::MemoryStore;
use tidegate_state::{
    Entity, Outcome, Ref, Registration, Root, Run, State, StateOptions, Transaction, TransactionError, WaitForHooks,
    WriteError,
};

/// What someone wants: a name that points to an address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    address: String,
}
impl Entity for Record {
    const COLLECTION: &'static str = "records";
    type Parent = Root;
    type Id = String;
}

/// Plays a name service. Any resource that keeps the highest token it has seen, per key, can be protected like this.
#[derive(Default)]
struct NameService {
    zone: Mutex<HashMap<String, (u64, Option<String>)>>,
    calls: Mutex<HashMap<String, u32>>,
}

impl NameService {
    /// Refuses a caller whose token is below one that it has seen for the name; does a repeated call once.
    fn set(&self, name: &str, address: Option<String>, token: u64, idempotency_key: &str) -> Result<(), String> {
        let mut zone = self.zone.lock().expect("no call panics");
        let (seen, there) = zone.entry(name.to_owned()).or_default();
        if token < *seen {
            return Err(format!("token {token} is stale: {seen} was seen"));
        }
        *seen = token;
        let times =
            self.calls.lock().expect("no call panics").entry(idempotency_key.to_owned()).or_default().to_owned();
        self.calls.lock().expect("no call panics").insert(idempotency_key.to_owned(), times + 1);
        if times == 0 {
            *there = address;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let state = State::open(MemoryStore::new().driver(), StateOptions::new("server-a")).await?;
    let service = Arc::new(NameService::default());

    let registration = Registration::new("name-service", 1).on("/records/{name}").key("{name}").every_change();
    let called = service.clone();
    let hook = move |run: Run| {
        let service = called.clone();
        async move {
            let address = match run.change().map(|change| change.after::<Record>()) {
                Some(Ok(after)) => after.map(|record| record.address.clone()),
                Some(Err(error)) => return Outcome::fail(error),
                None => return Outcome::fail("only every_change has changes"),
            };
            match service.set(run.key().as_str(), address, run.token().0, &run.idempotency_key()) {
                Ok(()) => Outcome::Done,
                // Tried again after a backoff; after five attempts it is a dead letter, visible in the queue.
                Err(reason) => Outcome::Fail(reason),
            }
        }
    };
    let _running = state.register(registration, 8, Arc::new(hook)).await?;

    for (name, address) in [("www", "192.0.2.1"), ("api", "192.0.2.2"), ("www", "192.0.2.3")] {
        let (record, address) = (Ref::<Record>::root(name)?, address.to_owned());
        state
            .write(move |tx: &mut Transaction| tx.put(&record, Record { address: address.clone() }))
            .await
            .map_err(|error: WriteError<TransactionError>| error.to_string())?;
    }
    let report = state.wait_for_hooks(WaitForHooks::all()).await?;
    println!("all calls made: {}", report.finished);
    for (name, (token, address)) in service.zone.lock().expect("no call panics").iter() {
        println!("{name}: {address:?}, last token {token}");
    }
    state.close().await;
    Ok(())
}
