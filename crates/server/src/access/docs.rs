//! `docs/access.md`, made from the table.

use std::fmt::Write as _;

use tidegate_api::Role;

use super::table::{Rule, TABLE, Who};

/// Set to write the page instead of comparing it.
const WRITE: &str = "TIDEGATE_WRITE_DOCS";

const HEAD: &str = "\
<!-- Made from crates/server/src/access/table.rs: TIDEGATE_WRITE_DOCS=1 cargo test --release -p tidegate-server access::docs -->
# Who may do what

Where authentication is required, whoever asks shows a token. Its role says which routes it may ask; what is not in this
table is refused. Where authentication is off (the default on loopback) whoever reaches the server may do anything.

| role | is for |
|---|---|
| viewer | sees everything, changes nothing |
| operator | also acts: pushes, gates, pauses, freezes, rollbacks |
| admin | also tokens, the configuration, and deleting stores |
| team | sees and changes what belongs to one team: stores whose `team` it is, and their pushes |
| reader | reads data, for applications |
| region | the agent of one region: reads its own subtree, writes its own reports |

A session of the page (signing in with a token) reads what its token may read, and changes nothing.

## Routes

● may ask it, ◐ may ask it about what is its own. *Open* needs no token. Routes marked ✎ go into the audit trail
(`tidegate audit`).

| route | viewer | operator | admin | team | reader | region | what is its own |
|---|---|---|---|---|---|---|---|
";

fn render() -> String {
    let mut text = HEAD.to_owned();
    for rule in TABLE {
        let method = rule.method.to_uppercase();
        let mark = if rule.recorded { " ✎" } else { "" };
        let _ = write!(text, "| `{method} {}`{mark} |", rule.path.replace('|', "\\|"));
        for role in Role::ALL {
            let _ = write!(text, " {} |", cell(rule, role));
        }
        let _ = writeln!(text, " {} |", rule.scope.words());
    }
    text
}

fn cell(rule: &Rule, role: Role) -> &'static str {
    match rule.who {
        Who::Anybody => "*open*",
        Who::Roles(roles) if !roles.contains(&role) => "",
        Who::Roles(_) if matches!(role, Role::Team | Role::Region) && !rule.scope.words().is_empty() => "◐",
        Who::Roles(_) => "●",
    }
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
