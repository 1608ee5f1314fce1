//! Look-ups.

use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidegate_api::{BatchAnswer, BatchRequest, ErrorBody, KeyAnswer, code};
use tidegate_rollout::entities::{Assignment, Region, RegionHosting, Report};
use tidegate_rollout::region::RegionHost;
use tidegate_rollout::region::host::{ReadAnswer, ReadBatchAnswer, ReadError};
use tidegate_state::{Ref, Snapshot};

use crate::app::App;
use crate::forward::{Elsewhere, Origin, Read};
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Body, Path, Query, bad_path, bad_query, too_large};

#[derive(Deserialize)]
pub(crate) struct RegionQuery {
    pub(crate) region: Option<String>,
}

/// What a look-up of one key asks for. It reads the address itself, since forms by way of serde cost a look-up more than
/// the index does.
pub(crate) struct LookUp {
    path: RawPathParams,
    /// The region that is to answer.
    pub(crate) region: Option<String>,
}

impl LookUp {
    pub(crate) fn store(&self) -> &str {
        self.named("store")
    }

    pub(crate) fn key(&self) -> &str {
        self.named("key")
    }

    /// The routes of look-ups have both names; the empty text is the name of no store and, if it is one, a key like others.
    fn named(&self, name: &str) -> &str {
        self.path.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for LookUp {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let path = RawPathParams::from_request_parts(parts, state).await;
        let path = path.map_err(|rejection| bad_path(&rejection.body_text()))?;
        let mut region = None;
        for (name, value) in form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
            if name == "region" && region.replace(value.into_owned()).is_some() {
                return Err(bad_query("`region` is there twice."));
            }
        }
        Ok(Self { path, region })
    }
}

/// A body as JSON, which takes about so many bytes.
fn json(bytes: usize, body: &impl Serialize) -> ApiResult<Response> {
    let mut text = Vec::with_capacity(bytes);
    serde_json::to_writer(&mut text, body).map_err(ApiError::internal)?;
    let mut response = Response::new(text.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// [`KeyAnswer`] as it is sent: around the record's text, which the node wrote.
#[derive(Serialize)]
struct KeyText<'a> {
    key: &'a str,
    value: &'a RawValue,
    version: u64,
    region: &'a str,
    node: &'a str,
}

/// [`BatchAnswer`] as it is sent.
#[derive(Serialize)]
struct BatchText<'a> {
    version: u64,
    region: &'a str,
    node: &'a str,
    values: Vec<ValueText<'a>>,
}

/// [`KeyValue`](tidegate_api::KeyValue) as it is sent.
#[derive(Serialize)]
struct ValueText<'a> {
    key: &'a str,
    value: Option<&'a RawValue>,
}

/// The record with this key, and the version that answered. A key of several columns is a JSON
/// array of their values.
#[utoipa::path(get, path = "/v1/stores/{store}/keys/{key}", tag = "reads",
    params(("store" = String, Path, description = "The store's name"),
        ("key" = String, Path, description = "The key"),
        ("region" = Option<String>, Query, description = "The region that is to answer; any unless told")),
    responses((status = 200, body = KeyAnswer),
        (status = 404, description = "No such store, region or key, or nothing is served", body = ErrorBody),
        (status = 421, description = "The region is hosted elsewhere, and can't be asked from here", body = ErrorBody),
        (status = 422, description = "The key is none of this store", body = ErrorBody)))]
pub(crate) async fn key(State(app): State<App>, origin: Origin, mut asked: LookUp) -> ApiResult<Response> {
    let named = asked.region.take();
    let (store, key) = (asked.store(), asked.key());
    match answer_of(&app, store, named, |host, region| host.read(region, store, key)).await {
        Ok((region, answer)) => key_answer(store, key, &region, &answer),
        Err(not_here) => read_elsewhere(&app, not_here, Read::Key { store, key }, &origin).await,
    }
}

