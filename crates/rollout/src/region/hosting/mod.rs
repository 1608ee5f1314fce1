//! A region is hosted by one agent at a time.
//!
//! An agent takes its region's lease from the control plane before it reports anything, and renews it with every
//! heartbeat. Regions within a server's process do the same, so that a server and an agent never host one region together.
//!
//! | file | has |
//! |---|---|
//! | this one | the rules: who gets the lease ([`decide`]), and what an agent may do ([`Standing`]) |
//! | `identity` | what an agent keeps of itself on its own disk |
//! | `keeper` | the task that takes and renews the lease |
//!
//! # Invariants
//! - A lease that has not run out is given to nobody else, but to the next process of the same agent: an agent's folder is
//!   locked, so the process before is dead.
//! - Each taking gives a higher token than every one before, so that whoever has a lower one can be told apart for ever:
//!   its reports are refused, and nodes obey it no more.
//! - An agent that was told that another hosts its region commands its nodes no more, also after a restart, until it has
//!   the lease again. Its nodes go on serving what they serve.
//! - An agent that can't reach the control plane goes on: its region has to be served with the control plane gone, and it
//!   may be that nobody else has taken over. Should somebody have, then the token sees to it that its nodes obey one alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_api::agent::{HostClaim, HostView};
use tidegate_state::Timestamp;
use uuid::Uuid;

use crate::entities::{RegionHostNode, RegionHosting};

pub(crate) mod identity;
pub(crate) mod keeper;

/// The shortest lease that is given: renewals must fit into it several times.
pub const LEASE_MIN: Duration = Duration::from_secs(1);
/// The longest, after which another agent may take over at the latest.
pub const LEASE_MAX: Duration = Duration::from_secs(10 * 60);

/// How many nodes of a region are named.
const NODES_MAX: usize = 256;
/// The longest name or address that is kept, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// Why a claim was not granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimRefused {
    /// Another agent hosts the region.
    #[error("it is hosted by {}", describe(.0, *.1))]
    Hosted(Box<RegionHosting>, Timestamp),
    /// The claim itself can't be used.
    #[error("{0}")]
    Invalid(String),
}

/// Who hosts a region, in words.
#[must_use]
pub fn describe(hosting: &RegionHosting, now: Timestamp) -> String {
    let at = hosting.address.as_ref().map_or(String::new(), |address| format!(" at {address}"));
    let since = crate::controller::time_text(hosting.since);
    let heard = now.since(hosting.heard_at).as_secs();
    format!("agent {} (id {}{at}), since {since}, last heard of {heard} s ago", hosting.name, hosting.agent)
}

/// Whether the claim gets the lease, and what the lease then is. Pure.
///
/// # Errors
/// See [`ClaimRefused`].
pub fn decide(
    current: Option<&RegionHosting>,
    claim: &HostClaim,
    now: Timestamp,
) -> Result<RegionHosting, ClaimRefused> {
    let agent = check(claim)?;
    let lease = Duration::from_millis(claim.lease_ms).clamp(LEASE_MIN, LEASE_MAX);
    let granted = |token: u64, since: Timestamp, before: Vec<String>| RegionHosting {
        agent,
        name: claim.name.clone(),
        address: claim.address.clone(),
        is_server: false,
        token,
        since,
        heard_at: now,
        until: now.after(lease),
        nodes: claim
            .nodes
            .iter()
            .map(|node| RegionHostNode { name: node.name.clone(), address: node.address.clone() })
            .collect(),
        before,
    };
    let above = |token: u64| token.saturating_add(1).max(u64::try_from(now.0).unwrap_or(0));
    let Some(current) = current else {
        return Ok(granted(above(0), now, Vec::new()));
    };
    let same = current.agent == agent;
    // Nobody has taken it since: a lease that ran out while its holder could not be heard goes on.
    if same && claim.token == Some(current.token) {
        return Ok(granted(current.token, current.since, current.before.clone()));
    }
    if same && claim.starting {
        return Ok(granted(above(current.token), current.since, current.before.clone()));
    }
    if current.has_lapsed(now) {
        return Ok(granted(above(current.token), now, answers(current)));
    }
    Err(ClaimRefused::Hosted(Box::new(current.clone()), now))
}

/// Where reads of a region are answered that an agent hosts. What a server hosts it answers itself.
fn answers(hosting: &RegionHosting) -> Vec<String> {
    if hosting.is_server {
        return Vec::new();
    }
    hosting.node_addresses().chain(&hosting.address).cloned().collect()
}

