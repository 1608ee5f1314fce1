//! The table: who may ask which route, and about what.
//!
//! It has the routes of every process: servers, agents of regions, and nodes. A route that is not here keeps the process from
//! starting. `docs/access.md` is made from this table, and a test holds it
//! together with it; another asks every route as every role.

use tidegate_api::Role;

use Role::{Admin, Operator, Reader, Region, Team, Viewer};

/// One route with one method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The method, in lower case.
    pub method: &'static str,
    /// The path, as the API's description writes it.
    pub path: &'static str,
    /// Which processes have the route.
    pub at: &'static [Process],
    /// Who may ask.
    pub who: Who,
    /// What a team's or a region's token may ask it about. It concerns no other role.
    pub scope: Scope,
    /// Whether it goes into the audit trail.
    pub recorded: bool,
}

/// What has routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// A server of the control plane.
    Server,
    /// A region's agent that is a process of its own.
    Agent,
    /// A node of a region that is a process of its own.
    Node,
    /// The port of an agent for orders that are given on its machine. It listens on loopback alone.
    Orders,
}

impl Process {
    /// What people call it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
            Self::Node => "node",
            Self::Orders => "agent, for orders on its machine",
        }
    }
}

/// Who may ask a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everybody, without a token.
    Anybody,
    /// Tokens of these roles.
    Roles(&'static [Role]),
    /// Whoever was told the secret that the process drew at its start: of a node its agent, of an agent's port for orders
    /// those who may read its folder. No token opens it, and it is asked for wherever the process listens.
    Secret,
}

/// What a team's or a region's token may ask a route about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// It is about the whole installation: no route for a team or a region.
    Installation,
    /// It is about nothing that belongs to anybody.
    Nothing,
    /// The store in the path is one of the team's.
    Store,
    /// So, and if the body names a team, it is the same.
    StoreSettings,
    /// The push in the path is one of a store of the team's.
    Push,
    /// The pause in the path holds a push of a store of the team's.
    Pause,
    /// The body makes a store; its team, if it is named, is this one.
    NewStore,
    /// The body starts a push of a store of the team's.
    NewPush,
    /// The answer lists what belongs to the team alone; a parameter `store` names a store of the team's.
    Listed,
    /// The parameter `prefix` is the path of a store of the team's, or of the region, or below it.
    Watched,
    /// The region in the path, or whose agent is asked, is the token's.
    Region,
    /// The artifact in the path is that of a version which the token's region is or was told to hold.
    Artifact,
}

impl Scope {
    /// What it means, for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Installation | Self::Nothing => "",
            Self::Store => "own stores",
            Self::StoreSettings => "own stores; can't give them to another team",
            Self::Push => "pushes of own stores",
            Self::Pause => "pauses of own stores",
            Self::NewStore => "stores of the own team",
            Self::NewPush => "own stores",
            Self::Listed => "lists what is its own",
            Self::Watched => "`prefix` within an own store, or within the own region",
            Self::Region => "own region",
            Self::Artifact => "artifacts of versions that the own region holds or held",
        }
    }
}

const SEES: Who = Who::Roles(&[Viewer, Operator, Admin]);
const ACTS: Who = Who::Roles(&[Operator, Admin]);
const ADMINISTERS: Who = Who::Roles(&[Admin]);
const SEES_OWN: Who = Who::Roles(&[Viewer, Operator, Admin, Team]);
const ACTS_ON_OWN: Who = Who::Roles(&[Operator, Admin, Team]);
const READS_DATA: Who = Who::Roles(&[Viewer, Operator, Admin, Team, Reader]);
const WATCHES: Who = Who::Roles(&[Viewer, Operator, Admin, Team, Region]);
const WORKS_WITH_ARTIFACTS: Who = Who::Roles(&[Viewer, Operator, Admin, Region]);
const HAS_A_TOKEN: Who = Who::Roles(&Role::ALL);
const HOSTS_A_REGION: Who = Who::Roles(&[Admin, Region]);
const SEES_A_REGION: Who = Who::Roles(&[Viewer, Operator, Admin, Region]);

/// A rule for a server's route that only shows something.
const fn shows(method: &'static str, path: &'static str, who: Who, scope: Scope) -> Rule {
    Rule { method, path, at: &[Process::Server], who, scope, recorded: false }
}

/// A rule for a server's route that changes something, and so goes into the audit trail.
const fn changes(method: &'static str, path: &'static str, who: Who, scope: Scope) -> Rule {
    Rule { recorded: true, ..shows(method, path, who, scope) }
}

impl Rule {
    /// The same rule, for a route that these have.
    const fn at(self, at: &'static [Process]) -> Rule {
        Rule { at, ..self }
    }
}

