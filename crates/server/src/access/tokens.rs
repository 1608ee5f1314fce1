//! Making, listing and revoking tokens; each change one transaction.

use std::time::Duration;

use axum::http::StatusCode;
use tidegate_api::{ErrorBody, Role, TokenCreate, TokenCreated, TokenStatus, TokenView, code};
use tidegate_state::{Ref, Snapshot, State, Timestamp, Transaction, TransactionError, WriteError};

use super::token::{LAST_USE, RANDOM_BYTES, Revoked, Token, TokenUse, mint};
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::Actor;
use crate::views::ms;

/// How many tokens there are at most, those that ended lately included.
const TOKENS_MAX: usize = 10_000;

/// How long a token that has ended is still listed.
const KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// The longest name of a token, a team or a region, in characters.
const NAME_CHARS_MAX: usize = 128;

/// The longest life that can be asked for: a hundred years.
const LIFE_MS_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1_000;

/// Who made the token that the first start prints.
const FIRST_START: &str = "the first start";

/// Why a token was not made or revoked.
#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("the name is taken")]
    NameTaken,
    #[error("there are too many")]
    TooMany,
    #[error("there is no such token")]
    Unknown,
    #[error("it is the last admin token")]
    LastAdmin,
    #[error(transparent)]
    Write(#[from] TransactionError),
}

/// Makes a token. Its secret is in the answer, and nowhere else.
pub(crate) async fn create(state: &State, request: TokenCreate, actor: &Actor) -> ApiResult<TokenCreated> {
    check(&request)?;
    let (id, secret, digest) = mint(random()?);
    let digest = digest.into_text();
    let (actor_name, wanted) = (actor.name.clone(), request.name.clone());
    let beside = actor.clone();
    let place: Ref<Token> = Ref::root(id.as_str())?;
    let written = place.clone();
    let committed = state
        .transaction()
        .attributes(actor.attributes())
        .write(move |transaction| {
            let now = transaction.now();
            let tokens = kept_tokens(transaction, now)?;
            let is_taken = |token: &Token| token.name == request.name && token.status(now) == TokenStatus::Active;
            if tokens.iter().any(is_taken) {
                return Err(Why::NameTaken);
            }
            if tokens.len() >= TOKENS_MAX {
                return Err(Why::TooMany);
            }
            let token = Token {
                digest: digest.clone(),
                name: request.name.clone(),
                role: request.role,
                team: request.team.clone(),
                region: request.region.clone(),
                created_at: now,
                created_by: actor_name.clone(),
                expires_at: request.expires_in_ms.map(|life| now.after(Duration::from_millis(life))),
                revoked: None,
            };
            transaction.create(&written, token.clone())?;
            beside.write_beside(transaction)?;
            Ok((token, now))
        })
        .await
        .map_err(|error| refused(error, &wanted))?;
    let (token, now) = committed.value;
    Ok(TokenCreated { token: view(id, &token, None, now), secret })
}

/// Revokes a token; one that is revoked stays as it is. It holds no longer, on this server at once and on others as soon as
/// they have seen it.
pub(crate) async fn revoke(
    state: &State,
    id: &str,
    reason: &str,
    actor: &Actor,
    is_required: bool,
) -> ApiResult<TokenView> {
    let unknown = || unknown(id);
    let place: Ref<Token> = Ref::root(id).map_err(|_| unknown())?;
    let (beside, target) = (actor.clone(), place.clone());
    let reason: String = reason.chars().filter(|c| !c.is_control()).take(1_000).collect();
    let committed = state
        .transaction()
        .attributes(actor.attributes())
        .write(move |transaction| {
            let now = transaction.now();
            let Some(token) = transaction.get(&target)? else { return Err(Why::Unknown) };
            let mut token = (*token).clone();
            if token.revoked.is_none() {
                if is_required && is_last_admin(transaction, &target, &token, now)? {
                    return Err(Why::LastAdmin);
                }
                token.revoked = Some(Revoked { at: now, by: beside.name.clone(), reason: reason.clone() });
                transaction.put(&target, token.clone())?;
            }
            beside.write_beside(transaction)?;
            Ok((token, now))
        })
        .await
        .map_err(|error| refused(error, id))?;
    let (token, now) = committed.value;
    let used = state.snapshot().get(&use_of(&place)?)?.map(|used| used.last_used_at);
    Ok(view(id.to_owned(), &token, used, now))
}

/// All tokens, in order of their names; those in force come first.
pub(crate) fn list(snapshot: &Snapshot, now: Timestamp) -> ApiResult<Vec<TokenView>> {
    let mut tokens = Vec::new();
    for item in snapshot.roots::<Token>() {
        let (place, token) = item?;
        let used = snapshot.get(&use_of(&place)?)?.map(|used| used.last_used_at);
        tokens.push(view(place.id(), token, used, now));
    }
    tokens.sort_by_key(|token| (token.status != TokenStatus::Active, token.name.clone(), token.id.clone()));
    Ok(tokens)
}

/// Makes the first admin token of an installation that has no token at all; its secret, to be shown once. Of several servers
/// that start at once, one makes it.
pub(crate) async fn first_admin(state: &State) -> Result<Option<String>, String> {
    if state.snapshot().roots::<Token>().next().is_some() {
        return Ok(None);
    }
    let (id, secret, digest) = mint(random().map_err(|error| error.body.to_string())?);
    let place: Ref<Token> = Ref::root(id).map_err(|error| error.to_string())?;
    let digest = digest.into_text();
    let written = state.write(move |transaction| -> Result<bool, TransactionError> {
        if !transaction.roots::<Token>()?.is_empty() {
            return Ok(false);
        }
        let token = Token {
            digest: digest.clone(),
            name: "admin".to_owned(),
            role: Role::Admin,
            team: None,
            region: None,
            created_at: transaction.now(),
            created_by: FIRST_START.to_owned(),
            expires_at: None,
            revoked: None,
        };
        transaction.create(&place, token)?;
        Ok(true)
    });
    let committed = written.await.map_err(|error| error.to_string())?;
    Ok(committed.value.then_some(secret))
}