/// What a region answered about a key, as the API says it.
pub(crate) fn key_answer(store: &str, key: &str, region: &str, answer: &ReadAnswer) -> ApiResult<Response> {
    match &answer.value {
        Some(value) => {
            let bytes = value.get().len() + key.len() + region.len() + answer.node.len() + 80;
            json(bytes, &KeyText { key, value, version: answer.version, region, node: &answer.node })
        }
        None => Err(ApiError::absent(
            code::KEY_ABSENT,
            format!("Store `{store}` has no key `{key}`."),
            format!("Version {} has no such record, says node {} of region {region}.", answer.version, answer.node),
            "Look the key up as the data has it; keys are compared byte by byte.",
        )),
    }
}

/// The records with these keys, all from one version.
#[utoipa::path(post, path = "/v1/stores/{store}/keys:batch", tag = "reads",
    request_body = BatchRequest,
    params(("store" = String, Path, description = "The store's name"),
        ("region" = Option<String>, Query, description = "The region that is to answer; any unless told")),
    responses((status = 200, body = BatchAnswer),
        (status = 404, description = "No such store or region, or nothing is served", body = ErrorBody),
        (status = 413, description = "Too many keys", body = ErrorBody),
        (status = 421, description = "The region is hosted elsewhere, and can't be asked from here", body = ErrorBody),
        (status = 422, description = "A key is none of this store", body = ErrorBody)))]
pub(crate) async fn batch(
    State(app): State<App>,
    origin: Origin,
    Path(store): Path<String>,
    Query(query): Query<RegionQuery>,
    Body(request): Body<BatchRequest>,
) -> ApiResult<Response> {
    check_batch(&request, app.limits().batch_keys)?;
    let read = |host: &RegionHost, region: &str| host.read_batch(region, &store, &request.keys);
    match answer_of(&app, &store, query.region, read).await {
        Ok((region, answer)) => batch_answer(&request, &region, &answer),
        Err(not_here) => {
            let read = Read::Batch { store: &store, request: &request };
            read_elsewhere(&app, not_here, read, &origin).await
        }
    }
}

/// Refuses a batch of too many keys.
pub(crate) fn check_batch(request: &BatchRequest, limit: usize) -> ApiResult<()> {
    if request.keys.len() > limit {
        return Err(too_large(format!("The batch has {} keys; a batch has {limit} at most.", request.keys.len())));
    }
    Ok(())
}

/// What a region answered about several keys, as the API says it.
pub(crate) fn batch_answer(request: &BatchRequest, region: &str, answer: &ReadBatchAnswer) -> ApiResult<Response> {
    let values = request.keys.iter().zip(&answer.values);
    let values: Vec<_> = values.map(|(key, value)| ValueText { key, value: value.as_deref() }).collect();
    let entries = values.iter().map(|entry| entry.key.len() + entry.value.map_or(4, |value| value.get().len()) + 24);
    let bytes = entries.sum::<usize>() + region.len() + answer.node.len() + 80;
    json(bytes, &BatchText { version: answer.version, region, node: &answer.node, values })
}

/// Why a read is not answered here.
enum NotHere {
    /// Somebody else hosts the region.
    Elsewhere(Box<Elsewhere>),
    Error(ApiError),
}

