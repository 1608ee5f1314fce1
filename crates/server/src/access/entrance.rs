//! Who asks, and may their role ask this: the part of every guard that does not depend on what a process is.

use std::net::IpAddr;

use axum::http::{HeaderMap, Method};

use super::Door;
use super::buckets::Who as Asker;
use super::caller::{Bearer, Caller};
use super::refusal::Refusal;
use super::table::{Rule, Who};

/// A process whose routes are guarded by the table.
pub(crate) trait Guarded: Clone + Send + Sync + 'static {
    /// Whether it asks for tokens, and what one caller may ask.
    fn door(&self) -> &Door;

    /// Whether it asks for a token before this route.
    fn asks(&self, _rule: &Rule) -> bool {
        self.door().is_required()
    }

    /// Whose token a request shows.
    fn bearer(&self, headers: &HeaderMap, is_reading: bool) -> impl Future<Output = Result<Bearer, Refusal>> + Send;

    /// Notes that a token was used.
    fn used(&self, _bearer: &Bearer) {}
}

/// The rule of a route for a method.
pub(super) fn rule_of(rules: &[&'static Rule], method: &Method) -> Option<&'static Rule> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    rules.iter().copied().find(|rule| rule.method.eq_ignore_ascii_case(method.as_str()))
}

/// Who asks, if they may ask now. Whoever is refused has asked all the same: it counts.
pub(super) async fn who_asks(
    process: &impl Guarded,
    rule: &'static Rule,
    is_look_up: bool,
    headers: &HeaderMap,
    is_reading: bool,
    peer: Option<IpAddr>,
) -> Result<Caller, Refusal> {
    let door = process.door();
    if matches!(rule.who, Who::Roles(_)) && process.asks(rule) {
        return match process.bearer(headers, is_reading).await {
            Ok(bearer) => admit(door, is_look_up, Caller::Bearer(bearer), peer),
            Err(refusal) => Err(match peer {
                Some(peer) if refusal.is_wrong_token() => door.wrong_token(peer, refusal),
                _ => admit(door, is_look_up, Caller::Anyone, peer).err().unwrap_or(refusal),
            }),
        };
    }
    admit(door, is_look_up, Caller::Anyone, peer)
}

/// Whether the role of who asks may ask this.
pub(super) fn check_role(process: &impl Guarded, rule: &'static Rule, caller: &Caller) -> Result<(), Refusal> {
    let (Who::Roles(roles), Some(bearer)) = (&rule.who, caller.bearer()) else { return Ok(()) };
    if !roles.contains(&bearer.role) {
        return Err(Refusal::Role { name: bearer.name.clone(), role: bearer.role, needed: roles });
    }
    process.used(bearer);
    Ok(())
}

/// Counts the request against its caller's limit. Programs of the same machine that show no token have none: there is nobody
/// to protect from them.
fn admit(door: &Door, is_look_up: bool, caller: Caller, peer: Option<IpAddr>) -> Result<Caller, Refusal> {
    let asker = match (&caller, peer) {
        (Caller::Bearer(bearer), _) => Asker::Token(bearer.token.clone()),
        (Caller::Anyone, Some(peer)) if !peer.to_canonical().is_loopback() => Asker::peer(peer),
        (Caller::Anyone, _) => return Ok(caller),
    };
    door.admit(asker, is_look_up).map_err(|wait| Refusal::TooManyRequests { wait })?;
    Ok(caller)
}