const EVERYWHERE: &[Process] = &[Process::Server, Process::Agent, Process::Node];
const SERVER_AND_AGENT: &[Process] = &[Process::Server, Process::Agent];
const AGENT: &[Process] = &[Process::Agent];
const NODE: &[Process] = &[Process::Node];
const ORDERS: &[Process] = &[Process::Orders];

/// The one change that is let in while the database is found to have been put back.
pub(crate) const CONFIRM_SET_BACK: &str = "/v1/cluster/confirm-set-back";

/// Every rule there is. Heartbeats, parts and reports are changes that come by the thousand: they are not recorded.
pub const TABLE: &[Rule] = &[
    // Stores.
    shows("get", "/v1/stores", SEES_OWN, Scope::Listed),
    changes("post", "/v1/stores", ACTS_ON_OWN, Scope::NewStore),
    shows("get", "/v1/stores/{store}", SEES_OWN, Scope::Store),
    changes("patch", "/v1/stores/{store}", ACTS_ON_OWN, Scope::StoreSettings),
    changes("delete", "/v1/stores/{store}", ADMINISTERS, Scope::Installation),
    shows("get", "/v1/stores/{store}/hooks", SEES_OWN, Scope::Store),
    changes("put", "/v1/stores/{store}/hooks", ACTS_ON_OWN, Scope::Store),
    shows("get", "/v1/stores/{store}/schemas", SEES_OWN, Scope::Store),
    changes("post", "/v1/stores/{store}/schemas", ACTS_ON_OWN, Scope::Store),
    shows("get", "/v1/stores/{store}/versions", SEES_OWN, Scope::Store),
    changes("post", "/v1/stores/{store}/rollback", ACTS_ON_OWN, Scope::Store),
    // Data.
    shows("get", "/v1/stores/{store}/keys/{key}", READS_DATA, Scope::Store).at(EVERYWHERE),
    shows("post", "/v1/stores/{store}/keys:batch", READS_DATA, Scope::Store).at(EVERYWHERE),
    // Pushes.
    shows("get", "/v1/pushes", SEES_OWN, Scope::Listed),
    changes("post", "/v1/pushes", ACTS_ON_OWN, Scope::NewPush),
    shows("get", "/v1/pushes/{push}", SEES_OWN, Scope::Push),
    shows("get", "/v1/pushes/{push}/explain", SEES_OWN, Scope::Push),
    shows("get", "/v1/pushes/{push}/calls", SEES_OWN, Scope::Push),
    shows("get", "/v1/pushes/{push}/job", SEES_OWN, Scope::Push),
    shows("get", "/v1/pushes/{push}/watch", SEES_OWN, Scope::Push),
    shows("post", "/v1/pushes/{push}/heartbeat", ACTS_ON_OWN, Scope::Push),
    changes("put", "/v1/pushes/{push}/schema", ACTS_ON_OWN, Scope::Push),
    shows("get", "/v1/pushes/{push}/parts", SEES_OWN, Scope::Push),
    shows("put", "/v1/pushes/{push}/parts/{part}", ACTS_ON_OWN, Scope::Push),
    shows("post", "/v1/pushes/{push}/parts/{part}/upload", ACTS_ON_OWN, Scope::Push),
    shows("post", "/v1/pushes/{push}/parts/{part}/sent", ACTS_ON_OWN, Scope::Push),
    changes("post", "/v1/pushes/{push}/complete", ACTS_ON_OWN, Scope::Push),
    changes("post", "/v1/pushes/{push}/fail", ACTS_ON_OWN, Scope::Push),
    changes("post", "/v1/pushes/{push}/kill", ACTS_ON_OWN, Scope::Push),
    // To open a gate whatever its hooks say is an operator's decision, also for a team's own store.
    changes("post", "/v1/pushes/{push}/proceed", ACTS, Scope::Installation),
    // Regions.
    shows("get", "/v1/regions", SEES_OWN, Scope::Listed),
    changes("put", "/v1/regions/{region}/availability", ACTS, Scope::Installation),
    shows("get", "/v1/regions/{region}", SEES_A_REGION, Scope::Region),
    changes("put", "/v1/regions/{region}", ADMINISTERS, Scope::Installation),
    changes("delete", "/v1/regions/{region}", ADMINISTERS, Scope::Installation),
    shows("put", "/v1/regions/{region}/agent/host", HOSTS_A_REGION, Scope::Region),
    shows("delete", "/v1/regions/{region}/agent/host", HOSTS_A_REGION, Scope::Region),
    shows("get", "/v1/regions/{region}/agent/watch", HOSTS_A_REGION, Scope::Region),
    shows("put", "/v1/regions/{region}/agent/reports/{store}", HOSTS_A_REGION, Scope::Region),
    shows("delete", "/v1/regions/{region}/agent/reports/{store}", HOSTS_A_REGION, Scope::Region),
    shows("post", "/v1/regions/{region}/agent/removals", HOSTS_A_REGION, Scope::Region),
    shows("get", "/v1/regions/{region}/agent/access", HOSTS_A_REGION, Scope::Region),
    // An agent has its region's copies alone.
    shows("get", "/v1/artifacts/{artifact}/{file}", HOSTS_A_REGION, Scope::Artifact).at(SERVER_AND_AGENT),
    // Within a region.
    shows("put", "/v1/nodes/{node}", HOSTS_A_REGION, Scope::Region).at(AGENT),
    shows("post", "/v1/engine", Who::Secret, Scope::Nothing).at(NODE),
    shows("get", "/v1/pins", Who::Secret, Scope::Nothing).at(ORDERS),
    shows("put", "/v1/pins/{store}", Who::Secret, Scope::Nothing).at(ORDERS),
    shows("delete", "/v1/pins/{store}", Who::Secret, Scope::Nothing).at(ORDERS),
    shows("delete", "/v1/nodes/{node}", Who::Secret, Scope::Nothing).at(ORDERS),
    // Freezes are the operators': what one has frozen, no team thaws.
    shows("get", "/v1/freezes", SEES_OWN, Scope::Listed),
    changes("post", "/v1/freezes", ACTS, Scope::Installation),
    changes("delete", "/v1/freezes/{freeze}", ACTS, Scope::Installation),
    // Pauses; the pause itself says who else may answer it.
    shows("get", "/v1/pauses", SEES_OWN, Scope::Listed),
    changes("post", "/v1/pauses/{pause}/answer", ACTS_ON_OWN, Scope::Pause),
    // The installation.
    shows("get", "/v1/config", SEES, Scope::Installation),
    changes("put", "/v1/config/hooks", ADMINISTERS, Scope::Installation),
    shows("get", "/v1/artifact-store", WORKS_WITH_ARTIFACTS, Scope::Nothing),
    shows("get", "/v1/cluster", SEES, Scope::Installation),
    changes("post", CONFIRM_SET_BACK, ADMINISTERS, Scope::Installation),
    shows("get", "/v1/queue", SEES, Scope::Installation),
    changes("post", "/v1/queue/{request}/{action}", ACTS, Scope::Installation),
    shows("get", "/v1/tokens", ADMINISTERS, Scope::Installation),
    changes("post", "/v1/tokens", ADMINISTERS, Scope::Installation),
    changes("delete", "/v1/tokens/{token}", ADMINISTERS, Scope::Installation),
    shows("get", "/v1/audit", SEES, Scope::Installation),
    shows("get", "/v1/watch", WATCHES, Scope::Watched),
    shows("get", "/metrics", SEES, Scope::Installation).at(EVERYWHERE),
    shows("get", "/openapi.json", HAS_A_TOKEN, Scope::Nothing),
    shows("get", "/healthz", Who::Anybody, Scope::Nothing).at(EVERYWHERE),
    shows("get", "/readyz", Who::Anybody, Scope::Nothing).at(EVERYWHERE),
    // The page; its style and script are the same for everybody, and its form is how one signs in.
    shows("get", "/", SEES, Scope::Installation),
    shows("get", "/assets/page.css", Who::Anybody, Scope::Nothing),
    shows("get", "/assets/page.js", Who::Anybody, Scope::Nothing),
    shows("get", "/login", Who::Anybody, Scope::Nothing),
    shows("post", "/login", Who::Anybody, Scope::Nothing),
    shows("post", "/logout", Who::Anybody, Scope::Nothing),
];

