//! What a recorded route does, in the words of the command line.

/// The operation of a recorded route. A route that is none has no word of its own and is shown as it is.
pub(super) fn words(route: &str, target: &str) -> String {
    let known = OPERATIONS.iter().find(|(there, _)| *there == route);
    match known {
        // Which action it was stands in the address alone.
        Some((QUEUE, _)) => format!("{} request", target.rsplit('/').next().unwrap_or_default()),
        Some((_, words)) => (*words).to_owned(),
        None => route.to_owned(),
    }
}

/// What was done on an agent's machine, and reported later.
pub(super) const NODE_REMOVED: &str = "tidegate agent remove-node";

const QUEUE: &str = "POST /v1/queue/{request}/{action}";

const OPERATIONS: &[(&str, &str)] = &[
    ("POST /v1/stores", "create store"),
    ("PATCH /v1/stores/{store}", "change store"),
    ("DELETE /v1/stores/{store}", "delete store"),
    ("PUT /v1/stores/{store}/hooks", "set hook settings"),
    ("POST /v1/stores/{store}/schemas", "register schema"),
    ("POST /v1/stores/{store}/rollback", "roll back"),
    ("POST /v1/pushes", "start push"),
    ("PUT /v1/pushes/{push}/schema", "register push's schema"),
    ("POST /v1/pushes/{push}/complete", "complete push"),
    ("POST /v1/pushes/{push}/fail", "fail push"),
    ("POST /v1/pushes/{push}/kill", "kill push"),
    ("POST /v1/pushes/{push}/proceed", "proceed past gate"),
    ("PUT /v1/regions/{region}/availability", "mark region"),
    ("PUT /v1/regions/{region}", "set region"),
    ("DELETE /v1/regions/{region}", "remove region"),
    ("POST /v1/freezes", "freeze"),
    ("DELETE /v1/freezes/{freeze}", "lift freeze"),
    ("POST /v1/pauses/{pause}/answer", "answer pause"),
    ("PUT /v1/config/hooks", "apply hooks configuration"),
    ("POST /v1/cluster/confirm-set-back", "confirm set back"),
    (QUEUE, "act on request"),
    ("POST /v1/tokens", "create token"),
    ("DELETE /v1/tokens/{token}", "revoke token"),
    ("tidegate restore", "restore backup"),
    (NODE_REMOVED, "remove node"),
    ("tidegate server --adopt-artifact-store", "adopt artifact store"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::access::table::TABLE;

    #[test]
    fn every_recorded_route_has_words_and_no_words_are_without_a_route() {
        let recorded: BTreeSet<String> = TABLE
            .iter()
            .filter(|rule| rule.recorded)
            .map(|rule| format!("{} {}", rule.method.to_uppercase(), rule.path))
            .collect();
        let mut named: BTreeSet<String> = OPERATIONS.iter().map(|(route, _)| (*route).to_owned()).collect();
        // What is done at the machine itself asks no route.
        named.retain(|name| !name.starts_with("tidegate "));
        assert_eq!(named, recorded);
    }

    #[test]
    fn what_is_done_to_a_request_stands_in_its_address() {
        assert_eq!(words(QUEUE, "/v1/queue/1.2.3/discard"), "discard request");
        assert_eq!(words("POST /v1/tokens", "/v1/tokens"), "create token");
        assert_eq!(words("POST /v1/else", "/v1/else"), "POST /v1/else");
    }
}
