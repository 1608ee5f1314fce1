//! Tokens, roles and the audit trail.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;

/// What the bearer of a token may do. Which role may ask which route is one table of the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees everything, changes nothing.
    Viewer,
    /// Also acts: pushes, gates, pauses, freezes, rollbacks.
    Operator,
    /// Also tokens, configuration, regions and deletions.
    Admin,
    /// Sees and changes what belongs to one team, and nothing else.
    Team,
    /// Reads data, for applications.
    Reader,
    /// The agent of one region: reads its own subtree, writes its own reports.
    Region,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

impl Role {
    /// Every role that a token can have.
    pub const ALL: [Self; 6] = [Self::Viewer, Self::Operator, Self::Admin, Self::Team, Self::Reader, Self::Region];

    /// The word that JSON and the command line have for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Team => "team",
            Self::Reader => "reader",
            Self::Region => "region",
            Self::Unknown => "unknown",
        }
    }

    /// The role with this word, if there is one.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.word() == word)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

/// Makes a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// What its changes are signed with; unique among the tokens in force.
    #[schema(example = "nightly-airports")]
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// The team, for [`Role::Team`] and for no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// The region, for [`Role::Region`] and for no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// How long it holds, in milliseconds from now. Absent: until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

/// A token that was made, with its secret: the only time that anybody sees it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    /// What is kept of it.
    pub token: TokenView,
    /// What its bearer presents, `tg_<id>_<secret>`. Not kept by the server.
    pub secret: String,
}

impl fmt::Debug for TokenCreated {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TokenCreated").field("token", &self.token).finish_non_exhaustive()
    }
}

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Its id, the part of it that is no secret.
    pub id: String,
    /// What its changes are signed with.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// The team, for a team's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// The region, for a region's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether it holds.
    pub status: TokenStatus,
    /// When it was made.
    pub created_at: EpochMs,
    /// Who made it.
    pub created_by: String,
    /// When it ends by itself, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<EpochMs>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<EpochMs>,
    /// Who revoked it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_by: Option<String>,
    /// About when it was used last, a few minutes behind at most; absent if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<EpochMs>,
}

/// Whether a token holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenStatus {
    /// It holds.
    Active,
    /// Its time is over.
    Expired,
    /// Somebody revoked it.
    Revoked,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

impl TokenStatus {
    /// The word that JSON has for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
        }
    }
}

/// What somebody asked for, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// When.
    pub at: EpochMs,
    /// Who: the token's name. Where authentication is off, the name that the caller gave.
    pub user: String,
    /// The token's role; absent where authentication is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The token's id; absent where authentication is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The id of the request, as logs and errors have it.
    pub request: String,
    /// The route, as the API's description writes it, with its method.
    #[schema(example = "POST /v1/pushes/{push}/kill")]
    pub route: String,
    /// The address that was asked, without parameters.
    pub target: String,
    /// What was done, in the words of the command line.
    #[serde(default)]
    #[schema(example = "kill push")]
    pub operation: String,
    /// What was made, changed, removed or named, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entities: Vec<AuditEntity>,
    /// How many entities more there were than are kept here.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// Why, in the words of who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The store that it is about, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// What came of it.
    pub outcome: AuditOutcome,
    /// The status of the answer; absent where the record was written with the change itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An entity that a request made, changed, removed, or named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntity {
    /// What it is.
    #[schema(example = "push")]
    pub kind: String,
    /// Its id: a push's, a token's, the name of a store or a region, the number of a version or a schema.
    pub id: String,
    /// A token's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The store that it is of; with a region, the store that it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// The version that a push makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// What became of it.
    pub change: AuditChange,
    /// What is other than before, as far as it is small and no secret.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<AuditField>,
}

/// What a request did to an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditChange {
    /// It made it.
    Made,
    /// It changed it.
    Changed,
    /// It removed it.
    Removed,
    /// It named it, and changed nothing of it, or something that is not kept here.
    Named,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

impl AuditChange {
    /// The word that JSON has for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Named => "named",
            Self::Unknown => "unknown",
        }
    }
}

/// A field of an entity, before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditField {
    /// Its name; `hooks.<hook>.<key>` is a hook's setting.
    pub field: String,
    /// What it was; absent if it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it is; absent if it is not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Whether the values are kept out because they may be secret: that it is another is all that is said.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// It was done.
    Done,
    /// It was refused for a reason of its own: nothing was changed.
    Refused,
    /// The server met a fault; whether something was changed is uncertain.
    Failed,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

impl AuditOutcome {
    /// The word that JSON has for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// A page of the audit trail, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<AuditView>,
    /// Where the next page begins, to be given as `after`; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
