//! The fan-out: what concerns every store wakes every store's controller.

use async_trait::async_trait;
use tidegate_state::{ClusterHook, Outcome, Ref, Registration, Run, TransactionError};

use super::level_triggered;
use crate::entities::{Store, Wake};

/// How many stores are woken in one transaction.
const STORES_AT_ONCE: usize = 1_000;

pub(super) fn registration() -> Registration {
    level_triggered("rollout-wake", 1)
        .on("/freezes/{cause}")
        .on("/regions/{cause}")
        .on("/configuration/{cause}")
        .key("all")
        .from_existing()
        .slots(1)
}

pub(super) struct WakeStores;

#[async_trait]
impl ClusterHook for WakeStores {
    async fn run(&self, run: Run) -> Outcome {
        let revision = run.revision();
        let stores: Vec<Ref<Store>> =
            run.snapshot().roots::<Store>().filter_map(Result::ok).map(|(store, _)| store).collect();
        for some in stores.chunks(STORES_AT_ONCE) {
            let some = some.to_vec();
            let written = run
                .write(move |transaction| -> Result<(), TransactionError> {
                    for store in &some {
                        // A store may have been deleted meanwhile: there is nobody to wake.
                        if transaction.contains(store.path()) {
                            transaction.put(&store.child("fan-out")?, Wake { revision })?;
                        }
                    }
                    Ok(())
                })
                .await;
            if let Err(error) = written {
                return Outcome::Fail(error.to_string());
            }
        }
        Outcome::Done
    }
}