pub(super) fn random() -> ApiResult<[u8; RANDOM_BYTES]> {
    let mut bytes = [0; RANDOM_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal(format!("no random bytes: {error}")))?;
    Ok(bytes)
}

fn use_of(token: &Ref<Token>) -> Result<Ref<TokenUse>, tidegate_state::PathError> {
    token.child(LAST_USE)
}

/// The tokens there are, once those that ended long ago are gone.
fn kept_tokens(transaction: &mut Transaction, now: Timestamp) -> Result<Vec<Token>, TransactionError> {
    let mut kept = Vec::new();
    for (place, token) in transaction.roots::<Token>()? {
        if token.ended_at(now).is_some_and(|at| at.after(KEPT) <= now) {
            transaction.delete(&place)?;
        } else {
            kept.push((*token).clone());
        }
    }
    Ok(kept)
}

/// Whether no other token could make tokens, were this one revoked.
fn is_last_admin(
    transaction: &Transaction,
    place: &Ref<Token>,
    token: &Token,
    now: Timestamp,
) -> Result<bool, TransactionError> {
    let is_admin = |token: &Token| token.role == Role::Admin && token.status(now) == TokenStatus::Active;
    if !is_admin(token) {
        return Ok(false);
    }
    let others = transaction.roots::<Token>()?;
    Ok(!others.iter().any(|(other, token)| other != place && is_admin(token)))
}

pub(super) fn view(id: String, token: &Token, used: Option<Timestamp>, now: Timestamp) -> TokenView {
    TokenView {
        id,
        name: token.name.clone(),
        role: token.role,
        team: token.team.clone(),
        region: token.region.clone(),
        status: token.status(now),
        created_at: ms(token.created_at),
        created_by: token.created_by.clone(),
        expires_at: token.expires_at.map(ms),
        revoked_at: token.revoked.as_ref().map(|revoked| ms(revoked.at)),
        revoked_by: token.revoked.as_ref().map(|revoked| revoked.by.clone()),
        last_used_at: used.map(ms),
    }
}

fn check(request: &TokenCreate) -> ApiResult<()> {
    let invalid = |why: String, what_to_do: &str| Err(ApiError::invalid("The token was not made.", why, what_to_do));
    let names = [("name", Some(&request.name)), ("team", request.team.as_ref()), ("region", request.region.as_ref())];
    for (what, name) in names {
        let Some(name) = name else { continue };
        let is_text = !name.is_empty() && name.trim() == name && !name.chars().any(char::is_control);
        if !is_text || name.chars().count() > NAME_CHARS_MAX {
            return invalid(
                format!("Its {what} is empty, too long, or has blanks around it or control characters in it."),
                "Choose 1 to 128 characters.",
            );
        }
    }
    let scope = [("team", Role::Team, request.team.is_some()), ("region", Role::Region, request.region.is_some())];
    for (what, role, is_given) in scope {
        if is_given != (request.role == role) {
            let why = if is_given {
                format!("A token of role `{}` has no {what}.", request.role)
            } else {
                format!("A token of role `{role}` is for one {what}, and none is named.")
            };
            return invalid(
                why,
                "Name a team for the role team, a region for the role region, and neither for others.",
            );
        }
    }
    if request.role == Role::Unknown {
        return invalid(
            "Its role is none that this server knows.".to_owned(),
            "There are viewer, operator, admin, team, reader and region.",
        );
    }
    if request.expires_in_ms.is_some_and(|life| life == 0 || life > LIFE_MS_MAX) {
        return invalid(
            format!("It is to hold for {} ms.", request.expires_in_ms.unwrap_or_default()),
            "Choose a time above 0 and up to a hundred years, or none for a token that does not expire.",
        );
    }
    Ok(())
}

fn unknown(id: &str) -> ApiError {
    ApiError::absent(
        code::TOKEN_UNKNOWN,
        format!("There is no token `{}`.", id.chars().filter(|c| !c.is_control()).take(64).collect::<String>()),
        "No token has this id, or it ended so long ago that it is no longer listed.",
        "`tidegate token list` shows the tokens there are; the id is the part between `tg_` and the next `_`.",
    )
}

fn refused(error: WriteError<Why>, about: &str) -> ApiError {
    let conflict = |what: &str, why: String, what_to_do: &str| {
        ApiError::new(StatusCode::CONFLICT, ErrorBody::new(code::REFUSED, what, why, NOTHING_CHANGED, what_to_do))
    };
    match error {
        WriteError::Rejected(Why::NameTaken) => conflict(
            "The token was not made.",
            format!("A token in force has the name `{about}`, and changes are signed with it."),
            "Choose another name, or revoke that token first.",
        ),
        WriteError::Rejected(Why::TooMany) => conflict(
            "The token was not made.",
            format!("There are {TOKENS_MAX} tokens, as many as there may be."),
            "Revoke those that nobody uses; they are removed 90 days later.",
        ),
        WriteError::Rejected(Why::Unknown) => unknown(about),
        WriteError::Rejected(Why::LastAdmin) => conflict(
            "The token was not revoked.",
            "It is the last one of role `admin` in force: nobody could make another.".to_owned(),
            "Make another admin token first (`tidegate token create --role admin --name NAME`).",
        ),
        error if error.is_retryable() => ApiError::unavailable("The tokens could not be changed.", format!("{error}.")),
        error => ApiError::internal(error),
    }
}
