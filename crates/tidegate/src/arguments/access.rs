//! `tidegate token …` and `tidegate audit`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tidegate_api::Role;

use super::parse_duration;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token. It is printed once, on standard output, and kept nowhere.
    Create {
        /// What its bearer may do.
        #[arg(long, value_enum)]
        role: TokenRole,
        /// What its changes are signed with.
        #[arg(long)]
        name: String,
        /// The team, for the role team.
        #[arg(long)]
        team: Option<String>,
        /// The region, for the role region.
        #[arg(long)]
        region: Option<String>,
        /// How long it holds, such as 90d; without it, until it is revoked.
        #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
        expires: Option<Duration>,
    },
    /// All tokens, without what proves them.
    List,
    /// Revoke a token: it holds no longer, and what it has open ends.
    Revoke {
        /// The token's id, as `token list` prints it.
        id: String,
        /// Why, for the record.
        #[arg(long, default_value = "")]
        reason: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// The roles that a token can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenRole {
    /// Sees everything, changes nothing.
    Viewer,
    /// Also acts: pushes, gates, pauses, freezes, rollbacks.
    Operator,
    /// Also tokens, configuration, and deleting stores.
    Admin,
    /// Sees and changes what belongs to one team.
    Team,
    /// Reads data, for applications.
    Reader,
    /// The agent of one region.
    Region,
}

impl From<TokenRole> for Role {
    fn from(role: TokenRole) -> Self {
        match role {
            TokenRole::Viewer => Role::Viewer,
            TokenRole::Operator => Role::Operator,
            TokenRole::Admin => Role::Admin,
            TokenRole::Team => Role::Team,
            TokenRole::Reader => Role::Reader,
            TokenRole::Region => Role::Region,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct AuditArguments {
    /// About this store alone.
    #[arg(long)]
    pub(crate) store: Option<String>,
    /// By this user alone: the name of a token.
    #[arg(long, visible_alias = "actor")]
    pub(crate) user: Option<String>,
    /// About this region alone, or about what it serves.
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// Of this long ago at most, such as 2h or 7d.
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) since: Option<Duration>,
    /// How many at most, the newest first.
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    pub(crate) limit: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_can_be_written_on_the_command_line() {
        let words: Vec<String> = TokenRole::value_variants()
            .iter()
            .filter_map(|role| role.to_possible_value())
            .map(|value| value.get_name().to_owned())
            .collect();
        assert_eq!(words, Role::ALL.map(|role| role.word().to_owned()));
        assert!(TokenRole::value_variants().iter().all(|role| Role::ALL.contains(&Role::from(*role))));
    }
}
