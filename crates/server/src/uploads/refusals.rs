//! What a sender of parts is told when something is wrong with them.

use axum::http::StatusCode;
use tidegate_api::manifest::Manifest;
use tidegate_api::{ErrorBody, PartView, code};
use tidegate_dataset::artifact::ArtifactError;

use crate::http::errors::{ApiError, ApiResult};

pub(super) fn broken(name: &str, bytes: u64, why: &str) -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        ErrorBody::new(
            code::BAD_REQUEST,
            format!("The part `{name}` did not arrive whole."),
            format!("The connection broke after {bytes} bytes: {why}."),
            "What had arrived of it was dropped; other parts stay.",
            "Send this part again.",
        )
        .with_retryable(true)
        .with_subjects([name.to_owned()]),
    )
}

pub(super) fn damaged(name: &str, bytes: u64, expected: &str, found: &str) -> ApiError {
    ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        ErrorBody::new(
            code::PART_DAMAGED,
            format!("The part `{name}` is not what was announced."),
            format!("The {bytes} bytes that arrived have the SHA-256 {found}, announced was {expected}."),
            "It was dropped; nothing will ever load it. Other parts stay.",
            "Send this part again; if that does not help, build the artifact again.",
        )
        .with_subjects([name.to_owned()]),
    )
}

pub(super) fn why_missing(part: &tidegate_api::manifest::Part, sent: Option<&PartView>) -> String {
    match sent {
        None => "has not arrived".to_owned(),
        Some(sent) if sent.bytes != part.bytes => {
            format!("arrived with {} bytes, the manifest says {}", sent.bytes, part.bytes)
        }
        Some(sent) => format!("arrived with the SHA-256 {}, the manifest says {}", sent.sha256, part.sha256),
    }
}

pub(super) fn parts_missing(missing: &[(String, String)]) -> ApiError {
    const NAMED_MAX: usize = 10;
    let mut named: Vec<String> = missing.iter().take(NAMED_MAX).map(|(name, why)| format!("`{name}` {why}")).collect();
    if missing.len() > NAMED_MAX {
        named.push(format!("and {} more", missing.len() - NAMED_MAX));
    }
    ApiError::new(
        StatusCode::CONFLICT,
        ErrorBody::new(
            code::PARTS_MISSING,
            "The artifact is not complete.",
            format!("Of its parts, {}.", named.join("; ")),
            "No region will load it as it is. What has arrived stays.",
            "Send the parts that are named, then complete it again.",
        )
        .with_subjects(missing.iter().map(|(name, _)| name.clone())),
    )
}

/// Refuses a manifest that does not have the parts that the store's versions have, before anything looks at each of them.
pub(crate) fn check_part_count(manifest: &Manifest, partitions: u32) -> ApiResult<()> {
    let (parts, said) = (manifest.parts.len(), manifest.partition_count);
    if parts == partitions as usize && said == partitions {
        return Ok(());
    }
    Err(refused_manifest(format!("It has {parts} parts for {said} partitions, and the store has {partitions}.")))
}

pub(super) fn manifest_refused(error: &ArtifactError) -> ApiError {
    refused_manifest(format!("{error}."))
}

fn refused_manifest(why: String) -> ApiError {
    ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        ErrorBody::new(
            code::MANIFEST_REFUSED,
            "The manifest is refused.",
            why,
            "The artifact is not complete, and no region will load it.",
            "Build the artifact again with a client of this release.",
        ),
    )
}

pub(super) fn store_failed(error: ArtifactError) -> ApiError {
    match &error {
        ArtifactError::BadManifest { .. } | ArtifactError::BadName { .. } => manifest_refused(&error),
        ArtifactError::Missing { parts, .. } => {
            let missing: Vec<(String, String)> =
                parts.iter().map(|name| (name.clone(), "is not there".to_owned())).collect();
            parts_missing(&missing)
        }
        ArtifactError::Disk { source, .. } => ApiError::disk("The artifact could not be kept.", source),
        _ => {
            tracing::error!(%error, "the artifact store failed");
            ApiError::unavailable(
                "The artifact store does not answer as it should.",
                "The server's log says what it said.",
            )
        }
    }
}

/// Parts that are sent in another way than the artifact store takes them.
pub(super) fn other_way(countermeasures: &str) -> ApiError {
    ApiError::invalid(
        "The part was not taken.",
        "How parts are sent depends on where artifacts are kept: through the server where that is a folder, straight \
         there where it is a bucket; `direct` in the list of parts says which.",
        countermeasures,
    )
}
