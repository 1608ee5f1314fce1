//! Direct registrations of schemas, each at its own pace.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_lifecycle::Registry;
use tidegate_state::{ClusterHook, Outcome, Ref, Registration, Run, Timestamp};

use super::level_triggered;
use crate::controller::{apply_registration, gather_registration, next_registration};
use crate::entities::{SchemaRegistration, Store};

pub(super) fn registration() -> Registration {
    level_triggered("rollout-registration", 1)
        .on("/stores/{store}/registrations/{registration}")
        .on("/stores/{store}/registrations/{registration}/gates/{gate}/calls/{hook}")
        .key("{store}/{registration}")
        .from_existing()
}

pub(super) struct Register {
    pub(super) registry: Arc<Registry>,
}

#[async_trait]
impl ClusterHook for Register {
    async fn run(&self, run: Run) -> Outcome {
        let place = run.id("store").zip(run.id("registration")).and_then(|(store, registration)| {
            Ref::<Store>::root(store).and_then(|store| store.child::<SchemaRegistration>(registration)).ok()
        });
        let Some(place) = place else { return Outcome::Fail("the run's key names no registration".to_owned()) };
        let view = match gather_registration(run.snapshot(), &self.registry, &place) {
            Ok(Some(view)) => view,
            Ok(None) => return Outcome::Done,
            Err(error) => return Outcome::Fail(error.to_string()),
        };
        let plan = next_registration(&view, run.now());
        let wake_at: Option<Timestamp> = plan.wake_at;
        if plan.view.as_ref() == Some(&view) {
            return wake_at.map_or(Outcome::Done, Outcome::RetryAt);
        }
        // As the controller's: what is committed is computed again from what the transaction reads.
        let registry = Arc::clone(&self.registry);
        let carry_out = move |transaction: &mut tidegate_state::Transaction| {
            if let Some(view) = gather_registration(transaction, &registry, &place)? {
                let plan = next_registration(&view, transaction.now());
                apply_registration(transaction, &place, plan)?;
            }
            Ok(())
        };
        match wake_at {
            Some(at) => Outcome::retry_at_with(at, carry_out),
            None => Outcome::done_with(carry_out),
        }
    }
}