fn check(claim: &HostClaim) -> Result<Uuid, ClaimRefused> {
    let invalid = |why: &str| ClaimRefused::Invalid(why.to_owned());
    let agent = claim.agent.parse().map_err(|_| invalid("the agent's id is no UUID"))?;
    let too_long = |text: &str| text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control);
    let texts = claim.nodes.iter().flat_map(|node| std::iter::once(&node.name).chain(&node.address));
    if claim.name.is_empty() || texts.chain(&claim.address).chain([&claim.name]).any(|text| too_long(text)) {
        return Err(invalid("a name or an address is empty, too long, or has control characters"));
    }
    if claim.nodes.len() > NODES_MAX {
        return Err(ClaimRefused::Invalid(format!("{} nodes; the limit is {NODES_MAX}", claim.nodes.len())));
    }
    Ok(agent)
}

/// Whether a report or a release with this token comes from who hosts the region.
#[must_use]
pub fn is_host(current: Option<&RegionHosting>, holder: Holder) -> bool {
    current.is_some_and(|current| current.agent == holder.agent && current.token == holder.token)
}

/// An agent with the token that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The agent's id.
    pub agent: Uuid,
    /// Its token.
    pub token: u64,
}

/// How an agent stands with hosting its region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has just begun, and has not heard yet.
    Starting,
    /// It hosts the region.
    Hosts(Holder),
    /// The control plane can't be reached, or does not know the region. The agent goes on as it was told.
    Unconfirmed {
        /// The last token that it was given in this life, if any was: it may still be good.
        holder: Option<Holder>,
        /// Why nothing is confirmed.
        why: String,
        /// Since when.
        since: Timestamp,
    },
    /// Another agent hosts the region: this one commands nothing and reports nothing.
    Replaced {
        /// Who hosts it, in words.
        by: String,
        /// Where that one answers reads.
        address: Option<String>,
        /// Since when this is known.
        since: Timestamp,
        /// Whether this agent hosted the region before, in this life of it.
        hosted_before: bool,
    },
}

impl Standing {
    /// Whether the agent may change what its nodes hold and serve.
    #[must_use]
    pub fn commands(&self) -> bool {
        matches!(self, Standing::Hosts(_) | Standing::Unconfirmed { .. })
    }

    /// Whether another agent hosts the region and this one has not in this life: what its nodes have is from some earlier
    /// time. One that was replaced goes on answering what it serves, so that no read fails for a hand-over.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Standing::Replaced { hosted_before: false, .. })
    }

    /// With which token to report, if it may.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        match self {
            Standing::Hosts(holder) => Some(*holder),
            Standing::Unconfirmed { holder, .. } => *holder,
            Standing::Starting | Standing::Replaced { .. } => None,
        }
    }

    /// In words, for people.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Standing::Starting => "it has not heard of the control plane yet".to_owned(),
            Standing::Hosts(_) => "it hosts the region".to_owned(),
            Standing::Unconfirmed { why, .. } => {
                format!("the control plane has not confirmed it ({why}); it goes on as it was told")
            }
            Standing::Replaced { by, .. } => {
                format!(
                    "the region is hosted by {by}; this one commands its nodes no more, and they serve what they serve"
                )
            }
        }
    }
}

/// What the control plane said to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The claim was granted.
    Granted(Holder),
    /// Another agent hosts the region.
    Replaced {
        /// Who, in words.
        by: String,
        /// Where that one answers reads.
        address: Option<String>,
    },
    /// Nothing, or that the region is not known.
    Nothing {
        /// Why.
        why: String,
    },
}

/// How an agent stands after this. Pure. Only a word of the control plane makes an agent that was replaced a host again.
pub(crate) fn next_standing(before: &Standing, heard: Heard, now: Timestamp) -> Standing {
    match (before, heard) {
        (_, Heard::Granted(holder)) => Standing::Hosts(holder),
        (Standing::Replaced { since, hosted_before, .. }, Heard::Replaced { by, address }) => {
            Standing::Replaced { by, address, since: *since, hosted_before: *hosted_before }
        }
        (before, Heard::Replaced { by, address }) => {
            Standing::Replaced { by, address, since: now, hosted_before: before.holder().is_some() }
        }
        (Standing::Replaced { .. }, Heard::Nothing { .. }) => before.clone(),
        (Standing::Unconfirmed { holder, since, .. }, Heard::Nothing { why }) => {
            Standing::Unconfirmed { holder: *holder, why, since: *since }
        }
        (Standing::Hosts(holder), Heard::Nothing { why }) => {
            Standing::Unconfirmed { holder: Some(*holder), why, since: now }
        }
        (Standing::Starting, Heard::Nothing { why }) => Standing::Unconfirmed { holder: None, why, since: now },
    }
}

