//! The record of which job started when. The empty jobs do nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// How long a measurement may take.
const LIMIT: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
struct Record {
    /// By the job's number.
    at: Vec<Option<Instant>>,
    count: u64,
    again: u64,
}

/// When each job started; a handle, which the handlers of the jobs have copies of.
#[derive(Debug, Clone, Default)]
pub struct Starts {
    record: Arc<Mutex<Record>>,
    all: Arc<Notify>,
}

impl Starts {
    /// Expects so many jobs, numbered from 0.
    #[must_use]
    pub fn expect(jobs: u64) -> Starts {
        let starts = Starts::default();
        starts.record.lock().at = (0..jobs).map(|_| None).collect();
        starts
    }

    /// The job of this number starts now.
    ///
    /// # Panics
    /// If it is not one of those expected.
    pub fn note(&self, number: u64) {
        let now = Instant::now();
        let mut record = self.record.lock();
        let place = usize::try_from(number).expect("a number of a job in memory");
        if record.at[place].replace(now).is_some() {
            record.again += 1;
        } else {
            record.count += 1;
        }
        if record.count == record.at.len() as u64 {
            self.all.notify_one();
        }
    }

    /// Waits until all have started.
    ///
    /// # Errors
    /// If they do not within ten minutes, or one has started twice.
    pub async fn wait(&self) -> Result<()> {
        let waited = tokio::time::timeout(LIMIT, self.all.notified()).await;
        let record = self.record.lock();
        ensure!(waited.is_ok(), "{} of {} jobs started within {LIMIT:?}", record.count, record.at.len());
        ensure!(record.again == 0, "{} jobs started more than once", record.again);
        Ok(())
    }

    /// When each started, by number. Empty places are jobs that have not.
    #[must_use]
    pub fn times(&self) -> Vec<Option<Instant>> {
        self.record.lock().at.clone()
    }
}
