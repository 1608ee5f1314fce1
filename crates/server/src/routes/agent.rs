//! What agents of regions ask and say: the region's lease, what is wanted of it, and its reports.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use tidegate_api::agent::{NodeRemoval, RegionAccess};
use tidegate_api::{ErrorBody, HostClaim, HostGrant, code};
use tidegate_rollout::entities::{Region, Report};
use tidegate_rollout::region::hosting::Holder;
use tidegate_rollout::region::link::wire::WireItem;
use tidegate_rollout::region::link::{AssignmentWatch, LinkError, LinkItem, Position, StateWatch};
use tidegate_rollout::region::{RegionLink, StateLink};
use tidegate_state::{Epoch, Ref, Revision, TransactionError, WriteError};
use uuid::Uuid;

use super::watch::{Cut, Sender, gone, stream};
use crate::access::{Asked, record_removal, to_region};
use crate::app::App;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Actor, Body, Path, Query};

/// How often something is said where nothing happens. Agents take three times that for the end of a connection.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Who says something: the agent and the token that it was given.
#[derive(Deserialize)]
pub(crate) struct HolderQuery {
    agent: Uuid,
    token: u64,
}

impl HolderQuery {
    fn holder(&self) -> Holder {
        Holder { agent: self.agent, token: self.token }
    }
}

/// Takes or renews the lease by which an agent hosts the region, and says that the agent lives.
#[utoipa::path(put, path = "/v1/regions/{region}/agent/host", tag = "agents",
    request_body = HostClaim,
    params(("region" = String, Path, description = "The region's name")),
    responses((status = 200, body = HostGrant), (status = 404, body = ErrorBody),
        (status = 409, description = "Another agent hosts the region", body = ErrorBody)))]
pub(crate) async fn host(
    State(app): State<App>,
    actor: Actor,
    Path(region): Path<String>,
    Body(claim): Body<HostClaim>,
) -> ApiResult<Json<HostGrant>> {
    let granted = link(&app, &actor, &region)?.host(&claim).await;
    granted.map(Json).map_err(|error| refused(&region, error))
}

/// Lets go of the lease: the agent stops in order.
#[utoipa::path(delete, path = "/v1/regions/{region}/agent/host", tag = "agents",
    params(("region" = String, Path, description = "The region's name"),
        ("agent" = String, Query, description = "The agent's id"),
        ("token" = u64, Query, description = "The token that it was given")),
    responses((status = 204, description = "It is let go of, or was before"), (status = 404, body = ErrorBody)))]
pub(crate) async fn release(
    State(app): State<App>,
    actor: Actor,
    Path(region): Path<String>,
    Query(query): Query<HolderQuery>,
) -> ApiResult<StatusCode> {
    let released = link(&app, &actor, &region)?.release(query.holder()).await;
    released.map(|()| StatusCode::NO_CONTENT).map_err(|error| refused(&region, error))
}

/// Takes the region's report on a store.
#[utoipa::path(put, path = "/v1/regions/{region}/agent/reports/{store}", tag = "agents",
    request_body(content = Object, description = "The report, a document of the region's agent"),
    params(("region" = String, Path, description = "The region's name"),
        ("store" = String, Path, description = "The store's name"),
        ("agent" = String, Query, description = "The agent's id"),
        ("token" = u64, Query, description = "The token that it was given")),
    responses((status = 204, description = "It is kept"), (status = 404, body = ErrorBody),
        (status = 409, description = "Another agent hosts the region", body = ErrorBody)))]
pub(crate) async fn report(
    State(app): State<App>,
    actor: Actor,
    Path((region, store)): Path<(String, String)>,
    Query(query): Query<HolderQuery>,
    Body(report): Body<Report>,
) -> ApiResult<StatusCode> {
    let reported = link(&app, &actor, &region)?.report(query.holder(), &store, Some(report)).await;
    reported.map(|()| StatusCode::NO_CONTENT).map_err(|error| refused(&region, error))
}

/// Removes the region's report on a store, of which nothing is left there.
#[utoipa::path(delete, path = "/v1/regions/{region}/agent/reports/{store}", tag = "agents",
    params(("region" = String, Path, description = "The region's name"),
        ("store" = String, Path, description = "The store's name"),
        ("agent" = String, Query, description = "The agent's id"),
        ("token" = u64, Query, description = "The token that it was given")),
    responses((status = 204, description = "It is gone"), (status = 404, body = ErrorBody),
        (status = 409, description = "Another agent hosts the region", body = ErrorBody)))]
pub(crate) async fn remove_report(
    State(app): State<App>,
    actor: Actor,
    Path((region, store)): Path<(String, String)>,
    Query(query): Query<HolderQuery>,
) -> ApiResult<StatusCode> {
    let removed = link(&app, &actor, &region)?.report(query.holder(), &store, None).await;
    removed.map(|()| StatusCode::NO_CONTENT).map_err(|error| refused(&region, error))
}

