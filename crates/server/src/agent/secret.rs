//! Secrets that an agent or a node draws at its start, and what shows them.

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;
use uuid::Uuid;

/// A new secret.
pub(crate) fn draw() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Whether a request shows this secret. Takes as long for every guess of the same length.
pub(crate) fn is_shown(headers: &HeaderMap, secret: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
    given.as_bytes().ct_eq(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn secrets_are_compared_as_a_whole() {
        let is_shown = |given: &str| {
            let value = HeaderValue::from_str(&format!("Bearer {given}")).unwrap();
            is_shown(&HeaderMap::from_iter([(header::AUTHORIZATION, value)]), "abc")
        };
        assert!(is_shown("abc"));
        for other in ["abd", "ab", "abcd", ""] {
            assert!(!is_shown(other));
        }
    }
}
