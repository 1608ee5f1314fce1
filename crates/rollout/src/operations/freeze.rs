//! Freezes: holding every way forward, and lifting that.

use tidegate_state::{Ref, TransactionError};

use super::{OperationError, Operations, OperatorAction, check_name, check_reason};
use crate::entities::{Freeze, FreezeScope};

impl Operations {
    /// Sets a freeze under an id of the caller's choice. Setting the same again changes nothing.
    ///
    /// # Errors
    /// An id that is none, no reason.
    pub async fn freeze(&self, id: &str, scope: FreezeScope, by: &str, reason: &str) -> Result<Freeze, OperationError> {
        let (id, by, reason) = (id.to_owned(), by.to_owned(), reason.to_owned());
        self.write(move |transaction, _| {
            check_name("freeze's id", &id)?;
            check_reason(&reason)?;
            let place = Ref::<Freeze>::root(id.clone()).map_err(TransactionError::Path)?;
            if let Some(there) = transaction.get(&place)?
                && there.scope == scope
            {
                return Ok((*there).clone());
            }
            let freeze = Freeze { scope: scope.clone(), reason: reason.clone(), by: by.clone(), at: transaction.now() };
            transaction.put(&place, freeze.clone())?;
            OperatorAction::new(transaction, format!("freeze {id}"), &by, &reason).keep(transaction)?;
            Ok(freeze)
        })
        .await
    }

    /// Lifts a freeze. Rounds that it held are asked at once.
    ///
    /// # Errors
    /// An unknown freeze.
    pub async fn unfreeze(&self, id: &str, by: &str, reason: &str) -> Result<(), OperationError> {
        let (id, by, reason) = (id.to_owned(), by.to_owned(), reason.to_owned());
        self.write(move |transaction, _| {
            let unknown = || OperationError::FreezeUnknown { freeze: id.clone() };
            let place = Ref::<Freeze>::root(id.clone()).map_err(|_| unknown())?;
            if !transaction.delete(&place)? {
                return Err(unknown());
            }
            OperatorAction::new(transaction, format!("unfreeze {id}"), &by, &reason).keep(transaction)
        })
        .await
    }
}
