//! `awa` from crates.io. Its queues claim in order but run side by side, and its ordering keys choose a shard, not a turn:
//! it has no order per key.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use async_trait::async_trait;
use awa::model::insert::params_with;
use awa::{
    Client, InsertOpts, InsertParams, JobArgs, JobContext, JobError, JobResult, QueueConfig, QueueStorage,
    QueueStorageConfig, Worker,
};
use serde::{Deserialize, Serialize};
use sqlx_of_awa::postgres::{PgPool, PgPoolOptions};
use tidegate_bench_peers::arguments::{Arguments, Measure};
use tidegate_bench_peers::figures::{PICK_UP_JOBS, drained, picked_up};
use tidegate_bench_peers::starts::Starts;

const QUEUE: &str = "empty";
/// Jobs per COPY while the backlog is made.
const STEP: u64 = 5_000;
const CONNECTIONS: u32 = 20;
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize, JobArgs)]
struct Empty {
    number: u64,
}

struct EmptyWorker(Starts);

#[async_trait]
impl Worker for EmptyWorker {
    fn kind(&self) -> &'static str {
        Empty::kind()
    }

    async fn perform(&self, context: &JobContext) -> Result<JobResult, JobError> {
        let Empty { number } = serde_json::from_value(context.job.args.clone()).map_err(JobError::retryable)?;
        self.0.note(number);
        Ok(JobResult::Completed)
    }
}

fn job(number: u64) -> Result<InsertParams> {
    Ok(params_with(&Empty { number }, InsertOpts { queue: QUEUE.to_owned(), ..InsertOpts::default() })?)
}

fn client(pool: &PgPool, queue: &str, max_workers: u32, starts: &Starts) -> Result<Client> {
    // Without a deadline per job, as in the peer's own benchmarks: its short path.
    let config = QueueConfig {
        max_workers,
        poll_interval: Duration::from_millis(50),
        deadline_duration: Duration::ZERO,
        ..QueueConfig::default()
    };
    Ok(Client::builder(pool.clone()).queue(queue, config).register_worker(EmptyWorker(starts.clone())).build()?)
}

/// The tables, and the choice of storage that the first client makes.
async fn prepare(arguments: &Arguments) -> Result<(PgPool, QueueStorage)> {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(&arguments.address).await?;
    awa::migrations::run(&pool).await?;
    let first = client(&pool, "unused", 1, &Starts::default())?;
    first.start().await?;
    first.shutdown(SHUTDOWN_LIMIT).await;
    Ok((pool, QueueStorage::new(QueueStorageConfig::default())?))
}

async fn drain(arguments: &Arguments) -> Result<()> {
    let (pool, storage) = prepare(arguments).await?;
    for from in (0..arguments.jobs).step_by(usize::try_from(STEP)?) {
        let step = (from..arguments.jobs.min(from + STEP)).map(job).collect::<Result<Vec<_>>>()?;
        storage.enqueue_params_copy(&pool, &step).await?;
    }
    sqlx_of_awa::query("ANALYZE").execute(&pool).await?;
    let starts = Starts::expect(arguments.jobs);
    let client = client(&pool, QUEUE, 1_024, &starts)?;
    let began = Instant::now();
    client.start().await?;
    drained(began, arguments.jobs, &starts, async || {
        let counts = storage.queue_counts(&pool, QUEUE).await?;
        Ok(counts.terminal == i64::try_from(arguments.jobs)?)
    })
    .await?;
    client.shutdown(SHUTDOWN_LIMIT).await;
    Ok(())
}

async fn pick_up(arguments: &Arguments) -> Result<()> {
    let (pool, storage) = prepare(arguments).await?;
    let starts = Starts::expect(PICK_UP_JOBS);
    let client = client(&pool, QUEUE, 10, &starts)?;
    client.start().await?;
    picked_up(&starts, async |number| {
        storage.enqueue_params_batch(&pool, &[job(number)?]).await?;
        Ok(())
    })
    .await?;
    client.shutdown(SHUTDOWN_LIMIT).await;
    Ok(())
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments = Arguments::read()?;
    match arguments.measure {
        Measure::Drain => drain(&arguments).await,
        Measure::PickUp => pick_up(&arguments).await,
        Measure::DrainInOrder => bail!("awa has no order per key"),
    }
}
