//! Answering a pause.

use tidegate_lifecycle::{Actor, Pause, Verdict};
use tidegate_state::{Ref, TransactionError};

use super::{OperationError, Operations, OperatorAction, step};
use crate::entities::Gate;

impl Operations {
    /// Answers a pause. Its gate is asked at once, not at its next interval.
    ///
    /// # Errors
    /// An unknown pause, someone who may not answer it, one that was answered otherwise or has run out.
    pub async fn answer_pause(
        &self,
        id: &str,
        actor: Actor,
        verdict: Verdict,
        comment: &str,
    ) -> Result<Pause, OperationError> {
        let (id, comment) = (id.to_owned(), comment.to_owned());
        self.write(move |transaction, registry| {
            let unknown = || OperationError::PauseUnknown { pause: id.clone() };
            let place = Ref::<Pause>::root(id.clone()).map_err(|_| unknown())?;
            let pause = transaction.get(&place)?.ok_or_else(unknown)?;
            let answered = pause.answered(&actor, verdict, &comment, transaction.now())?;
            if answered == *pause {
                return Ok(answered);
            }
            transaction.put(&place, answered.clone())?;
            let gate = answered.gate().map(|path| Ref::<Gate>::from_path(&path)).transpose();
            if let Some(gate) = gate.map_err(TransactionError::Path)?
                && let Some(mut value) = transaction.get(&gate)?.map(|gate| (*gate).clone())
            {
                value.state.wake();
                transaction.put(&gate, value)?;
            }
            let action = OperatorAction::new(transaction, format!("answer pause {id}"), &actor.user, &comment);
            let action = action.on_store(&answered.store);
            match &answered.push {
                Some(push) => action.on_push(push).keep(transaction)?,
                None => action.keep(transaction)?,
            }
            step(transaction, registry, &answered.store)?;
            Ok(answered)
        })
        .await
    }
}
