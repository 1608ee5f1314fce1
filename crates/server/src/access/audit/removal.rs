//! Entries about nodes that were removed on their agent's machine, perhaps with the control plane away.
//!
//! The agent tells of each until it is heard, so the same one may come twice: what was heard of each list is kept beside the
//! region, in the transaction that writes the entry.

use serde::{Deserialize, Serialize};
use tidegate_api::agent::NodeRemoval;
use tidegate_api::{AuditChange, AuditEntity, AuditField, AuditOutcome};
use tidegate_rollout::entities::Region;
use tidegate_state::{Entity, Ref, Timestamp, Transaction, TransactionError};
use uuid::Uuid;

use super::AuditRecord;
use super::made::named;
use super::operation::NODE_REMOVED;
use super::scrub::scrubbed;
use crate::access::caller::Bearer;
use crate::views::ms;

/// How many lists of one region are known at most. Each is one agent's folder.
const LISTS_MAX: usize = 64;

/// `/regions/{r}/removals/{list}`: how far a list of removed nodes was heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeardRemovals {
    number: u64,
    at: Timestamp,
}

impl Entity for HeardRemovals {
    const COLLECTION: &'static str = "removals";
    type Parent = Region;
    type Id = String;
}

/// Writes an entry, unless this removal has one. False where the region is not known.
pub(crate) fn record_removal(
    transaction: &mut Transaction,
    region: &Ref<Region>,
    (list, removal): (Uuid, &NodeRemoval),
    (bearer, request): (Option<&Bearer>, &str),
) -> Result<bool, TransactionError> {
    if transaction.get(region)?.is_none() {
        return Ok(false);
    }
    let place: Ref<HeardRemovals> = region.child(list.to_string())?;
    if transaction.get(&place)?.is_some_and(|heard| removal.number <= heard.number) {
        return Ok(true);
    }
    let now = transaction.now();
    let mut lists = transaction.children::<HeardRemovals>(region)?;
    if lists.len() >= LISTS_MAX {
        lists.sort_by_key(|(_, heard)| heard.at);
        let oldest = lists.into_iter().map(|(place, _)| place).find(|other| *other != place);
        if let Some(oldest) = oldest {
            transaction.delete(&oldest)?;
        }
    }
    transaction.put(&place, HeardRemovals { number: removal.number, at: now })?;
    entry(now, &region.id(), removal, bearer, request).append(transaction)?;
    Ok(true)
}

fn entry(now: Timestamp, region: &str, removal: &NodeRemoval, bearer: Option<&Bearer>, request: &str) -> AuditRecord {
    let field = |field: &str, before: Option<&str>, after: Option<&str>| AuditField {
        field: field.to_owned(),
        before: before.map(scrubbed),
        after: after.map(scrubbed),
        hidden: false,
    };
    let mut fields = vec![
        field("region", Some(region), None),
        field("address", Some(&removal.address), None),
        field("agent", None, Some(&removal.agent)),
        field("reported_at", None, Some(&ms(now).to_string())),
    ];
    if removal.forced {
        fields.push(field("forced", None, Some("true")));
    }
    let node = AuditEntity { fields, ..named("node", scrubbed(&removal.node), AuditChange::Removed) };
    let at = i64::try_from(removal.at).map_or(now, Timestamp);
    AuditRecord {
        // No clock of an agent puts it into the future.
        at: at.min(now),
        revision: 0,
        user: scrubbed(&removal.by),
        role: bearer.map(|bearer| bearer.role),
        token: bearer.map(|bearer| bearer.token.clone()),
        request: request.to_owned(),
        route: NODE_REMOVED.to_owned(),
        target: format!("/v1/regions/{region}/agent/removals"),
        store: None,
        outcome: AuditOutcome::Done,
        status: None,
        entities: vec![node, named("region", region.to_owned(), AuditChange::Named)],
        left_out: 0,
        reason: Some(scrubbed(&removal.reason)),
    }
}