/// The lease as the API shows it.
#[must_use]
pub fn view(hosting: &RegionHosting, now: Timestamp) -> HostView {
    let ms = |at: Timestamp| u64::try_from(at.0).unwrap_or(0);
    HostView {
        agent: hosting.agent.to_string(),
        name: hosting.name.clone(),
        address: hosting.address.clone(),
        is_server: hosting.is_server,
        token: hosting.token,
        since: ms(hosting.since),
        heard_at: ms(hosting.heard_at),
        until: ms(hosting.until),
        lapsed: hosting.has_lapsed(now),
        nodes: hosting
            .nodes
            .iter()
            .map(|node| tidegate_api::agent::HostNode { name: node.name.clone(), address: node.address.clone() })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);
    const LEASE_MS: u64 = 30_000;

    fn claim(agent: u128, token: Option<u64>, starting: bool) -> HostClaim {
        HostClaim {
            agent: Uuid::from_u128(agent).to_string(),
            name: format!("agent-{agent}"),
            address: None,
            lease_ms: LEASE_MS,
            token,
            starting,
            nodes: Vec::new(),
        }
    }

    fn held(agent: u128, token: u64, until: i64) -> RegionHosting {
        RegionHosting {
            is_server: false,
            agent: Uuid::from_u128(agent),
            name: format!("agent-{agent}"),
            address: Some("http://127.0.0.1:1".to_owned()),
            token,
            since: Timestamp(900_000),
            heard_at: Timestamp(990_000),
            until: Timestamp(until),
            nodes: Vec::new(),
            before: Vec::new(),
        }
    }

    #[derive(Debug, PartialEq)]
    enum Given {
        Renewed,
        Taken,
        Refused,
    }

    fn given(current: Option<&RegionHosting>, claim: &HostClaim) -> Given {
        match decide(current, claim, NOW) {
            Ok(granted) if current.is_some_and(|current| current.token == granted.token) => {
                assert_eq!(granted.since, Timestamp(900_000));
                assert_eq!(granted.until, NOW.after(Duration::from_millis(LEASE_MS)));
                Given::Renewed
            }
            Ok(granted) => {
                assert!(current.is_none_or(|current| granted.token > current.token), "tokens rise");
                assert_eq!(granted.until, NOW.after(Duration::from_millis(LEASE_MS)));
                Given::Taken
            }
            Err(ClaimRefused::Hosted(by, _)) => {
                assert_eq!(Some(&*by), current);
                Given::Refused
            }
            Err(ClaimRefused::Invalid(why)) => panic!("{why}"),
        }
    }

    #[test]
    fn c19_one_agent_at_a_time_gets_the_lease() {
        let (live, lapsed) = (1_000_001, 1_000_000);
        for (what, current, claimed, expected) in [
            ("nobody hosts it", None, claim(1, None, true), Given::Taken),
            ("nobody hosts it, and the claimant thinks it does", None, claim(1, Some(7), false), Given::Taken),
            ("it renews", Some(held(1, 7, live)), claim(1, Some(7), false), Given::Renewed),
            ("it renews late, and nobody took it", Some(held(1, 7, lapsed)), claim(1, Some(7), false), Given::Renewed),
            ("its next process", Some(held(1, 7, live)), claim(1, None, true), Given::Taken),
            ("another process has its id", Some(held(1, 8, live)), claim(1, Some(7), false), Given::Refused),
            ("another process had its id", Some(held(1, 8, lapsed)), claim(1, Some(7), false), Given::Taken),
            ("a second agent", Some(held(1, 7, live)), claim(2, None, true), Given::Refused),
            ("a second agent asks again", Some(held(1, 7, live)), claim(2, None, false), Given::Refused),
            ("the first is gone", Some(held(1, 7, lapsed)), claim(2, None, false), Given::Taken),
            ("the first is back", Some(held(2, 8, live)), claim(1, Some(7), false), Given::Refused),
            ("a token of another agent", Some(held(2, 7, live)), claim(1, Some(7), false), Given::Refused),
        ] {
            assert_eq!(given(current.as_ref(), &claimed), expected, "{what}");
        }
    }

    #[test]
    fn c19_who_takes_over_knows_where_reads_were_answered_before_until_the_next_one_does() {
        let node = |name: &str, address: Option<&str>| RegionHostNode {
            name: name.to_owned(),
            address: address.map(str::to_owned),
        };
        let first = RegionHosting {
            nodes: vec![node("b-1", None), node("n-1", Some("http://127.0.0.1:2"))],
            ..held(1, 7, 1_000_000)
        };
        let taken = decide(Some(&first), &claim(2, None, false), NOW).unwrap();
        assert_eq!(taken.before, ["http://127.0.0.1:2", "http://127.0.0.1:1"]);
        for (token, starting) in [(Some(taken.token), false), (None, true)] {
            assert_eq!(decide(Some(&taken), &claim(2, token, starting), NOW).unwrap().before, taken.before);
        }
        let later = taken.until;
        assert_eq!(decide(Some(&taken), &claim(3, None, false), later).unwrap().before, Vec::<String>::new());
        let server = RegionHosting { is_server: true, ..first };
        assert_eq!(decide(Some(&server), &claim(2, None, false), NOW).unwrap().before, Vec::<String>::new());
    }

    #[test]
    fn c19_tokens_rise_also_where_nothing_is_remembered() {
        let first = decide(None, &claim(1, None, true), NOW).unwrap();
        // The region was removed and added again, or the database restored from before.
        let later = NOW.after(Duration::from_millis(1));
        let second = decide(None, &claim(2, None, true), later).unwrap();
        assert!(second.token > first.token);
        let third = decide(Some(&held(1, u64::MAX - 1, 0)), &claim(2, None, true), NOW).unwrap();
        assert_eq!(third.token, u64::MAX);
    }

    #[test]
    fn c19_a_refusal_names_the_host_and_since_when() {
        let text = decide(Some(&held(1, 7, 1_000_001)), &claim(2, None, true), NOW).unwrap_err().to_string();
        for part in ["agent-1", &Uuid::from_u128(1).to_string(), "http://127.0.0.1:1", "1970-01-01 00:15:00", "10 s"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn c19_an_agent_that_was_replaced_commands_nothing_until_it_hosts_again() {
        let holder = Holder { agent: Uuid::from_u128(1), token: 7 };
        let granted = || Heard::Granted(holder);
        let replaced = || Heard::Replaced { by: "another".to_owned(), address: None };
        let nothing = || Heard::Nothing { why: "cut off".to_owned() };
        for (what, words, commands, token) in [
            ("at first nothing is known", vec![], false, None),
            ("a restart with the control plane gone", vec![nothing()], true, None),
            ("it hosts", vec![granted()], true, Some(7)),
            ("it is cut off, and goes on", vec![granted(), nothing(), nothing()], true, Some(7)),
            ("a second agent is refused", vec![replaced()], false, None),
            ("it was replaced", vec![granted(), nothing(), replaced()], false, None),
            ("it was replaced and is cut off again", vec![granted(), replaced(), nothing()], false, None),
            ("it hosts again", vec![granted(), replaced(), nothing(), granted()], true, Some(7)),
        ] {
            let mut standing = Standing::Starting;
            for (step, word) in words.into_iter().enumerate() {
                standing = next_standing(&standing, word, Timestamp(step as i64));
            }
            assert_eq!(standing.commands(), commands, "{what}: {standing:?}");
            assert_eq!(standing.holder().map(|holder| holder.token), token, "{what}: {standing:?}");
        }
    }

    #[test]
    fn claims_are_bounded() {
        let name = HostClaim { name: "x".repeat(TEXT_BYTES_MAX + 1), ..claim(1, None, true) };
        let none = HostClaim { name: String::new(), ..claim(1, None, true) };
        let id = HostClaim { agent: "1".to_owned(), ..claim(1, None, true) };
        let node = tidegate_api::agent::HostNode { name: "n".to_owned(), address: None };
        let nodes = HostClaim { nodes: vec![node; NODES_MAX + 1], ..claim(1, None, true) };
        for bad in [name, none, id, nodes] {
            assert!(matches!(decide(None, &bad, NOW), Err(ClaimRefused::Invalid(_))), "{bad:?}");
        }
        let long = HostClaim { lease_ms: u64::MAX, ..claim(1, None, true) };
        assert_eq!(decide(None, &long, NOW).unwrap().until, NOW.after(LEASE_MAX));
        let short = HostClaim { lease_ms: 0, ..claim(1, None, true) };
        assert_eq!(decide(None, &short, NOW).unwrap().until, NOW.after(LEASE_MIN));
    }

    #[test]
    fn c19_only_who_holds_the_lease_is_the_host() {
        let current = held(1, 7, 0);
        let holder = |agent, token| Holder { agent: Uuid::from_u128(agent), token };
        // Also after it ran out, as long as nobody else took it.
        assert!(is_host(Some(&current), holder(1, 7)));
        assert!(!is_host(Some(&current), holder(1, 6)));
        assert!(!is_host(Some(&current), holder(2, 7)));
        assert!(!is_host(None, holder(1, 7)));
    }
}
