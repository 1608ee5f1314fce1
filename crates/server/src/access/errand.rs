//! Tokens by which a server asks a region's agent in somebody's stead.
//!
//! A read that comes to a server which does not host the region goes on to its agent. The token of whoever asked stays here:
//! the agent's address is one that the bearer of a region's token has named, and what such a one is shown must open nothing
//! elsewhere. So each server draws a token for each region that it asks, keeps it in memory, and leaves its digest in the
//! state, where the region's agent is told of it like of any other. It opens reads of that one region, for a day.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate_api::Role;
use tidegate_api::agent::RegionToken;
use tidegate_rollout::entities::Region;
use tidegate_state::{Entity, ReadError, Ref, Snapshot, State, Timestamp, Transaction, TransactionError};
use tokio::sync::Semaphore;

use super::token::mint;
use super::tokens::random;
use crate::http::errors::{ApiError, ApiResult};
use crate::views::ms;

/// How long one holds, and how long before its end another is drawn.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
const DRAWN_ANEW: Duration = Duration::from_secs(60 * 60);

/// How long a new one is waited for in the snapshot.
const CATCH_UP: Duration = Duration::from_secs(2);

/// `/regions/{r}/errands/{id}`: what is kept of a server's token for a region. Written by that server.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Errand {
    /// SHA-256 of the secret, in hexadecimal.
    digest: String,
    /// The server's name.
    server: String,
    /// When it ends.
    expires_at: Timestamp,
}

impl std::fmt::Debug for Errand {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Errand").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Entity for Errand {
    const COLLECTION: &'static str = "errands";
    type Parent = Region;
    type Id = String;
}

/// One server's tokens for regions.
pub(crate) struct Errands {
    drawn: Mutex<HashMap<String, Drawn>>,
    /// One is drawn at a time, so that of many who need the first, one draws it.
    drawing: Semaphore,
}

impl Default for Errands {
    fn default() -> Self {
        Self { drawn: Mutex::default(), drawing: Semaphore::new(1) }
    }
}

#[derive(Clone)]
struct Drawn {
    place: Ref<Errand>,
    shown: String,
    expires_at: Timestamp,
}

impl Errands {
    /// What to show to a region's agent.
    ///
    /// # Errors
    /// Nothing can be written now, and no token of before holds.
    pub(crate) async fn token(&self, state: &State, region: &Ref<Region>) -> ApiResult<String> {
        if let Some(shown) = self.there(state, region) {
            return Ok(shown);
        }
        let _turn = self.drawing.acquire().await.map_err(ApiError::internal)?;
        if let Some(shown) = self.there(state, region) {
            return Ok(shown);
        }
        let (id, shown, digest) = mint(random()?);
        let place: Ref<Errand> = region.child(id.as_str())?;
        let (parent, written, digest) = (region.clone(), place.clone(), digest.into_text());
        let server = state.server().to_string();
        let expires_at = state.now().after(LIFE);
        let write = state.write(move |transaction| -> Result<(), TransactionError> {
            remove_expired(transaction, &parent)?;
            let errand = Errand { digest: digest.clone(), server: server.clone(), expires_at };
            transaction.put(&written, errand)
        });
        write.await.map_err(|error| {
            ApiError::unavailable("The region's agent can't be asked by this server now.", format!("{error}."))
        })?;
        // Whoever asks next finds it in the snapshot; if that takes too long, another is drawn.
        let _ = state.flush_within(CATCH_UP).await;
        self.drawn.lock().insert(region.id(), Drawn { place, shown: shown.clone(), expires_at });
        Ok(shown)
    }

    /// The one that was drawn before, as long as it holds for a while and the region knows it: one that was removed and added
    /// again does not.
    fn there(&self, state: &State, region: &Ref<Region>) -> Option<String> {
        let drawn = self.drawn.lock().get(&region.id()).cloned()?;
        let holds = state.now().after(DRAWN_ANEW) < drawn.expires_at;
        (holds && state.snapshot().contains(drawn.place.path())).then_some(drawn.shown)
    }
}

fn remove_expired(transaction: &mut Transaction, region: &Ref<Region>) -> Result<(), TransactionError> {
    let now = transaction.now();
    let errands = transaction.children::<Errand>(region)?;
    for (place, errand) in errands {
        if errand.expires_at <= now {
            transaction.delete(&place)?;
        }
    }
    Ok(())
}

/// The tokens of servers that a region's agent lets in, by id.
pub(super) fn handed_out(
    region: &Ref<Region>,
    snapshot: &Snapshot,
    now: Timestamp,
) -> Result<Vec<(String, RegionToken)>, ReadError> {
    let mut tokens = Vec::new();
    for item in snapshot.children::<Errand>(region) {
        let (place, errand) = item?;
        if errand.expires_at > now {
            let token = RegionToken {
                digest: errand.digest.clone(),
                name: format!("server {}", errand.server),
                role: Role::Reader,
                team: None,
                expires_at: Some(ms(errand.expires_at)),
            };
            tokens.push((place.id(), token));
        }
    }
    Ok(tokens)
}
