//! Delivers events: in order per store, each with one id on every retry, until the sink has taken it.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_state::{ClusterHook, Outcome, Ref, Run, Transaction, TransactionError};

use crate::event::Event;
use crate::metrics::LifecycleMetrics;

/// How many events one run delivers; what is left is the next run's.
const BATCH_MAX: usize = 100;

/// Where events go. It may get one more than once, always with the same [`Event::id`].
#[async_trait]
pub trait EventSink: Send + Sync + 'static {
    /// Takes one event.
    ///
    /// # Errors
    /// Why it was not taken. It is delivered again after a pause, and those behind it wait.
    async fn deliver(&self, event: &Event) -> Result<(), String>;
}

/// Writes events to the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogSink;

#[async_trait]
impl EventSink for LogSink {
    async fn deliver(&self, event: &Event) -> Result<(), String> {
        tracing::info!(
            id = %event.id,
            kind = %event.kind,
            store = %event.store,
            push = event.push.as_deref().unwrap_or_default(),
            region = event.region.as_deref().unwrap_or_default(),
            hook = %event.hook,
            function = event.function.name(),
            data = %event.data,
            "event of a lifecycle hook"
        );
        Ok(())
    }
}

pub(crate) struct Delivery {
    sink: Arc<dyn EventSink>,
    metrics: LifecycleMetrics,
}

impl Delivery {
    pub(crate) fn new(sink: Arc<dyn EventSink>, metrics: LifecycleMetrics) -> Self {
        Delivery { sink, metrics }
    }
}

fn delete(delivered: Vec<Ref<Event>>) -> impl Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static {
    move |transaction| {
        for event in &delivered {
            transaction.delete(event)?;
        }
        Ok(())
    }
}

#[async_trait]
impl ClusterHook for Delivery {
    async fn run(&self, run: Run) -> Outcome {
        let Some(stream) = run.id("store").as_deref().and_then(Event::stream) else { return Outcome::Done };
        let mut waiting = Vec::new();
        for event in run.snapshot().children::<Event>(&stream).take(BATCH_MAX) {
            match event {
                Ok((place, event)) => waiting.push((place, event.clone())),
                Err(error) => return Outcome::fail(error),
            }
        }
        let mut delivered = Vec::new();
        for (place, event) in waiting {
            match self.sink.deliver(&event).await {
                Ok(()) => {
                    self.metrics.events_delivered.inc();
                    delivered.push(place);
                }
                Err(error) => {
                    self.metrics.events_failed.inc();
                    let reason = format!("event {} of store {} was not taken: {error}", event.id, event.store);
                    // What was taken before it is not to be delivered again only because of this one.
                    if !delivered.is_empty() {
                        let written: Result<_, tidegate_state::WriteError<TransactionError>> =
                            run.write(delete(delivered)).await;
                        if let Err(error) = written {
                            return Outcome::fail(format!("{reason}; and noting those before it failed: {error}"));
                        }
                    }
                    return Outcome::Fail(reason);
                }
            }
        }
        // Deleting them is a change too, so that what is left beyond the batch gets a run.
        if delivered.is_empty() { Outcome::Done } else { Outcome::done_with(delete(delivered)) }
    }
}
