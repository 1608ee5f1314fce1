//! Who asks: what a request shows, and whose that is.

use axum::http::{HeaderMap, header};
use tidegate_api::{Role, TokenStatus};
use tidegate_state::{ReadError, Ref, Snapshot, Timestamp};

use super::refusal::Refusal;
use super::session;
use super::token::{Presented, Token};

/// Says who acts where authentication is off: it is taken at its word.
const USER_HEADER: &str = "tidegate-user";

/// The longest name of a user that is kept.
const USER_CHARS_MAX: usize = 128;

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Somebody who was not asked for a token: authentication is off, or the route is open.
    Anyone,
    /// The bearer of a token.
    Bearer(Bearer),
}

/// The bearer of a token that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub(crate) token: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) team: Option<String>,
    pub(crate) region: Option<String>,
    /// Whether the page's session stood for the token.
    pub(crate) by_session: bool,
}

impl Bearer {
    pub(super) fn of(id: String, token: &Token, by_session: bool) -> Self {
        Self {
            token: id,
            name: token.name.clone(),
            role: token.role,
            team: token.team.clone(),
            region: token.region.clone(),
            by_session,
        }
    }
}

impl Caller {
    /// The team beyond whose stores the caller sees nothing, if there is one.
    pub(crate) fn team(&self) -> Option<&str> {
        match self {
            Self::Bearer(Bearer { role: Role::Team, team, .. }) => Some(team.as_deref().unwrap_or_default()),
            Self::Anyone | Self::Bearer(_) => None,
        }
    }

    /// Refuses whoever may not open gates whatever their hooks say: that is an operator's decision, also for a team's own
    /// store.
    pub(crate) fn may_open_gates(&self) -> Result<(), Refusal> {
        const NEEDED: &[Role] = &[Role::Operator, Role::Admin];
        match self {
            Self::Bearer(Bearer { name, role, .. }) if !NEEDED.contains(role) => {
                Err(Refusal::Role { name: name.clone(), role: *role, needed: NEEDED })
            }
            Self::Anyone | Self::Bearer(_) => Ok(()),
        }
    }

    pub(crate) fn bearer(&self) -> Option<&Bearer> {
        match self {
            Self::Bearer(bearer) => Some(bearer),
            Self::Anyone => None,
        }
    }
}

/// Who the caller says that it is.
pub(crate) fn claimed_name(headers: &HeaderMap) -> String {
    headers
        .get(USER_HEADER)
        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
        .map(|name| name.trim().chars().filter(|c| !c.is_control()))
        .map(|name| name.take(USER_CHARS_MAX).collect::<String>())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "local user".to_owned())
}

/// Whose token, or session of the page, a request shows. Sessions count for reading alone.
pub(super) fn bearer_of(
    headers: &HeaderMap,
    is_reading: bool,
    snapshot: &Snapshot,
    now: Timestamp,
) -> Result<Bearer, Refusal> {
    match presented(headers) {
        Err(Refusal::NoToken) if is_reading => session::bearer_of(headers, snapshot, now)?.ok_or(Refusal::NoToken),
        presented => by_token(&presented?, snapshot, now),
    }
}

/// What a request shows as its token.
pub(super) fn presented(headers: &HeaderMap) -> Result<Presented, Refusal> {
    let mut shown = headers.get_all(header::AUTHORIZATION).iter();
    match (shown.next(), shown.next()) {
        (Some(value), None) => {
            let presented = value.to_str().ok().and_then(bearer_text).and_then(Presented::parse);
            presented.ok_or(Refusal::NoTokenForm)
        }
        (Some(_), Some(_)) => Err(Refusal::NoTokenForm),
        (None, _) => Err(Refusal::NoToken),
    }
}

/// What follows `Bearer`, whose case does not matter.
fn bearer_text(value: &str) -> Option<&str> {
    let (scheme, text) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| text.trim())
}

/// Whose token this is.
pub(crate) fn bearer_of_text(text: &str, snapshot: &Snapshot, now: Timestamp) -> Result<Bearer, Refusal> {
    by_token(&Presented::parse(text).ok_or(Refusal::NoTokenForm)?, snapshot, now)
}

/// The bearer of a token, if it holds.
fn by_token(presented: &Presented, snapshot: &Snapshot, now: Timestamp) -> Result<Bearer, Refusal> {
    let place: Ref<Token> = Ref::root(presented.id.as_str()).map_err(|_| Refusal::WrongToken)?;
    let token = snapshot.get(&place)?.filter(|token| token.is_proven_by(&presented.digest));
    let token = token.ok_or(Refusal::WrongToken)?;
    in_force(token, now)?;
    Ok(Bearer::of(presented.id.clone(), token, false))
}

/// Refuses a token that has ended.
pub(super) fn in_force(token: &Token, now: Timestamp) -> Result<(), Refusal> {
    match token.status(now) {
        TokenStatus::Active => Ok(()),
        TokenStatus::Revoked => Err(Refusal::Revoked { name: token.name.clone() }),
        TokenStatus::Expired | TokenStatus::Unknown => Err(Refusal::Expired { name: token.name.clone() }),
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_scheme_is_bearer_in_any_case_and_no_other() {
        assert_eq!(bearer_text("Bearer x"), Some("x"));
        assert_eq!(bearer_text("bEARER  x"), Some("x"));
        for text in ["x", "Basic x", "Bearerx", "", "Bearer"] {
            assert_eq!(bearer_text(text), None, "{text}");
        }
    }

    #[test]
    fn a_claimed_name_is_bounded_and_has_no_control_characters() {
        let name = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(USER_HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            claimed_name(&headers)
        };
        assert_eq!(name(" me\tyou "), "meyou");
        assert_eq!(name(&"x".repeat(500)).len(), USER_CHARS_MAX);
        assert_eq!(name("  "), "local user");
        assert_eq!(claimed_name(&HeaderMap::new()), "local user");
    }
}
