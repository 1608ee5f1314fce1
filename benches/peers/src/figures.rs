//! The two measurements, whatever the peer.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::time::MissedTickBehavior;

use crate::arguments::KEYS;
use crate::starts::Starts;

/// One job each: a hundred a second.
const INTERVAL: Duration = Duration::from_millis(10);
/// Not counted: connections are made and plans prepared.
const WARM_UP: u64 = 100;
/// Ten seconds of them.
const PICK_UPS: u64 = 1_000;
/// Between two looks at the database for what is not acknowledged yet, once every job has started.
const POLL: Duration = Duration::from_millis(2);
const ACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(60);

/// How many jobs are picked up in all.
pub const PICK_UP_JOBS: u64 = WARM_UP + PICK_UPS;

/// The rest of a drain that has begun: until the database says that every job is acknowledged. Prints jobs per second.
///
/// # Errors
/// If it takes too long, a job starts twice, or the database can't be asked.
pub async fn drained(
    began: Instant,
    jobs: u64,
    starts: &Starts,
    mut acknowledged: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    starts.wait().await?;
    let started = Instant::now();
    while !acknowledged().await? {
        ensure!(started.elapsed() < ACKNOWLEDGED_LIMIT, "jobs have run that are not acknowledged");
        tokio::time::sleep(POLL).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("drained {:.0}", jobs as f64 / seconds);
    Ok(())
}

/// That the jobs of each key have started in the order of their numbers.
///
/// # Errors
/// If not, with how many.
pub fn ensure_in_order(starts: &Starts) -> Result<()> {
    let times = starts.times();
    let step = usize::try_from(KEYS)?;
    let late = times.iter().zip(times.iter().skip(step)).filter(|(earlier, later)| earlier > later).count();
    ensure!(late == 0, "{late} jobs started before the one before them of their key");
    Ok(())
}

/// Adds a job every ten milliseconds; from the answer to each addition, which is its commit, to the job's start. Prints the
/// median and the 99th percentile.
///
/// # Errors
/// If a job can't be added, does not start or starts twice.
pub async fn picked_up(starts: &Starts, mut add: impl AsyncFnMut(u64) -> Result<()>) -> Result<()> {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut committed = Vec::new();
    for number in 0..PICK_UP_JOBS {
        ticks.tick().await;
        add(number).await?;
        committed.push(Instant::now());
    }
    starts.wait().await?;
    let mut waits: Vec<Duration> = committed
        .iter()
        .zip(starts.times())
        .skip(usize::try_from(WARM_UP)?)
        .filter_map(|(committed, started)| Some(started?.saturating_duration_since(*committed)))
        .collect();
    waits.sort_unstable();
    let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!("picked-up {:.3} {:.3}", at(0.5), at(0.99));
    Ok(())
}