/// Takes note of a node that was removed on its agent's machine, in the audit trail. The same one again is the same entry.
#[utoipa::path(post, path = "/v1/regions/{region}/agent/removals", tag = "agents",
    request_body = NodeRemoval,
    params(("region" = String, Path, description = "The region's name")),
    responses((status = 204, description = "It is in the audit trail"), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub(crate) async fn removal(
    State(app): State<App>,
    actor: Actor,
    Path(region): Path<String>,
    Body(removal): Body<NodeRemoval>,
) -> ApiResult<StatusCode> {
    let list: Uuid = removal.list.parse().map_err(|_| {
        ApiError::invalid("The removal is not taken.", "`list` is no UUID.", "Send what the agent's folder keeps.")
    })?;
    let Ok(place) = Ref::<Region>::root(region.as_str()) else { return Err(region_unknown(&app, &region)) };
    let by = actor.clone();
    let write = app.state().transaction().attributes(actor.attributes()).write(move |transaction| {
        record_removal(transaction, &place, (list, &removal), (by.caller().bearer(), &by.request))
    });
    let is_known = write.await.map_err(|error: WriteError<TransactionError>| {
        ApiError::unavailable("The removal can't be kept now.", format!("{error}."))
    })?;
    if !is_known.value {
        return Err(region_unknown(&app, &region));
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub(crate) struct WatchQuery {
    epoch: Option<Uuid>,
    revision: Option<u64>,
}

/// Watches what is wanted of a region: everything first, then each change, and a heartbeat where nothing happens. With
/// epoch and revision of an earlier watch it goes on from there, or answers 410.
#[utoipa::path(get, path = "/v1/regions/{region}/agent/watch", tag = "agents",
    params(("region" = String, Path, description = "The region's name"),
        ("epoch" = Option<String>, Query, description = "The epoch of the last event that is known"),
        ("revision" = Option<u64>, Query, description = "Its revision")),
    responses((status = 200, description = "Events: `snapshot`, `change`, `heartbeat`, `removed`", body = String,
            content_type = "text/event-stream"),
        (status = 400, body = ErrorBody),
        (status = 410, description = "The log no longer reaches back: begin anew", body = ErrorBody)))]
pub(crate) async fn watch(
    State(app): State<App>,
    asked: Asked,
    actor: Actor,
    Path(region): Path<String>,
    Query(query): Query<WatchQuery>,
) -> ApiResult<Response> {
    let from = match (query.epoch, query.revision) {
        (None, None) => None,
        (Some(epoch), Some(revision)) => Some(Position { epoch: Epoch(epoch), revision: Revision(revision) }),
        _ => {
            return Err(ApiError::bad_request(
                "The place to resume from is incomplete.",
                "`epoch` and `revision` are needed together.",
            ));
        }
    };
    let room = app.enter_watch(&asked)?;
    let (watch, resumed) = link(&app, &actor, &region)?.open_watch(from);
    if from.is_some() && !resumed {
        return Err(gone(&app.state().snapshot()));
    }
    Ok(stream(&app, asked, room, |sender| send(watch, sender)))
}

async fn send(mut watch: StateWatch, sender: Sender) -> Result<(), Cut> {
    loop {
        let item = match tokio::time::timeout(HEARTBEAT, watch.next()).await {
            Ok(Ok(item)) => item,
            Ok(Err(_)) => return Ok(()),
            Err(_) => match watch.given_up_to() {
                Some(position) => LinkItem::Nothing { position },
                None => continue,
            },
        };
        let item = match WireItem::from_item(&item) {
            Ok(item) => item,
            Err(error) => {
                tracing::error!(%error, "what is wanted of a region can't be written as JSON");
                return Ok(());
            }
        };
        let position = item.position();
        let id = format!("{}:{}", position.epoch, position.revision);
        sender.send(item.name(), Some(id), &item).await?;
    }
}

#[derive(Deserialize)]
pub(crate) struct AccessQuery {
    known: Option<String>,
}

/// Who may ask the region's agent and its nodes: the digests of tokens. Nothing where what is known already has its mark.
#[utoipa::path(get, path = "/v1/regions/{region}/agent/access", tag = "agents",
    params(("region" = String, Path, description = "The region's name"),
        ("known" = Option<String>, Query, description = "The mark of what is known")),
    responses((status = 200, description = "Who may; null where that is known", body = RegionAccess),
        (status = 404, body = ErrorBody)))]
pub(crate) async fn access(
    State(app): State<App>,
    Path(region): Path<String>,
    Query(query): Query<AccessQuery>,
) -> ApiResult<Json<Option<RegionAccess>>> {
    // A token may have been made a moment ago, at another server.
    app.caught_up().await;
    let snapshot = app.state().snapshot();
    let place = Ref::<Region>::root(region.as_str()).ok().filter(|place| snapshot.contains(place.path()));
    let place = place.ok_or_else(|| region_unknown(&app, &region))?;
    let access = to_region(&place, &snapshot, app.state().now())?;
    Ok(Json(Some(access).filter(|access| query.known.as_ref() != Some(&access.mark))))
}

fn link(app: &App, actor: &Actor, region: &str) -> ApiResult<StateLink> {
    match StateLink::new(app.state().clone(), region) {
        Ok(link) => Ok(link.of_agent().with_attributes(actor.attributes())),
        Err(_) => Err(region_unknown(app, region)),
    }
}

fn region_unknown(app: &App, region: &str) -> ApiError {
    let snapshot = app.state().snapshot();
    ApiError::region_unknown(region, &app.scene(&snapshot).region_names().unwrap_or_default())
}

fn refused(region: &str, error: LinkError) -> ApiError {
    match error {
        LinkError::Unavailable { why } | LinkError::NotLetIn { why } => {
            ApiError::unavailable("The state can't be written now.", format!("{why}."))
        }
        LinkError::Replaced { by, address } => ApiError::new(
            StatusCode::CONFLICT,
            ErrorBody::new(
                code::REGION_HOSTED,
                format!("Another agent hosts region `{region}`."),
                format!("It is {by}."),
                "Nothing was changed. An agent that does not host its region commands nothing there.",
                "Stop the other agent, or wait until its lease has run out.",
            )
            .with_subjects(std::iter::once(by).chain(address)),
        ),
        LinkError::Refused { why } => ApiError::new(
            StatusCode::CONFLICT,
            ErrorBody::new(
                code::REFUSED,
                format!("What was said of region `{region}` is refused."),
                format!("{why}."),
                NOTHING_CHANGED,
                "Look at the regions there are (`tidegate region list`).",
            ),
        ),
    }
}
