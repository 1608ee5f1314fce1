//! The audit trail.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tidegate_api::{AuditPage, ErrorBody};
use tidegate_state::{IndexKey, PAGE_MAX, RecordCursor, RecordId, RecordSearch, Revision};

use crate::access::AuditRecord;
use crate::app::App;
use crate::http::errors::{ApiError, ApiResult};
use crate::http::extract::Query;

/// How many entries a page has where nobody says how many.
const PAGE_DEFAULT: usize = 100;

/// How often one request looks for more, where a condition that no index knows leaves a page short.
const LOOKS_MAX: usize = 16;

#[derive(Deserialize)]
pub(crate) struct PageQuery {
    store: Option<String>,
    user: Option<String>,
    region: Option<String>,
    since: Option<u64>,
    limit: Option<usize>,
    after: Option<String>,
}

/// Who changed what, the newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "access",
    params(("store" = Option<String>, Query, description = "About this store only"),
        ("user" = Option<String>, Query, description = "By this user only"),
        ("region" = Option<String>, Query, description = "About this region only; such a page may be short, or empty, and \
            have a `next` all the same"),
        ("since" = Option<u64>, Query, description = "Not before this time, in epoch milliseconds"),
        ("limit" = Option<usize>, Query, description = "How many at most; 100 unless told, 1000 at most"),
        ("after" = Option<String>, Query, description = "Where the page before this one ended: its `next`")),
    responses((status = 200, body = AuditPage), (status = 400, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, Query(query): Query<PageQuery>) -> ApiResult<Json<AuditPage>> {
    let limit = query.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let cursor = match &query.after {
        Some(text) => Some(place(text).ok_or_else(|| {
            ApiError::bad_request("The parameter `after` is no place in the trail.", "It is the `next` of a page.")
        })?),
        None => None,
    };
    let is_wanted = |record: &AuditRecord| query.region.as_ref().is_none_or(|region| record.is_about_region(region));
    let mut page = AuditPage { entries: Vec::new(), next: None };
    let mut after = cursor;
    for _ in 0..LOOKS_MAX {
        let room = limit - page.entries.len();
        let found = app
            .state()
            .records::<AuditRecord>(search(&query).after(after).limit(room))
            .await
            .map_err(|error| ApiError::unavailable("The audit trail could not be read.", format!("{error}.")))?;
        page.next = found.next.as_ref().map(text);
        for stored in &found.items {
            let Ok(record) = &stored.value else {
                tracing::warn!(record = %stored.id, "an entry of the audit trail can't be read");
                continue;
            };
            if query.since.is_some_and(|since| crate::views::ms(record.at) < since) {
                page.next = None;
                return Ok(Json(page));
            }
            if is_wanted(record) {
                page.entries.push(record.view());
            }
        }
        after = found.next;
        if after.is_none() || page.entries.len() == limit {
            break;
        }
    }
    Ok(Json(page))
}

fn search(query: &PageQuery) -> RecordSearch {
    match (&query.store, &query.user) {
        (Some(store), Some(user)) => RecordSearch::by("store-user").prefix(IndexKey::new().text(store).text(user)),
        (Some(store), None) => RecordSearch::by("store").prefix(IndexKey::new().text(store)),
        (None, Some(user)) => RecordSearch::by("user").prefix(IndexKey::new().text(user)),
        (None, None) => RecordSearch::by("time"),
    }
}

/// A place in the trail as text.
fn text(cursor: &RecordCursor) -> String {
    format!("{}.{}", hex::encode(&cursor.key), cursor.id)
}

fn place(text: &str) -> Option<RecordCursor> {
    let (key, id) = text.split_once('.')?;
    let (revision, sequence) = id.split_once('.')?;
    let id = RecordId { revision: Revision(revision.parse().ok()?), sequence: sequence.parse().ok()? };
    Some(RecordCursor { key: hex::decode(key).ok()?, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_its_text_form_and_nothing_else_is_one() {
        let id = RecordId { revision: Revision(17), sequence: 2 };
        let cursor = RecordCursor { key: vec![0, 255, 7], id };
        assert_eq!(place(&text(&cursor)), Some(cursor));
        for text in ["", ".", "00", "00.1", "0.1.2", "zz.1.2", "00.1.2.3", "00.-1.2"] {
            assert_eq!(place(text), None, "{text}");
        }
    }
}
