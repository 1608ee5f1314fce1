//! `docs/access.md`, made from the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tidegate_api::{Role, Setting};

use super::config::{AccessSection, Authentication, TlsSection};
use super::table::{Process, Rule, TABLE, Who};
use crate::config::{LimitsSection, ServerLimits};

/// Set to write the page instead of comparing it.
const WRITE: &str = "TIDEGATE_WRITE_DOCS";

const HEAD: &str = "\
<!-- Made from crates/server/src/access/table.rs: TIDEGATE_WRITE_DOCS=1 cargo test --release -p tidegate-server access::docs -->
# Who may do what

Where authentication is required, whoever asks shows a token. Its role says which routes it may ask; what is not in this
table is refused. Where authentication is off (the default of a server on loopback) whoever reaches the process may do
anything. That holds for servers, for the agents of regions, and for nodes.

| role | is for |
|---|---|
| viewer | sees everything, changes nothing |
| operator | also acts: pushes, gates, pauses, freezes, rollbacks |
| admin | also tokens, the configuration, and deleting stores |
| team | sees and changes what belongs to one team: stores whose `team` it is, and their pushes |
| reader | reads data, for applications |
| region | the agent of one region and its nodes: reads its own subtree and artifacts, writes its own reports |

A session of the page (signing in with a token) reads what its token may read, and changes nothing.

## Routes of a server

● may ask it, ◐ may ask it about what is its own. *Open* needs no token. Routes marked ✎ go into the audit trail
(`tidegate audit`), also where a token may not ask them: with what was to be made or changed, about twenty such entries of
one token at once and one more every five seconds. What shows no token that holds is counted only.

| route | viewer | operator | admin | team | reader | region | what is its own |
|---|---|---|---|---|---|---|---|
";

const REGION_HEAD: &str = "
## Routes within a region

An agent or a node asks for tokens if it has one itself (`--token-file`), unless it is told `--allow-anyone`; then it still
asks for the region's where that is needed. *Secret* is what the process has drawn at its start and told one other alone: a
node its agent, an agent those who may read its folder.

An agent can't ask the database. Every few seconds, and at once where somebody shows a token that it does not know, it asks
the control plane which tokens hold: those of this region, and those of roles that may read data. It is told their digests
(SHA-256 of 256 random bits), names, roles and ends, and hands them on to its nodes. Each keeps that on its own disk, and
goes by it with the control plane gone; what was revoked meanwhile is refused once it is back. The region's own token, in
the file beside the process, is known without any news.

| route | at | viewer | operator | admin | team | reader | region | what is its own |
|---|---|---|---|---|---|---|---|---|
";

const LIMITS_HEAD: &str = "
## Limits

Each is a setting of the file that `--config` names, by this name (`server.limits.reads` is `reads` under
`[server.limits]`). `tidegate config show` says which of a server are in force. Agents and nodes take such a file, too, with
these two sections alone (`tidegate agent --config FILE`, `tidegate node --config FILE`); they have the limits that are marked.

| setting | default | of agents and nodes | what it bounds |
|---|---|---|---|
";

const LIMITS: &[(&str, &str)] = &[
    ("server.limits.body_bytes", "bytes of a request's body, but for manifests and parts"),
    ("server.limits.manifest_bytes", "bytes of a manifest"),
    ("server.limits.part_bytes", "bytes of a part"),
    ("server.limits.requests", "requests at once, but for those below; further ones are refused (503)"),
    ("server.limits.reads", "look-ups in batches at once"),
    ("server.limits.uploads", "parts that are received at once"),
    ("server.limits.watches", "open watch streams"),
    ("server.limits.request_seconds", "seconds that a request may take; parts and watches have a limit on silence"),
    ("server.limits.batch_keys", "keys in a batch"),
    ("server.limits.connections", "connections at once; further ones wait"),
    ("server.limits.connections_per_address", "connections from one address beyond loopback; further ones are closed"),
    ("access.limits.requests_per_second", "requests of one token, or one address, in the long run (429 beyond)"),
    ("access.limits.requests_burst", "how many of these may come at once"),
    ("access.limits.look_ups_per_second", "look-ups of one token, or one address, in the long run"),
    ("access.limits.look_ups_burst", "how many of these may come at once"),
    ("access.limits.wrong_tokens_burst", "wrong tokens of one address at once; one more every two seconds"),
];

fn defaults() -> BTreeMap<String, Setting> {
    let mut settings = ServerLimits::default().settings(&LimitsSection::default());
    let (access, tls) = (AccessSection::default(), TlsSection::default());
    settings.extend(super::config::settings(Authentication::Off, &access, &tls, &[]));
    settings.retain(|name, _| name.contains(".limits."));
    settings
}

fn render() -> String {
    let mut text = HEAD.to_owned();
    for rule in TABLE.iter().filter(|rule| rule.at.contains(&Process::Server)) {
        let mark = if rule.recorded { " ✎" } else { "" };
        row(&mut text, rule, &format!("{mark} |"));
    }
    text.push_str(REGION_HEAD);
    for rule in TABLE {
        let places: Vec<_> = rule.at.iter().filter(|at| **at != Process::Server).map(|at| at.word()).collect();
        if !places.is_empty() {
            row(&mut text, rule, &format!(" | {} |", places.join(", ")));
        }
    }
    text.push_str(LIMITS_HEAD);
    let defaults = defaults();
    for (name, meaning) in LIMITS {
        let value = defaults.get(*name).map_or("?", |setting| &setting.value);
        let is_everywhere =
            name.strip_prefix("server.limits.").is_none_or(|name| crate::agent::LIMIT_NAMES.contains(&name));
        let mark = if is_everywhere { "●" } else { "" };
        let _ = writeln!(text, "| `{name}` | {value} | {mark} | {meaning} |");
    }
    text
}

fn row(text: &mut String, rule: &Rule, beside: &str) {
    let _ = write!(text, "| `{} {}`{beside}", rule.method.to_uppercase(), rule.path.replace('|', "\\|"));
    for role in Role::ALL {
        let _ = write!(text, " {} |", cell(rule, role));
    }
    let _ = writeln!(text, " {} |", rule.scope.words());
}

fn cell(rule: &Rule, role: Role) -> &'static str {
    match rule.who {
        Who::Anybody => "*open*",
        Who::Secret => "*secret*",
        Who::Roles(roles) if !roles.contains(&role) => "",
        Who::Roles(_) if matches!(role, Role::Team | Role::Region) && !rule.scope.words().is_empty() => "◐",
        Who::Roles(_) => "●",
    }
}

#[test]
fn every_limit_is_on_the_page() {
    let told: Vec<&str> = LIMITS.iter().map(|(name, _)| *name).collect();
    let mut there: Vec<String> = defaults().into_keys().collect();
    there.retain(|name| !told.contains(&name.as_str()));
    assert!(there.is_empty(), "{there:?} are settings that the page does not tell of");
    assert!(!render().contains("| ? |"), "the page tells of settings that there are not");
}

#[test]
fn the_page_about_access_is_the_table() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/access.md");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, render()).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap();
    assert_eq!(there, render(), "docs/access.md is not the table: write it anew with {WRITE}=1");
}
