//! Artifacts, for regions that can't reach the folder that they are in.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use tidegate_api::{ErrorBody, code};
use tidegate_dataset::artifact::{ArtifactError, ArtifactFile, ArtifactStore, FileError, FileRange};
use tokio::sync::OwnedSemaphorePermit;

use crate::app::App;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::Path;

/// A part or the manifest of an artifact, whole or a range of its bytes. It never changes.
#[utoipa::path(get, path = "/v1/artifacts/{artifact}/{file}", tag = "artifacts",
    params(("artifact" = String, Path, description = "The artifact's id"),
        ("file" = String, Path, description = "The file's name, as the manifest has it"),
        ("range" = Option<String>, Header, description = "One range of bytes, such as `bytes=0-99`")),
    responses((status = 200, description = "The file", content_type = "application/octet-stream"),
        (status = 206, description = "The range that was asked for", content_type = "application/octet-stream"),
        (status = 404, description = "No such file", body = ErrorBody),
        (status = 416, description = "The range begins behind the end", body = ErrorBody)))]
pub(crate) async fn file(
    State(app): State<App>,
    Path((artifact, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let permit = app.enter_download()?;
    serve(app.artifacts(), &artifact, &file, &headers, permit).await
}

/// Answers with a file of an artifact; the permit is held until its last byte was taken.
pub(crate) async fn serve(
    store: &ArtifactStore,
    artifact: &str,
    file: &str,
    headers: &HeaderMap,
    permit: OwnedSemaphorePermit,
) -> ApiResult<Response> {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(parse_range);
    let opened = store.open_file(artifact, file, range).await.map_err(|error| failed(artifact, file, &error))?;
    let ArtifactFile { size, range: given, bytes } = opened;
    let length = given.end - given.start;
    let body = Body::from_stream(bytes.map(move |chunk| {
        let _held = &permit;
        chunk
    }));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if range.is_some() {
        let text = format!("bytes {}-{}/{size}", given.start, given.end - 1);
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&text).map_err(ApiError::internal)?);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// One range of bytes. Whatever else a client may write is passed over, and gets the whole file, as the standard has it.
fn parse_range(text: &str) -> Option<FileRange> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    match (first.trim(), last.trim()) {
        ("", last) => Some(FileRange::Last(last.parse().ok()?)),
        (first, "") => Some(FileRange::From(first.parse().ok()?)),
        (first, last) => {
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then(|| FileRange::Between(first, last.saturating_add(1)))
        }
    }
}

fn failed(artifact: &str, file: &str, error: &FileError) -> ApiError {
    match error {
        FileError::NotFound { .. } | FileError::Artifact(ArtifactError::BadName { .. }) => ApiError::absent(
            code::ARTIFACT_UNKNOWN,
            format!("There is no file `{}` of artifact `{}`.", shown(file), shown(artifact)),
            "It was never completed, or nothing referred to it any more and it was removed.",
            "Look at which version is wanted (`tidegate region show`).",
        ),
        FileError::Range { size } => ApiError::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            ErrorBody::new(
                code::BAD_REQUEST,
                "The range can't be given.",
                format!("It begins behind the end: the file has {size} bytes."),
                NOTHING_CHANGED,
                "Ask for bytes that the file has.",
            ),
        ),
        FileError::Artifact(error) => ApiError::unavailable("The artifact can't be read.", format!("{error}.")),
    }
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_read_and_anything_else_gets_the_whole() {
        assert_eq!(parse_range("bytes=0-99"), Some(FileRange::Between(0, 100)));
        assert_eq!(parse_range("bytes=5-"), Some(FileRange::From(5)));
        assert_eq!(parse_range("bytes=-5"), Some(FileRange::Last(5)));
        for whole in ["", "bytes=", "bytes=-", "bytes=9-1", "bytes=0-1,3-4", "lines=0-1", "bytes=x-y"] {
            assert_eq!(parse_range(whole), None, "{whole}");
        }
    }
}