impl From<ApiError> for NotHere {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

/// Has whoever hosts the region answer, if they can be asked.
async fn read_elsewhere(app: &App, not_here: NotHere, read: Read<'_>, origin: &Origin) -> ApiResult<Response> {
    match not_here {
        NotHere::Elsewhere(there) if app.forwarder().can(&there, read, origin) => {
            app.forwarder().forward(app, &there, read, origin).await
        }
        NotHere::Elsewhere(there) => Err(hosted_elsewhere(&there.region.id(), &there.by, there.address)),
        NotHere::Error(error) => Err(error),
    }
}

/// As [`in_region`], and once more where another server may have made the store just now.
async fn answer_of<T>(
    app: &App,
    store: &str,
    region: Option<String>,
    read: impl Fn(&RegionHost, &str) -> Result<T, ReadError>,
) -> Result<(String, T), NotHere> {
    let named = region.as_deref();
    match in_region(app, store, named, &read) {
        Err(NotHere::Error(error))
            if [code::STORE_UNKNOWN, code::REGION_UNKNOWN].contains(&error.body.code.as_str())
                && app.look_again().await =>
        {
            in_region(app, store, named, &read)
        }
        answered => answered,
    }
}

/// Asks the region that is named; where none is, one after the other until one serves the store.
fn in_region<T>(
    app: &App,
    store: &str,
    region: Option<&str>,
    read: impl Fn(&RegionHost, &str) -> Result<T, ReadError>,
) -> Result<(String, T), NotHere> {
    let host = app.regions();
    if let Some(region) = region {
        return match read(host, region) {
            Ok(answer) => Ok((region.to_owned(), answer)),
            Err(error) => Err(not_read(app, store, error)),
        };
    }
    let mut last = None;
    for region in host.regions() {
        match read(host, &region) {
            Ok(answer) => return Ok((region, answer)),
            Err(
                error @ (ReadError::NoVersion { .. }
                | ReadError::NoSuchStore { .. }
                | ReadError::HostedElsewhere { .. }
                | ReadError::Damaged { .. }),
            ) => last = Some(error),
            Err(error) => return Err(not_read(app, store, error)),
        }
    }
    if let Some(there) = serving_elsewhere(app, store)? {
        return Err(NotHere::Elsewhere(Box::new(there)));
    }
    Err(match last {
        Some(error) => not_read(app, store, error),
        None => {
            let snapshot = app.state().snapshot();
            app.scene(&snapshot).find_store(store)?;
            not_served_anywhere(store).into()
        }
    })
}

/// A region that is hosted elsewhere and says that it serves the store.
fn serving_elsewhere(app: &App, store: &str) -> ApiResult<Option<Elsewhere>> {
    let snapshot = app.state().snapshot();
    let now = app.state().now();
    for item in snapshot.roots::<Region>() {
        let region = item?.0;
        let Ok(report) = region.child::<Report>(store) else { return Ok(None) };
        let serves = snapshot.get(&report)?.is_some_and(|report| report.serving.is_some());
        if !serves || app.regions().hosted(&region.id()).is_some_and(|hosted| !hosted.agent().is_elsewhere()) {
            continue;
        }
        let hosting = region.child::<RegionHosting>(RegionHosting::ID)?;
        if let Some(hosting) = snapshot.get(&hosting)?
            && hosting.address.is_some()
            && !hosting.has_lapsed(now)
        {
            return Ok(Some(Elsewhere::of(region, hosting)));
        }
    }
    Ok(None)
}

/// What the region is to serve, whether or not it does.
fn assigned(app: &App, store: &str, region: &str) -> Option<u64> {
    let place = Ref::<Region>::root(region).and_then(|region| region.child::<Assignment>(store)).ok()?;
    app.state().snapshot().get(&place).ok()??.serve
}

fn not_read(app: &App, store: &str, error: ReadError) -> NotHere {
    let snapshot = app.state().snapshot();
    match error {
        // A region may hold a store that was deleted for a moment longer.
        ReadError::NoSuchStore { region, .. } | ReadError::NoVersion { region, .. } => {
            match app.scene(&snapshot).find_store(store) {
                Ok(_) => not_served(store, &region, assigned(app, store, &region)).into(),
                Err(error) => error.into(),
            }
        }
        ReadError::NoSuchRegion { region, .. } | ReadError::HostedElsewhere { region, .. } => {
            let there = host_of(&snapshot, &region).and_then(|there| {
                let there = there.ok_or_else(|| {
                    let known = app.scene(&snapshot).region_names().unwrap_or_default();
                    ApiError::region_unknown(&region, &known)
                })?;
                app.scene(&snapshot).find_store(store)?;
                Ok(there)
            });
            match there {
                Ok(there) => NotHere::Elsewhere(Box::new(there)),
                Err(error) => error.into(),
            }
        }
        error => read_failed(store, error, None).into(),
    }
}

/// Who hosts a region, if there is one of this name.
fn host_of(snapshot: &Snapshot, region: &str) -> ApiResult<Option<Elsewhere>> {
    let Ok(place) = Ref::<Region>::root(region) else { return Ok(None) };
    if !snapshot.contains(place.path()) {
        return Ok(None);
    }
    match snapshot.get(&place.child::<RegionHosting>(RegionHosting::ID)?)? {
        Some(hosting) => Ok(Some(Elsewhere::of(place, hosting))),
        None => Err(ApiError::unavailable(
            format!("Region `{region}` can't be read."),
            "No agent hosts it, and none ever has.".to_owned(),
        )),
    }
}

/// Why a region did not answer a read, as the API says it. `assigned` is the version that it is to serve.
pub(crate) fn read_failed(store: &str, error: ReadError, assigned: Option<u64>) -> ApiError {
    match error {
        ReadError::NoSuchRegion { region, known } => ApiError::region_unknown(&region, &known),
        ReadError::NoSuchStore { region, .. } | ReadError::NoVersion { region, .. } => {
            not_served(store, &region, assigned)
        }
        ReadError::HostedElsewhere { region, by, address } => hosted_elsewhere(&region, &by, address),
        ReadError::BadKey { message } => ApiError::invalid(
            format!("This is no key of store `{store}`."),
            format!("{message}."),
            "Write a key of one column as its text, one of several columns as a JSON array.",
        ),
        ReadError::TooManyKeys { .. } | ReadError::TooLarge => too_large(format!("{error}.")),
        ReadError::Damaged { .. } => ApiError::unavailable("The record can't be read.", format!("{error}.")),
    }
}

fn hosted_elsewhere(region: &str, by: &str, address: Option<String>) -> ApiError {
    let there = address.as_ref().map_or(
        "Have it say where it is (`--advertise`), so that other servers can ask it, or ask it yourself.".to_owned(),
        |address| format!("Ask there, at {address}."),
    );
    ApiError::new(
        StatusCode::MISDIRECTED_REQUEST,
        ErrorBody::new(
            code::REGION_HOSTED,
            format!("Region `{region}` is not hosted here."),
            format!("It is hosted by {by}."),
            NOTHING_CHANGED,
            there,
        )
        .with_subjects(std::iter::once(by.to_owned()).chain(address)),
    )
}

fn not_served_anywhere(store: &str) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        ErrorBody::new(
            code::NOT_SERVED,
            format!("No region that can be asked from here serves store `{store}`."),
            "None that is hosted says that it does, or those that do have not said where they are.",
            NOTHING_CHANGED,
            "Name the region, or look at how the store stands (`tidegate store show`).",
        ),
    )
}

