//! Who reads, from every place, all the time: single keys and batches by turns.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_api::{BatchAnswer, BatchRequest, KeyAnswer};
use tokio_util::sync::CancellationToken;

use super::evidence::{Read, ReadOutcome, STORE, now};
use super::pushes::KEYS;

/// How long a reader rests between two reads.
const REST: Duration = Duration::from_millis(25);

/// How long a read may take. Longer than a place is stopped: what it then answers is looked at too.
const LIMIT: Duration = Duration::from_secs(10);

/// How many keys a batch has.
const BATCH: usize = 20;

/// A connection to one place. Each read has a connection of its own: one that is kept breaks when its place is killed, and
/// whose fault that is could not be told afterwards.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    place: usize,
    url: String,
    http: reqwest::Client,
}

impl Reader {
    pub(crate) fn new(place: usize, url: String) -> Reader {
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(LIMIT).build().unwrap();
        Reader { place, url, http }
    }

    /// Reads until it is told to stop.
    pub(crate) async fn read_on(self, stop: CancellationToken) -> Vec<Read> {
        let mut reads = Vec::new();
        let mut number = 0;
        while !stop.is_cancelled() {
            reads.push(self.read(number).await);
            number += 1;
            tokio::time::sleep(REST).await;
        }
        reads
    }

    /// One read; which one is said by its number.
    pub(crate) async fn read(&self, number: usize) -> Read {
        let begun = now();
        let outcome = if number.is_multiple_of(2) { self.batch(number).await } else { self.key(number).await };
        let outcome = outcome.unwrap_or_else(ReadOutcome::Failed);
        Read { place: self.place, begun, ended: now(), outcome }
    }

    /// The version that answers just now.
    pub(crate) async fn version(&self) -> Option<u64> {
        match self.read(1).await.outcome {
            ReadOutcome::Answered { version, .. } => Some(version),
            ReadOutcome::Failed(_) => None,
        }
    }

    async fn key(&self, number: usize) -> Result<ReadOutcome, String> {
        let key = format!("k{}", number % KEYS);
        let request = self.http.get(format!("{}/v1/stores/{STORE}/keys/{key}", self.url));
        let answer: KeyAnswer = ask(request).await?;
        Ok(outcome(answer.version, &[Some(answer.value)]))
    }

    async fn batch(&self, number: usize) -> Result<ReadOutcome, String> {
        let keys = (0..BATCH).map(|offset| format!("k{}", (number + offset * 7) % KEYS)).collect();
        let request = self.http.post(format!("{}/v1/stores/{STORE}/keys:batch", self.url));
        let answer: BatchAnswer = ask(request.json(&BatchRequest { keys })).await?;
        let values: Vec<Option<Value>> = answer.values.into_iter().map(|found| found.value).collect();
        Ok(outcome(answer.version, &values))
    }
}

async fn ask<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, String> {
    let failed = |error: reqwest::Error| format!("{error:?}");
    let answer = request.send().await.map_err(failed)?;
    let status = answer.status();
    let text = answer.text().await.map_err(failed)?;
    if status != 200 {
        return Err(format!("{status}: {text}"));
    }
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

fn outcome(version: u64, values: &[Option<Value>]) -> ReadOutcome {
    let mut generations: Vec<u64> = values.iter().flatten().filter_map(|value| value["generation"].as_u64()).collect();
    generations.sort_unstable();
    generations.dedup();
    let absent = values.iter().filter(|value| value.is_none()).count();
    ReadOutcome::Answered { version, generations, absent }
}
