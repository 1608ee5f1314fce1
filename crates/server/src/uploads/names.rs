//! What uploads are called, and which names are taken from outside.

use sha2::{Digest, Sha256};

use crate::http::errors::{ApiError, ApiResult};

/// A push's folder: readable where its id allows it, and another for every id.
pub(super) fn folder_name(push: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if !push.is_empty() && push.len() <= 100 && push.chars().all(is_plain) {
        return push.to_owned();
    }
    let digest = hex(&Sha256::digest(push.as_bytes()));
    // The point keeps it apart from every id that is plain.
    format!("id.{digest}")
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) fn check_sha256(sha256: &str) -> ApiResult<()> {
    if is_sha256(sha256) {
        return Ok(());
    }
    Err(ApiError::bad_request("The parameter `sha256` is no SHA-256.", "It has 64 hexadecimal digits in lower case."))
}

pub(super) fn check_part_name(name: &str) -> ApiResult<()> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_fine = !name.is_empty()
        && name.len() <= 128
        && name.chars().all(is_allowed)
        && !name.starts_with('.')
        && !name.starts_with("manifest");
    if is_fine {
        return Ok(());
    }
    Err(ApiError::invalid(
        "A part can't have this name.",
        "A part's name has 1 to 128 letters, digits, `-`, `_` and `.`, and begins neither with a \
         point nor with `manifest`.",
        "Build the artifact with a client of this release.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_pushes_never_meet_and_never_leave_their_place() {
        let ids = ["a", "A", "../a", "a/b", ".", "..", "id", "id.x", "é", ""];
        let names: Vec<String> = ids.iter().map(|id| folder_name(id)).collect();
        for (index, name) in names.iter().enumerate() {
            assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
            assert!(!names[..index].contains(name), "{name}");
        }
    }

    #[test]
    fn names_of_parts_can_not_leave_their_folder() {
        for name in ["", ".", "..", "../x", "a/b", ".hidden", "manifest-1.json", "é"] {
            assert!(check_part_name(name).is_err(), "{name}");
        }
        assert!(check_part_name("part-00000.parquet").is_ok());
    }
}
