//! Tokens after a restore. Who was locked out after the backup stays out, as far as the database that is replaced can tell,
//! and nobody goes on with a session of a page that was opened before it.

use std::collections::BTreeMap;

use tidegate_state::{Transaction, TransactionError};

use crate::access::session::Session;
use crate::access::{Revoked, Token};

/// The revoked tokens of a database, by id.
pub(super) type Revocations = BTreeMap<String, Revoked>;

/// Revokes again what was revoked, and ends all sessions. Says how many tokens were revoked.
pub(super) fn keep_out(transaction: &mut Transaction, revoked: &Revocations) -> Result<u64, TransactionError> {
    let mut count = 0;
    for (place, token) in transaction.roots::<Token>()? {
        for (session, _) in transaction.children::<Session>(&place)? {
            transaction.delete(&session)?;
        }
        if let (None, Some(revoked)) = (&token.revoked, revoked.get(&place.id())) {
            transaction.put(&place, Token { revoked: Some(revoked.clone()), ..Token::clone(&token) })?;
            count += 1;
        }
    }
    Ok(count)
}
