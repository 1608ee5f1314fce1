//! Break glass: a version that is pinned in the region itself, with the control plane out of the way.
//!
//! # Invariants
//! - A pin wins over the assignment, for nodes and embedded clients alike, from when it is on the agent's disk until it is
//!   lifted. It survives restarts, and whatever the control plane says.
//! - Only what a node of the region holds whole is pinned: it is read back from end to end first.
//! - Nothing is pinned without a reason, and who, when and why are kept, also of pins that are over.
//! - What is pinned is held, whatever the assignment says.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tidegate_state::Timestamp;

use super::clients::ClientVersion;
use super::plan::Wanted;
use crate::entities::{EmbeddedPermission, PAST_PINS_MAX, PastPin, Pin};

/// The longest reason, and the longest name of who pins, in bytes.
const TEXT_BYTES_MAX: usize = 4 * 1024;

/// What someone asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRequest {
    /// The version to serve until the pin is lifted.
    pub version: u64,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
}

/// A pin that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The pin.
    pub pin: Pin,
    /// The pin whose place it took, if there was one.
    pub replaced: Option<Pin>,
    /// How many nodes were found to hold the version whole.
    pub nodes: usize,
    /// How many nodes there are.
    pub of_nodes: usize,
    /// Whether the region serves the version already. If not, its nodes are about to.
    pub serving: bool,
}

/// How a store stands with pins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pins {
    /// The pin that is in force.
    pub pin: Option<Pin>,
    /// Those that are over, the newest last; at most [`PAST_PINS_MAX`].
    pub past: Vec<PastPin>,
}

/// Why a version was not pinned, or a pin not lifted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinRefused {
    /// No reason was given.
    #[error("a reason is needed, for the record")]
    ReasonMissing,
    /// A text is too long.
    #[error("{what} has {bytes} bytes, and the limit is {TEXT_BYTES_MAX}")]
    TooLong {
        /// Which.
        what: &'static str,
        /// How long it is.
        bytes: usize,
    },
    /// No node holds the version whole.
    #[error("no node of the region holds version {version} of store {store} whole{}; {}", said(.damaged), holds(.held))]
    NotHeld {
        /// The store.
        store: String,
        /// The version.
        version: u64,
        /// What is damaged, by node.
        damaged: Vec<String>,
        /// The versions that are held whole.
        held: Vec<u64>,
    },
    /// The region has nothing to do with the store.
    #[error("the region holds nothing of store {store}; it knows: {}", if .known.is_empty() { "no store".to_owned() } else { .known.join(", ") })]
    NoSuchStore {
        /// The store.
        store: String,
        /// The stores there are.
        known: Vec<String>,
    },
    /// There is no pin to be lifted.
    #[error("nothing is pinned of store {store}")]
    NotPinned {
        /// The store.
        store: String,
    },
    /// Another agent hosts the region.
    #[error("the region is hosted by {by}: pin there")]
    HostedElsewhere {
        /// Who hosts it, in words.
        by: String,
    },
    /// The pin can't be kept on the agent's disk.
    #[error("the pin can't be kept on the agent's disk: {why}")]
    Disk {
        /// Why.
        why: String,
    },
    /// The agent is stopping, or too many ask at once.
    #[error("the agent can't take it now: {why}")]
    Unavailable {
        /// Why.
        why: String,
    },
}

fn said(damaged: &[String]) -> String {
    if damaged.is_empty() { String::new() } else { format!(" ({})", damaged.join("; ")) }
}

fn holds(held: &[u64]) -> String {
    match held {
        [] => "it holds no version".to_owned(),
        [one] => format!("it holds version {one}"),
        many => {
            let numbers: Vec<String> = many.iter().map(u64::to_string).collect();
            format!("it holds versions {}", numbers.join(", "))
        }
    }
}

/// What was found when the nodes were asked for a version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// How many nodes hold it whole.
    pub(crate) whole: usize,
    /// What is damaged, by node.
    pub(crate) damaged: Vec<String>,
    /// The versions that are held whole, as far as is known.
    pub(crate) held: BTreeSet<u64>,
}

/// Whether a request can be considered at all.
pub(crate) fn check(request: &PinRequest) -> Result<(), PinRefused> {
    if request.reason.trim().is_empty() {
        return Err(PinRefused::ReasonMissing);
    }
    for (what, text) in [("the reason", &request.reason), ("the name", &request.by)] {
        if text.len() > TEXT_BYTES_MAX {
            return Err(PinRefused::TooLong { what, bytes: text.len() });
        }
    }
    Ok(())
}

/// Whether the version can be pinned, given what was found.
pub(crate) fn judge(store: &str, version: u64, found: &Found) -> Result<(), PinRefused> {
    if found.whole > 0 {
        return Ok(());
    }
    let held = found.held.iter().copied().filter(|held| *held != version).collect();
    Err(PinRefused::NotHeld { store: store.to_owned(), version, damaged: found.damaged.clone(), held })
}

impl Pins {
    /// With this pin in force; the one before is over.
    pub(crate) fn pinned(&self, pin: Pin) -> Pins {
        let ended = format!("another pin took its place: version {}, by {}", pin.version, pin.by);
        let at = pin.at;
        Pins { pin: Some(pin), past: self.with_past(at, ended) }
    }

    /// With no pin in force.
    pub(crate) fn without(&self, at: Timestamp, ended: String) -> Pins {
        Pins { pin: None, past: self.with_past(at, ended) }
    }

    fn with_past(&self, ended_at: Timestamp, ended: String) -> Vec<PastPin> {
        let mut past = self.past.clone();
        past.extend(self.pin.clone().map(|pin| PastPin { pin, ended_at, ended }));
        let surplus = past.len().saturating_sub(PAST_PINS_MAX);
        past.drain(..surplus);
        past
    }
}

