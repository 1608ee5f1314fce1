//! What a peer's program is asked for.

use anyhow::{Context, Result, bail};

/// Jobs of a backlog are spread over so many keys, in turn.
pub const KEYS: u64 = 10_000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// A backlog of empty jobs, in whatever order.
    Drain,
    /// A backlog of empty jobs, one at a time and in order for each key.
    DrainInOrder,
    /// From the commit of a job to its start, at a hundred a second.
    PickUp,
}

/// The command line.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// A database (`postgres://…`) that nobody else uses.
    pub address: String,
    pub measure: Measure,
    /// The size of the backlog.
    pub jobs: u64,
}

impl Arguments {
    /// Reads this process's command line.
    ///
    /// # Errors
    /// If it is not `ADDRESS MEASURE JOBS`.
    pub fn read() -> Result<Arguments> {
        let given: Vec<String> = std::env::args().skip(1).collect();
        let [address, measure, jobs] = given.as_slice() else {
            bail!("usage: PROGRAM ADDRESS drain|drain-in-order|pick-up JOBS");
        };
        let measure = match measure.as_str() {
            "drain" => Measure::Drain,
            "drain-in-order" => Measure::DrainInOrder,
            "pick-up" => Measure::PickUp,
            other => bail!("there is no measure {other:?}"),
        };
        let jobs =
            jobs.parse().ok().filter(|jobs| *jobs > 0).with_context(|| format!("not a number of jobs: {jobs}"))?;
        Ok(Arguments { address: address.clone(), measure, jobs })
    }
}
