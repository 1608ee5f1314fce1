//! The description of the API.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;

use super::{
    agent, artifacts, config, freezes, ops, page, pauses, protocol, pushes, queue, reads, regions, stores, upload,
    watch,
};

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
        upload::complete,
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
        artifacts::file,
        freezes::list,
        freezes::set,
        freezes::lift,
        pauses::list,
        pauses::answer,
        config::show,
        config::publish,
        queue::list,
        queue::act,
        watch::tree,
        watch::push,
        ops::health,
        ops::ready,
        ops::metrics,
        page::page,
        page::style,
        page::script,
        serve
    ),
    components(schemas(tidegate_api::WatchEvent, tidegate_api::QueueAction, tidegate_api::QueueEntryState))
)]
struct Description;

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
