//! `graphile_worker` from crates.io. Its order per key is that of a named queue, which runs one job at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, TaskHandler, Worker, WorkerContext, WorkerOptions,
};
use serde::{Deserialize, Serialize};
use sqlx_of_graphile_worker as sqlx;
use tidegate_bench_peers::arguments::{Arguments, KEYS, Measure};
use tidegate_bench_peers::figures::{PICK_UP_JOBS, drained, ensure_in_order, picked_up};
use tidegate_bench_peers::starts::Starts;

/// Jobs per statement while the backlog is made.
const STEP: u64 = 5_000;

#[derive(Debug, Serialize, Deserialize)]
struct Empty {
    number: u64,
}

impl TaskHandler for Empty {
    const IDENTIFIER: &'static str = "empty";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        match context.get_ext::<Starts>() {
            Some(starts) => {
                starts.note(self.number);
                Ok(())
            }
            None => Err("the record of starts is missing"),
        }
    }
}

fn options(arguments: &Arguments, starts: &Starts) -> WorkerOptions {
    WorkerOptions::default().database_url(&arguments.address).add_extension(starts.clone()).define_job::<Empty>()
}

async fn fill(worker: &Worker, jobs: u64, in_order: bool) -> Result<()> {
    let utils = worker.create_utils();
    for from in (0..jobs).step_by(usize::try_from(STEP)?) {
        let mut step = Vec::new();
        for number in from..jobs.min(from + STEP) {
            let queue_name = in_order.then(|| format!("key-{}", number % KEYS));
            let spec = JobSpec { queue_name, ..JobSpec::default() };
            let payload = serde_json::to_value(Empty { number })?;
            step.push(RawJobSpec { identifier: Empty::IDENTIFIER.to_owned(), payload, spec });
        }
        utils.add_raw_jobs(&step).await?;
    }
    sqlx::query("ANALYZE").execute(worker.pg_pool()).await?;
    Ok(())
}

/// As in the peer's own benchmark of throughput: jobs are fetched and acknowledged in batches.
async fn drain(arguments: &Arguments, in_order: bool) -> Result<()> {
    let starts = Starts::expect(arguments.jobs);
    let worker = options(arguments, &starts)
        .concurrency(500)
        .poll_interval(Duration::from_millis(5))
        .complete_job_batch_delay(Duration::from_millis(5))
        .local_queue(LocalQueueConfig::default().with_size(5_000))
        .init()
        .await?;
    let worker = Arc::new(worker);
    fill(&worker, arguments.jobs, in_order).await?;
    let began = Instant::now();
    let running = tokio::spawn({
        let worker = worker.clone();
        async move { worker.run().await }
    });
    drained(began, arguments.jobs, &starts, async || {
        let left = sqlx::query_scalar("SELECT EXISTS (SELECT FROM graphile_worker._private_jobs)");
        let left: bool = left.fetch_one(worker.pg_pool()).await?;
        Ok(!left)
    })
    .await?;
    if in_order {
        ensure_in_order(&starts)?;
    }
    worker.request_shutdown();
    running.await?.context("the worker failed")
}

/// With what the peer does by default: each job is fetched and acknowledged by itself, upon a notification.
async fn pick_up(arguments: &Arguments) -> Result<()> {
    let starts = Starts::expect(PICK_UP_JOBS);
    let worker = Arc::new(options(arguments, &starts).concurrency(10).init().await?);
    let running = tokio::spawn({
        let worker = worker.clone();
        async move { worker.run().await }
    });
    let utils = worker.create_utils();
    picked_up(&starts, async |number| {
        utils.add_job(Empty { number }, JobSpec::default()).await?;
        Ok(())
    })
    .await?;
    worker.request_shutdown();
    running.await?.context("the worker failed")
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments = Arguments::read()?;
    match arguments.measure {
        Measure::Drain => drain(&arguments, false).await,
        Measure::DrainInOrder => drain(&arguments, true).await,
        Measure::PickUp => pick_up(&arguments).await,
    }
}