/// The rule for a route.
#[must_use]
pub fn rule(method: &str, path: &str) -> Option<&'static Rule> {
    TABLE.iter().find(|rule| rule.method == method && rule.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::routes;

    fn names<S>(routes: &[routes::Route<S>]) -> Vec<(&'static str, &'static str)> {
        let named = routes.iter().flat_map(|route| route.methods.iter().map(move |method| (*method, route.path)));
        named.collect()
    }

    #[test]
    fn every_route_has_a_rule_and_every_rule_a_route() {
        let mut used = BTreeSet::new();
        let processes = [
            (Process::Server, names(&routes::all())),
            (Process::Agent, names(&crate::agent::routes())),
            (Process::Orders, names(&crate::agent::order_routes())),
            (Process::Node, names(&crate::node::routes())),
        ];
        for (process, routes) in processes {
            used.extend(routes.into_iter().map(|(method, path)| (process, method, path)));
        }
        let rules = TABLE.iter().flat_map(|rule| rule.at.iter().map(move |at| (*at, rule.method, rule.path)));
        assert_eq!(used, rules.collect::<BTreeSet<_>>(), "routes, and the rules that there are");
        assert_eq!(TABLE.iter().map(|rule| (rule.method, rule.path)).collect::<BTreeSet<_>>().len(), TABLE.len());
    }

    #[test]
    fn a_team_and_a_region_never_have_a_rule_without_a_scope() {
        for rule in TABLE {
            let Who::Roles(roles) = rule.who else { continue };
            let is_scoped = roles.contains(&Team) || roles.contains(&Region);
            assert!(!is_scoped || rule.scope != Scope::Installation, "{rule:?}");
            assert!(!roles.contains(&Role::Unknown), "{rule:?}");
        }
    }

    #[test]
    fn only_what_changes_nothing_or_signs_in_is_open() {
        for rule in TABLE.iter().filter(|rule| rule.who == Who::Anybody) {
            assert!(rule.method == "get" || ["/login", "/logout"].contains(&rule.path), "{rule:?}");
        }
    }

    #[test]
    fn in_a_region_nobody_but_its_token_and_admins_does_more_than_look() {
        for rule in TABLE.iter().filter(|rule| !rule.at.contains(&Process::Server)) {
            let is_for_nodes = rule.path.starts_with("/v1/nodes/") && rule.at == AGENT;
            let expected = if is_for_nodes { HOSTS_A_REGION } else { Who::Secret };
            assert_eq!((rule.who, rule.recorded), (expected, false), "{rule:?}");
        }
        assert!(TABLE.iter().all(|rule| rule.who != Who::Secret || !rule.at.contains(&Process::Server)));
    }

    #[test]
    fn each_role_has_what_its_name_says() {
        let may = |role: Role| {
            let rules = TABLE.iter().filter(move |rule| {
                rule.at.contains(&Process::Server) && matches!(rule.who, Who::Roles(roles) if roles.contains(&role))
            });
            rules.map(|rule| (rule.method, rule.path)).collect::<Vec<_>>()
        };
        let data = [("get", "/v1/stores/{store}/keys/{key}"), ("post", "/v1/stores/{store}/keys:batch")];
        let description = ("get", "/openapi.json");
        assert_eq!(may(Reader), [data[0], data[1], description]);
        assert_eq!(
            may(Region),
            [
                ("get", "/v1/regions/{region}"),
                ("put", "/v1/regions/{region}/agent/host"),
                ("delete", "/v1/regions/{region}/agent/host"),
                ("get", "/v1/regions/{region}/agent/watch"),
                ("put", "/v1/regions/{region}/agent/reports/{store}"),
                ("delete", "/v1/regions/{region}/agent/reports/{store}"),
                ("post", "/v1/regions/{region}/agent/removals"),
                ("get", "/v1/regions/{region}/agent/access"),
                ("get", "/v1/artifacts/{artifact}/{file}"),
                ("get", "/v1/artifact-store"),
                ("get", "/v1/watch"),
                description
            ]
        );
        assert!(may(Viewer).iter().all(|rule| rule.0 == "get" || *rule == data[1]), "{:?}", may(Viewer));
        // Each of these may all that the one before it may.
        for (lower, higher) in [(Viewer, Operator), (Operator, Admin)] {
            let higher_may = may(higher);
            assert!(may(lower).iter().all(|rule| higher_may.contains(rule)), "{lower} {higher}");
        }
        for admin_alone in ["/v1/tokens", "/v1/config/hooks"] {
            let changes = TABLE.iter().filter(|rule| rule.path == admin_alone && rule.recorded);
            assert!(
                changes.clone().count() > 0 && changes.clone().all(|rule| rule.who == ADMINISTERS),
                "{admin_alone}"
            );
        }
    }

    #[test]
    fn what_agents_ask_is_about_their_region_and_there_is_no_rule_beside_a_route() {
        for rule in TABLE.iter().filter(|rule| rule.path.starts_with("/v1/regions/{region}/agent/")) {
            assert_eq!((rule.who, rule.scope), (HOSTS_A_REGION, Scope::Region), "{rule:?}");
        }
        for path in ["/v1/regions/{region}/agent/", "/v1/regions/{region}/agents", "/v1/regions/{region}/agent/host"] {
            assert!(rule("get", path).is_none(), "{path}");
        }
        assert!(rule("patch", "/v1/stores").is_none());
    }
}
