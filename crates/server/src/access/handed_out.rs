//! What the control plane hands out of its tokens to a region's agent.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use tidegate_api::agent::{RegionAccess, RegionToken};
use tidegate_api::{Role, TokenStatus};
use tidegate_rollout::entities::{Assignment, Region, Store};
use tidegate_state::{Ref, Snapshot, Timestamp};

use super::errand;
use super::token::Token;
use crate::http::errors::{ApiError, ApiResult};
use crate::views::ms;

/// Who may ask this region's agent and its nodes. Tokens of other regions are left out, and of teams the stores that the
/// region holds are named.
pub(crate) fn to_region(region: &Ref<Region>, snapshot: &Snapshot, now: Timestamp) -> ApiResult<RegionAccess> {
    let mut tokens: BTreeMap<String, RegionToken> = errand::handed_out(region, snapshot, now)?.into_iter().collect();
    for item in snapshot.roots::<Token>() {
        let (place, token) = item?;
        if token.status(now) == TokenStatus::Active && may_ask(token, &region.id()) {
            let token = RegionToken {
                digest: token.digest.clone(),
                name: token.name.clone(),
                role: token.role,
                team: token.team.clone(),
                expires_at: token.expires_at.map(ms),
            };
            tokens.insert(place.id(), token);
        }
    }
    let mut teams = BTreeMap::new();
    for item in snapshot.children::<Assignment>(region) {
        let store = item?.0.id();
        let team = snapshot.get(&Ref::<Store>::root(store.as_str())?)?.and_then(|store| store.team.clone());
        teams.extend(team.map(|team| (store, team)));
    }
    let mut access = RegionAccess { mark: String::new(), tokens, teams };
    let text = serde_json::to_vec(&access).map_err(ApiError::internal)?;
    access.mark = hex::encode(Sha256::digest(&text));
    Ok(access)
}

fn may_ask(token: &Token, region: &str) -> bool {
    match token.role {
        Role::Viewer | Role::Operator | Role::Admin | Role::Team | Role::Reader => true,
        Role::Region => token.region.as_deref() == Some(region),
        Role::Unknown => false,
    }
}
