//! Tokens: what is kept of them, and what a bearer presents.
//!
//! A token is `tg_<id>_<secret>`: 64 random bits that name it, and 256 that prove it, both in hexadecimal. The id is no
//! secret; of the secret the SHA-256 is kept. It is as random as it is long, so that no slow hash is needed: nobody guesses it,
//! and nobody finds it from its digest.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tidegate_api::{Role, TokenStatus};
use tidegate_state::{Entity, Root, Timestamp};

/// What a token begins with, so that people and scanners of leaked secrets know it.
const PREFIX: &str = "tg_";

const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// Random bytes that a token is made of.
pub(crate) const RANDOM_BYTES: usize = ID_BYTES + SECRET_BYTES;

/// `/tokens/{id}`. Written by whoever may make and revoke tokens.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// SHA-256 of the secret, in hexadecimal.
    pub(crate) digest: String,
    /// What its changes are signed with.
    pub(crate) name: String,
    pub(crate) role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) team: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) region: Option<String>,
    pub(crate) created_at: Timestamp,
    pub(crate) created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked: Option<Revoked>,
}

/// When a token was revoked, by whom and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revoked {
    pub(crate) at: Timestamp,
    pub(crate) by: String,
    #[serde(default)]
    pub(crate) reason: String,
}

impl Entity for Token {
    const COLLECTION: &'static str = "tokens";
    type Parent = Root;
    type Id = String;
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Token").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}

/// `/tokens/{id}/uses/last`: when a token was used last, roughly. Apart from the token, so that noting it is no change of
/// the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenUse {
    pub(crate) last_used_at: Timestamp,
}

impl Entity for TokenUse {
    const COLLECTION: &'static str = "uses";
    type Parent = Token;
    type Id = String;
}

/// The id of a token's one [`TokenUse`].
pub(crate) const LAST_USE: &str = "last";

impl Token {
    /// Whether it holds at this time.
    pub(crate) fn status(&self, now: Timestamp) -> TokenStatus {
        if self.revoked.is_some() {
            TokenStatus::Revoked
        } else if self.expires_at.is_some_and(|at| at <= now) {
            TokenStatus::Expired
        } else {
            TokenStatus::Active
        }
    }

    /// When it ended, if it has.
    pub(crate) fn ended_at(&self, now: Timestamp) -> Option<Timestamp> {
        let expired = self.expires_at.filter(|at| *at <= now);
        [expired, self.revoked.as_ref().map(|revoked| revoked.at)].into_iter().flatten().min()
    }

    /// Whether this is its secret.
    pub(crate) fn is_proven_by(&self, digest: &SecretDigest) -> bool {
        digest.is(&self.digest)
    }
}

/// SHA-256 of a secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretDigest(String);

impl SecretDigest {
    pub(crate) fn of(secret: &str) -> Self {
        Self(hex::encode(Sha256::digest(secret.as_bytes())))
    }

    /// Compares in constant time.
    pub(crate) fn is(&self, kept: &str) -> bool {
        self.0.as_bytes().ct_eq(kept.as_bytes()).into()
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// A new token's id, what its bearer presents, and what is kept of that.
pub(crate) fn mint(random: [u8; RANDOM_BYTES]) -> (String, String, SecretDigest) {
    let (id, secret) = random.split_at(ID_BYTES);
    let (id, secret) = (hex::encode(id), hex::encode(secret));
    let digest = SecretDigest::of(&secret);
    let shown = format!("{PREFIX}{id}_{secret}");
    (id, shown, digest)
}

/// What somebody presents as a token.
pub(crate) struct Presented {
    pub(crate) id: String,
    pub(crate) digest: SecretDigest,
}

impl Presented {
    /// Reads it; nothing if it does not have the form of a token.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        (is_hexadecimal(id, ID_BYTES) && is_hexadecimal(secret, SECRET_BYTES))
            .then(|| Self { id: id.to_owned(), digest: SecretDigest::of(secret) })
    }
}

fn is_hexadecimal(text: &str, bytes: usize) -> bool {
    text.len() == 2 * bytes && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_minted_is_read_again_and_proves_its_token_alone() {
        let (id, shown, digest) = mint([7; RANDOM_BYTES]);
        assert!(shown.starts_with("tg_0707070707070707_0707"), "{shown}");
        let presented = Presented::parse(&shown).unwrap();
        assert_eq!(presented.id, id);
        assert!(presented.digest.is(&digest.clone().into_text()));
        let mut other = [7; RANDOM_BYTES];
        other[RANDOM_BYTES - 1] = 8;
        let (same_id, other, _) = mint(other);
        assert_eq!(same_id, id);
        assert!(!Presented::parse(&other).unwrap().digest.is(&digest.into_text()));
    }

    #[test]
    fn nothing_else_has_the_form_of_a_token() {
        let (_, shown, _) = mint([1; RANDOM_BYTES]);
        for text in ["", "tg_", "tg__", "tg_0101010101010101", &shown[1..], &shown[..shown.len() - 1]] {
            assert!(Presented::parse(text).is_none(), "{text}");
        }
        assert!(Presented::parse(&shown.to_uppercase()).is_none());
        assert!(Presented::parse(&format!("{shown} ")).is_none());
        assert!(Presented::parse(&shown.replace('0', "g")).is_none());
    }

    #[test]
    fn a_token_ends_when_it_expires_or_is_revoked_whichever_is_first() {
        let token = |expires_at, revoked_at: Option<i64>| Token {
            digest: String::new(),
            name: "n".to_owned(),
            role: Role::Viewer,
            team: None,
            region: None,
            created_at: Timestamp(0),
            created_by: String::new(),
            expires_at,
            revoked: revoked_at.map(|at| Revoked { at: Timestamp(at), by: String::new(), reason: String::new() }),
        };
        let now = Timestamp(100);
        for (expires_at, revoked_at, status, ended_at) in [
            (None, None, TokenStatus::Active, None),
            (Some(101), None, TokenStatus::Active, None),
            (Some(100), None, TokenStatus::Expired, Some(100)),
            (None, Some(50), TokenStatus::Revoked, Some(50)),
            (Some(40), Some(50), TokenStatus::Revoked, Some(40)),
            (Some(200), Some(50), TokenStatus::Revoked, Some(50)),
        ] {
            let token = token(expires_at.map(Timestamp), revoked_at);
            assert_eq!((token.status(now), token.ended_at(now)), (status, ended_at.map(Timestamp)), "{expires_at:?}");
        }
    }

    #[test]
    fn a_digest_does_not_show_in_what_is_printed_for_debugging() {
        let (_, _, digest) = mint([3; RANDOM_BYTES]);
        let token = Token {
            digest: digest.into_text(),
            name: "n".to_owned(),
            role: Role::Admin,
            team: None,
            region: None,
            created_at: Timestamp(0),
            created_by: "me".to_owned(),
            expires_at: None,
            revoked: None,
        };
        assert!(!format!("{token:?}").contains(&token.digest));
    }
}
