//! The one shape of errors.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error of the API, in words for people and with what a program needs to act on it.
///
/// The four texts answer four questions: what went wrong, why, what follows from it, and what can
/// be done. None of them is ever empty. Where something was measured against a limit, `why` has
/// both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What kind of error it is, see [`code`]. Stable between releases; new ones may come.
    #[schema(example = "store_unknown")]
    pub code: String,
    /// Whether the same request may succeed later with nobody doing anything.
    pub retryable: bool,
    /// What went wrong.
    pub what: String,
    /// Why it did.
    pub why: String,
    /// What follows from it.
    pub consequences: String,
    /// What can be done about it.
    pub countermeasures: String,
    /// The things the error is about, by name, where a program has to know them: the parts that
    /// are missing, the push that runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
}

impl ErrorBody {
    /// An error that repeating the request does not mend.
    pub fn new(
        code: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        consequences: impl Into<String>,
        countermeasures: impl Into<String>,
    ) -> Self {
        Self {
            code: code.to_owned(),
            retryable: false,
            what: what.into(),
            why: why.into(),
            consequences: consequences.into(),
            countermeasures: countermeasures.into(),
            subjects: Vec::new(),
        }
    }

    /// The database was put back to an older state behind the servers' backs, and nobody has confirmed it.
    pub fn set_back(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(
            code::SET_BACK,
            what,
            why,
            "Nothing is written, and no work of the control plane runs, until an admin confirms it. Reads are answered, and \
             regions go on serving what they serve.",
            "Find out who put another database in place. If the newer one is to be had, stop all servers and put it back. \
             Then, either way, let one server go on with what is there: `tidegate cluster confirm-set-back --reason TEXT` \
             (role admin). What came after that state is lost; no version's number is given out twice.",
        )
    }

    /// Says whether the same request may succeed later.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// Names the things that the error is about.
    #[must_use]
    pub fn with_subjects(mut self, subjects: impl IntoIterator<Item = String>) -> Self {
        self.subjects = subjects.into_iter().collect();
        self
    }
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is a sentence of its own is followed by the next one.
        let between = if self.what.ends_with(['.', '!', '?']) { " " } else { ": " };
        write!(f, "{}{between}{}", self.what, self.why)
    }
}

impl std::error::Error for ErrorBody {}

/// The codes of [`ErrorBody::code`].
pub mod code {
    /// The request can't be read: no JSON, a field of another type, a parameter out of range.
    pub const BAD_REQUEST: &str = "bad_request";
    /// A value in the request is not allowed. The text names the field and what is.
    pub const INVALID: &str = "invalid";
    /// There is no such route.
    pub const ROUTE_UNKNOWN: &str = "route_unknown";
    /// The route exists, but not with this method.
    pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    /// The body's media type is not one that the route reads.
    pub const UNSUPPORTED_MEDIA_TYPE: &str = "unsupported_media_type";
    /// The body is larger than the route allows.
    pub const TOO_LARGE: &str = "too_large";
    /// The request names a host that this server is not.
    pub const HOST_REFUSED: &str = "host_refused";
    /// The request has no token, or one that does not hold.
    pub const UNAUTHENTICATED: &str = "unauthenticated";
    /// The token does not allow this.
    pub const FORBIDDEN: &str = "forbidden";
    /// More requests, or more wrong tokens, than the caller may send in this time.
    pub const RATE_LIMITED: &str = "rate_limited";
    /// There is no such token.
    pub const TOKEN_UNKNOWN: &str = "token_unknown";
    /// The server took longer than its limit.
    pub const TIMED_OUT: &str = "timed_out";
    /// The server works on as many requests as it may.
    pub const OVERLOADED: &str = "overloaded";
    /// A fault of the server's own.
    pub const INTERNAL: &str = "internal";
    /// The database can't be written at the moment.
    pub const UNAVAILABLE: &str = "unavailable";
    /// The database was put back to an older state behind the servers' backs: nothing is written until an admin confirms it.
    pub const SET_BACK: &str = "set_back";
    /// The artifact store is not known to be the installation's: nothing is written into it.
    pub const OTHER_ARTIFACT_STORE: &str = "other_artifact_store";
    /// The disk of the artifact store is full.
    pub const DISK_FULL: &str = "disk_full";
    /// There is no such store.
    pub const STORE_UNKNOWN: &str = "store_unknown";
    /// There is a store of this name already.
    pub const STORE_EXISTS: &str = "store_exists";
    /// There is no such region.
    pub const REGION_UNKNOWN: &str = "region_unknown";
    /// Another agent hosts the region. The subjects are that agent in words, and where it answers reads.
    pub const REGION_HOSTED: &str = "region_hosted";
    /// The node does not belong to its region any more.
    pub const NODE_REMOVED: &str = "node_removed";
    /// There is no such artifact, or it has no such file.
    pub const ARTIFACT_UNKNOWN: &str = "artifact_unknown";
    /// There is no such push.
    pub const PUSH_UNKNOWN: &str = "push_unknown";
    /// Another push of the store runs.
    pub const PUSH_RUNNING: &str = "push_running";
    /// The push has ended.
    pub const PUSH_ENDED: &str = "push_ended";
    /// The push id is that of another push: of another store, or with other input.
    pub const PUSH_ID_TAKEN: &str = "push_id_taken";
    /// The push is not at the step that the request is for.
    pub const WRONG_PHASE: &str = "wrong_phase";
    /// A part's bytes have another SHA-256 than was said.
    pub const PART_DAMAGED: &str = "part_damaged";
    /// Parts that the manifest names have not arrived, or arrived otherwise.
    pub const PARTS_MISSING: &str = "parts_missing";
    /// The manifest contradicts itself, the store or the push.
    pub const MANIFEST_REFUSED: &str = "manifest_refused";
    /// The schema does not fit the store's earlier ones.
    pub const SCHEMA_INCOMPATIBLE: &str = "schema_incompatible";
    /// A hook said no.
    pub const HOOK_REFUSED: &str = "hook_refused";
    /// The region serves no version of the store.
    pub const NOT_SERVED: &str = "not_served";
    /// The version that is served has no such key.
    pub const KEY_ABSENT: &str = "key_absent";
    /// The request would change what something else is at the moment: try again.
    pub const CONFLICT: &str = "conflict";
    /// The watch asks for changes that the log no longer has, or for another epoch.
    pub const WATCH_GONE: &str = "watch_gone";
    /// There is no such request in the queue, or it is not in a state for this.
    pub const QUEUE_REQUEST_UNKNOWN: &str = "queue_request_unknown";
    /// The operation is refused for a reason of the rollout's own; the texts say which.
    pub const REFUSED: &str = "refused";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_sentence_after_the_other_or_one_with_a_colon() {
        let text = |what: &str| {
            ErrorBody::new(code::REFUSED, what, "It is hosted elsewhere.", "Nothing.", "Wait.").to_string()
        };
        assert_eq!(text("The node is not taken in."), "The node is not taken in. It is hosted elsewhere.");
        assert_eq!(text("the node is not taken in"), "the node is not taken in: It is hosted elsewhere.");
    }
}
