//! The description of the API.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{
    agent, artifact_store, artifacts, audit, cluster, config, freezes, ops, page, pauses, protocol, pushes, queue,
    reads, regions, sign_in, stores, tokens, upload, watch,
};
use crate::access::table::{Who, rule};

/// Gathers what is described at each route.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tidegate",
        description = "Releases versioned datasets to every region. Errors have one shape, \
                       `ErrorBody`, whatever went wrong."
    ),
    paths(
        stores::list,
        stores::create,
        stores::show,
        stores::update,
        stores::remove,
        stores::overrides,
        stores::set_overrides,
        stores::list_schemas,
        stores::add_schema,
        stores::versions,
        stores::roll_back,
        reads::key,
        reads::batch,
        pushes::list,
        pushes::show,
        pushes::explain,
        pushes::calls,
        pushes::job,
        protocol::start,
        protocol::heartbeat,
        protocol::schema,
        protocol::fail,
        protocol::kill,
        protocol::proceed,
        upload::list,
        upload::put,
        upload::sign,
        upload::sent,
        upload::complete,
        artifact_store::show,
        regions::list,
        regions::show,
        regions::set,
        regions::remove,
        regions::mark,
        agent::host,
        agent::release,
        agent::watch,
        agent::report,
        agent::remove_report,
        agent::removal,
        agent::access,
        artifacts::file,
        freezes::list,
        freezes::set,
        freezes::lift,
        pauses::list,
        pauses::answer,
        cluster::show,
        cluster::confirm_set_back,
        config::show,
        config::publish,
        queue::list,
        queue::act,
        tokens::list,
        tokens::create,
        tokens::revoke,
        audit::list,
        watch::tree,
        watch::push,
        ops::health,
        ops::ready,
        ops::metrics,
        page::page,
        page::style,
        page::script,
        sign_in::show,
        sign_in::sign_in,
        sign_in::sign_out,
        serve
    ),
    modifiers(&Security),
    components(schemas(tidegate_api::WatchEvent, tidegate_api::QueueAction, tidegate_api::QueueEntryState))
)]
struct Description;

/// Says which routes need a token, as the table of access has it.
struct Security;

impl Modify for Security {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("tg_ID_SECRET");
        let token = token.description(Some(
            "A token. Where authentication is off, none is needed. docs/access.md says which role may ask what.",
        ));
        let components = description.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
        for (path, item) in &mut description.paths.paths {
            let operations = [
                ("get", &mut item.get),
                ("put", &mut item.put),
                ("post", &mut item.post),
                ("patch", &mut item.patch),
                ("delete", &mut item.delete),
            ];
            for (method, operation) in operations {
                let is_open = rule(method, path).is_some_and(|rule| rule.who == Who::Anybody);
                if let Some(operation) = operation
                    && !is_open
                {
                    operation.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
                }
            }
        }
    }
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "server",
    responses((status = 200, description = "OpenAPI 3.1", body = String,
        content_type = "application/json")))]
pub(crate) async fn serve() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| Description::openapi().to_json().unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::access::table::{Process, TABLE};

    #[test]
    fn every_route_is_described_and_every_description_has_a_route() {
        let served: BTreeSet<(String, String)> = super::super::all()
            .iter()
            .flat_map(|route| {
                let methods = route.methods.iter();
                methods.map(|method| (route.path.to_owned(), (*method).to_owned()))
            })
            .collect();
        let json = serde_json::to_value(Description::openapi()).unwrap();
        let mut described = BTreeSet::new();
        for (path, methods) in json["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                assert!(
                    operation["summary"].as_str().is_some_and(|text| !text.is_empty()),
                    "{method} {path} has no summary"
                );
                described.insert((path.clone(), method.clone()));
            }
        }
        assert_eq!(described, served);
    }

    #[test]
    fn every_route_but_the_open_ones_asks_for_a_token() {
        let json = serde_json::to_value(Description::openapi()).unwrap();
        assert_eq!(json["components"]["securitySchemes"]["token"]["scheme"], "bearer");
        for rule in TABLE.iter().filter(|rule| rule.at.contains(&Process::Server)) {
            let security = &json["paths"][rule.path][rule.method]["security"];
            let expected =
                if rule.who == Who::Anybody { serde_json::Value::Null } else { serde_json::json!([{"token": []}]) };
            assert_eq!(*security, expected, "{} {}", rule.method, rule.path);
        }
    }

    #[test]
    fn every_schema_that_is_referred_to_is_there() {
        let json = serde_json::to_value(Description::openapi()).unwrap();
        let text = json.to_string();
        let known = json["components"]["schemas"].as_object().unwrap();
        let referred: BTreeSet<&str> =
            text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(referred.contains("ErrorBody"));
        for name in referred {
            assert!(known.contains_key(name), "{name} is referred to and not there");
        }
    }
}
