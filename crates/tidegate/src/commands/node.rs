//! `tidegate node`.

use tidegate_server::node::{Node, NodeSetup};

use super::agent::{limits, service};
use crate::arguments::NodeArguments;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, plain, say};
use crate::parent::Parent;
use crate::stop::StopSignal;

pub(super) async fn run(arguments: NodeArguments, parent: &Parent, output: Output) -> Result<Exit, Failure> {
    let mut setup = NodeSetup::new(arguments.name, arguments.agent, arguments.data);
    setup.token_file = arguments.token_file;
    setup.trusted = arguments.ca_file;
    setup.listen = arguments.listen;
    (setup.exposure, setup.tls) = service(arguments.service);
    setup.advertise = arguments.advertise;
    setup.limits = limits(arguments.config.as_deref())?;
    let name = setup.name.clone();
    let mut stop = StopSignal::listen(parent)?;
    let node = tokio::select! {
        started = Node::start(setup) => started?,
        () = stop.told() => return Ok(Exit::Done),
    };
    if output.is_json() {
        output.result(&serde_json::json!({ "url": node.url(), "node": name }), |_, _| String::new())?;
    } else {
        say(&format!("{} node {} listening on {}", output.error_style.mark(Paint::Good), plain(&name), node.url()));
    }
    let removed = tokio::select! {
        () = stop.told() => None,
        removed = node.removed() => Some(removed),
    };
    say(&format!("{} stopping", output.error_style.mark(Paint::Going)));
    node.shutdown().await;
    match removed {
        Some(removed) => Err(Failure::from_body(removed)),
        None => Ok(Exit::Done),
    }
}