/// What is wanted, with a pin in force: its version is held and served, whatever else is.
pub(crate) fn wanted(assigned: Wanted, pin: Option<(u64, String)>) -> Wanted {
    let Some((version, artifact)) = pin else {
        return assigned;
    };
    match assigned {
        // The store is gone, and what is pinned stays all the same.
        Wanted::Nothing => Wanted::Assigned { hold: [(version, artifact)].into(), serve: Some(version), enough: 1 },
        Wanted::Assigned { mut hold, enough, .. } => {
            // Should the number mean other data in the assignment by now: what was pinned is what is held.
            hold.insert(version, artifact);
            Wanted::Assigned { hold, serve: Some(version), enough }
        }
    }
}

/// What embedded clients may do, with a pin in force: they serve what is pinned if they have it, and nothing else anew.
pub(crate) fn permitted(
    mut versions: BTreeMap<u64, ClientVersion>,
    pin: Option<(u64, &ClientVersion)>,
) -> BTreeMap<u64, ClientVersion> {
    let Some((number, version)) = pin else {
        return versions;
    };
    for other in versions.values_mut() {
        other.permission = other.permission.min(EmbeddedPermission::Ingest);
    }
    versions.insert(number, ClientVersion { permission: EmbeddedPermission::Serve, ..version.clone() });
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(reason: &str) -> PinRequest {
        PinRequest { version: 1, reason: reason.to_owned(), by: "ann".to_owned() }
    }

    fn pin(version: u64, at: i64) -> Pin {
        Pin { version, reason: "bad data".to_owned(), by: "ann".to_owned(), at: Timestamp(at) }
    }

    #[test]
    fn c18_nothing_is_pinned_without_a_reason_or_with_too_long_a_one() {
        assert_eq!(check(&request("bad data")), Ok(()));
        for reason in ["", "  \n"] {
            assert_eq!(check(&request(reason)), Err(PinRefused::ReasonMissing));
        }
        assert!(matches!(check(&request(&"x".repeat(TEXT_BYTES_MAX + 1))), Err(PinRefused::TooLong { .. })));
    }

    #[test]
    fn c18_what_no_node_holds_whole_is_refused_naming_what_is_held() {
        let found = |whole, damaged: &[&str], held: &[u64]| Found {
            whole,
            damaged: damaged.iter().map(|text| (*text).to_owned()).collect(),
            held: held.iter().copied().collect(),
        };
        assert_eq!(judge("s", 1, &found(1, &["a-2: damaged"], &[1, 2])), Ok(()));
        for (found, texts) in [
            (found(0, &[], &[2, 3]), vec!["version 1", "holds versions 2, 3"]),
            (
                found(0, &["a-1: checksum", "a-2: digest"], &[1, 2]),
                vec!["a-1: checksum; a-2: digest", "holds version 2"],
            ),
            (found(0, &[], &[]), vec!["holds no version"]),
        ] {
            let refused = judge("s", 1, &found).unwrap_err().to_string();
            for text in texts {
                assert!(refused.contains(text), "{text} in {refused}");
            }
        }
    }

    #[test]
    fn c18_a_second_pin_takes_the_first_ones_place_and_both_are_on_record() {
        let both = Pins::default().pinned(pin(1, 10)).pinned(pin(2, 20));
        assert_eq!(both.pin, Some(pin(2, 20)));
        assert_eq!((both.past.len(), &both.past[0].pin, both.past[0].ended_at), (1, &pin(1, 10), Timestamp(20)));
        assert!(both.past[0].ended.contains("version 2, by ann"));
        let lifted = both.without(Timestamp(30), "lifted by bob".to_owned());
        assert_eq!((lifted.pin.clone(), lifted.past.len(), lifted.past[1].pin.version), (None, 2, 2));
        assert_eq!(lifted.without(Timestamp(40), String::new()), lifted);
        let many = (0..100).fold(Pins::default(), |pins, at| pins.pinned(pin(1, at)));
        assert_eq!((many.past.len(), many.past[PAST_PINS_MAX - 1].pin.at), (PAST_PINS_MAX, Timestamp(98)));
    }

    #[test]
    fn c17_a_pin_wins_over_what_is_assigned() {
        let artifact = |name: &str| name.to_owned();
        let assigned =
            || Wanted::Assigned { hold: [(2, artifact("b")), (3, artifact("c"))].into(), serve: Some(3), enough: 2 };
        assert_eq!(wanted(assigned(), None), assigned());
        let hold = [(1, artifact("a")), (2, artifact("b")), (3, artifact("c"))].into();
        assert_eq!(wanted(assigned(), Some((1, artifact("a")))), Wanted::Assigned { hold, serve: Some(1), enough: 2 });
        let alone = Wanted::Assigned { hold: [(1, artifact("a"))].into(), serve: Some(1), enough: 1 };
        assert_eq!(wanted(Wanted::Nothing, Some((1, artifact("a")))), alone);
    }

    #[test]
    fn c17_embedded_clients_serve_what_is_pinned_and_nothing_else_anew() {
        let version =
            |permission| ClientVersion { permission, artifact: "a".to_owned(), manifest_sha256: "m".to_owned() };
        use EmbeddedPermission::{Ingest, None as Nothing, Serve};
        let before: BTreeMap<u64, ClientVersion> =
            [(1, version(Nothing)), (2, version(Serve)), (3, version(Ingest))].into();
        let pinned = permitted(before.clone(), Some((1, &version(Nothing))));
        let permissions: Vec<_> = pinned.values().map(|version| version.permission).collect();
        assert_eq!(permissions, [Serve, Ingest, Ingest]);
        assert_eq!(permitted(before.clone(), None), before);
    }
}