fn not_served(store: &str, region: &str, assigned: Option<u64>) -> ApiError {
    if let Some(version) = assigned {
        return ApiError::unavailable(
            format!("Region `{region}` can't answer for store `{store}` at the moment."),
            format!(
                "It is to serve version {version}, and none of its nodes serves it now; its agent is putting that right."
            ),
        );
    }
    ApiError::new(
        StatusCode::NOT_FOUND,
        ErrorBody::new(
            code::NOT_SERVED,
            format!("Region `{region}` serves no version of store `{store}`."),
            "No version has been swapped to there, or the only one was rolled back.",
            NOTHING_CHANGED,
            "Push a version, or look at how the push stands (`tidegate push list`).",
        ),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tidegate_api::KeyValue;

    use super::*;

    /// What is sent and what the API describes are two types: here they meet.
    #[test]
    fn what_is_sent_is_what_the_api_says() {
        let record = serde_json::value::to_raw_value(&json!({ "icao": "EDDB", "name": "Berlin \"BER\"" })).unwrap();
        let value: serde_json::Value = serde_json::from_str(record.get()).unwrap();
        let (region, node) = (Some("a".to_owned()), Some("a-1".to_owned()));

        let sent = KeyText { key: "EDDB", value: &record, version: 7, region: "a", node: "a-1" };
        let said = KeyAnswer {
            key: "EDDB".to_owned(),
            value: value.clone(),
            version: 7,
            region: region.clone(),
            node: node.clone(),
        };
        assert_eq!(serde_json::to_value(&sent).unwrap(), serde_json::to_value(&said).unwrap());

        let values = vec![ValueText { key: "EDDB", value: Some(&record) }, ValueText { key: "none", value: None }];
        let sent = BatchText { version: 7, region: "a", node: "a-1", values };
        let values = vec![
            KeyValue { key: "EDDB".to_owned(), value: Some(value) },
            KeyValue { key: "none".to_owned(), value: None },
        ];
        let said = BatchAnswer { version: 7, region, node, values };
        assert_eq!(serde_json::to_value(&sent).unwrap(), serde_json::to_value(&said).unwrap());
    }
}
