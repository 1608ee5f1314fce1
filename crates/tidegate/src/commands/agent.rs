//! `tidegate agent`, and `agent pin|unpin|pins`.

use std::path::Path;

use tidegate_api::PinView;
use tidegate_api::agent::{NodeRemoved, PinAnswer, PinOrder, StorePins};
use tidegate_rollout::region::remote::RemoteSetupError;
use tidegate_server::access::Exposure;
use tidegate_server::access::config::TlsSection;
use tidegate_server::agent::{
    Agent, AgentSetup, AgentStartError, ControlError, NodeRemoval, ServiceLimits, pin_version, pins, remove_node, unpin,
};

use super::local_user;
use crate::arguments::{AgentArguments, AgentCommand, AgentRunArguments, ServiceArguments};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, moment, plain, say, table};
use crate::parent::Parent;
use crate::stop::StopSignal;

pub(super) async fn run(arguments: AgentArguments, parent: &Parent, output: Output) -> Result<Exit, Failure> {
    match (arguments.command, arguments.run) {
        (Some(AgentCommand::Pin { store, version, reason, data }), _) => {
            let order = PinOrder { version, reason, by: local_user() };
            let answer = pin_version(&data, &store, order).await?;
            output.result(&answer, pinned)?;
        }
        (Some(AgentCommand::Unpin { store, data }), _) => {
            let lifted = unpin(&data, &store, &local_user()).await?;
            output.result(&lifted, |lifted, _| {
                format!("the pin of {} to version {} is lifted", plain(&store), lifted.version)
            })?;
        }
        (Some(AgentCommand::RemoveNode { node, reason, force, data }), _) => {
            let removal = NodeRemoval { by: local_user(), reason, force };
            let removed = remove_node(&data, &node, removal).await?;
            output.result(&removed, node_removed)?;
        }
        (Some(AgentCommand::Pins { data }), _) => {
            let pins = pins(&data).await?;
            output.result(&pins, |pins, style| list(pins, style))?;
        }
        (None, Some(run)) => start(run, arguments.service, parent, output).await?,
        (None, None) => {
            return Err(Failure::usage(
                "no region was named",
                "An agent hosts one region.",
                "Write `tidegate agent --region R --control-plane URL --data DIR`.",
            ));
        }
    }
    Ok(Exit::Done)
}

async fn start(
    arguments: AgentRunArguments,
    listens: ServiceArguments,
    parent: &Parent,
    output: Output,
) -> Result<(), Failure> {
    let mut setup = AgentSetup::new(arguments.region, arguments.control_planes, arguments.data);
    setup.token_file = arguments.token_file;
    setup.trusted = arguments.ca_file;
    setup.listen = arguments.listen;
    (setup.exposure, setup.tls) = service(listens);
    setup.advertise = arguments.advertise;
    setup.name = arguments.name;
    setup.nodes = arguments.nodes;
    setup.lease = arguments.lease;
    setup.limits = limits(arguments.config.as_deref())?;
    let region = setup.region.clone();
    let mut stop = StopSignal::listen(parent)?;
    let agent = tokio::select! {
        started = Agent::start(setup) => started?,
        () = stop.told() => return Ok(()),
    };
    if output.is_json() {
        output.result(&serde_json::json!({ "url": agent.url(), "region": region }), |_, _| String::new())?;
    } else {
        let mark = output.error_style.mark(Paint::Good);
        say(&format!("{mark} agent of region {} listening on {}", plain(&region), agent.url()));
    }
    let refused = tokio::select! {
        () = stop.told() => None,
        refused = agent.refused() => Some(refused),
    };
    say(&format!("{} stopping", output.error_style.mark(Paint::Going)));
    agent.shutdown().await;
    match refused {
        Some(refused) => Err(refused.into()),
        None => Ok(()),
    }
}

/// The limits of an agent or a node.
pub(super) fn limits(file: Option<&Path>) -> Result<ServiceLimits, Failure> {
    let Some(file) = file else { return Ok(ServiceLimits::default()) };
    ServiceLimits::read(file).map_err(|error| {
        Failure::new(
            "the process did not start",
            error.to_string(),
            "Nothing was changed.",
            "Mend the file that --config names; docs/access.md has the limits that an agent or a node takes.",
        )
    })
}

/// What an agent or a node is told of how to listen.
pub(super) fn service(arguments: ServiceArguments) -> (Exposure, TlsSection) {
    let ServiceArguments { tls_certificate, tls_key, allow_anyone, allow_plain_http } = arguments;
    (Exposure { allow_anyone, allow_plain_http }, TlsSection { certificate: tls_certificate, key: tls_key })
}

fn node_removed(removed: &NodeRemoved, style: Style) -> String {
    let mut text = format!(
        "{} region {} has let go of node {}; it has {} left, and pushes wait for no other",
        style.mark(Paint::Good),
        plain(&removed.region),
        plain(&removed.node),
        plain(&removed.left.join(", "))
    );
    let address = plain(&removed.address);
    if removed.was_heard {
        text.push_str(&format!(
            "\n  what runs at {address} is told to end, within seconds; reads that go there fail then"
        ));
    }
    text.push_str(&format!(
        "\n  whoever reads at {address} has to read elsewhere; a node of this name that is started joins the region"
    ));
    text
}

fn pinned(answer: &PinAnswer, style: Style) -> String {
    let serves = if answer.serving { "serves it" } else { "is about to serve it" };
    let mut text = format!(
        "{} region {} {serves}: {} pinned to version {} ({} of {} nodes hold it whole)",
        style.mark(Paint::Good),
        plain(&answer.region),
        plain(&answer.store),
        answer.pin.version,
        answer.nodes,
        answer.of_nodes
    );
    if let Some(replaced) = &answer.replaced {
        text.push_str(&format!("\n  in place of the pin to version {} by {}", replaced.version, plain(&replaced.by)));
    }
    text.push_str("\n  until it is lifted: `tidegate agent unpin`");
    text
}

fn list(pins: &[StorePins], style: Style) -> String {
    let mut rows = Vec::new();
    let mut row = |store: &str, pin: &PinView| {
        let state = match (&pin.ended, pin.ended_at) {
            (Some(ended), Some(at)) => format!("over since {}: {}", moment(at), plain(ended)),
            _ => "in force".to_owned(),
        };
        rows.push(vec![
            plain(store),
            format!("v{}", pin.version),
            plain(&pin.by),
            moment(pin.at),
            plain(&pin.reason),
            state,
        ]);
    };
    for store in pins {
        for pin in store.pin.iter().chain(store.past.iter().rev()) {
            row(&store.store, pin);
        }
    }
    table::render(style, &["store", "version", "by", "since", "reason", "state"], &rows)
}

impl From<AgentStartError> for Failure {
    fn from(error: AgentStartError) -> Self {
        if let AgentStartError::NotLetIn(body) = error {
            return Failure::from_body(body);
        }
        let to_do = match &error {
            AgentStartError::Setting { .. } => "Correct it and try again.",
            AgentStartError::Exposed(_) => {
                "Do what the text says, or choose a loopback address, such as 127.0.0.1:7610."
            }
            AgentStartError::Tls(_) => "Mend the files that --tls-certificate and --tls-key name.",
            AgentStartError::Listen { .. } => "Stop what listens there, or choose another address with --listen.",
            AgentStartError::DataInUse { .. } => "Stop the other process, or choose another folder with --data.",
            AgentStartError::Data { .. } => "Choose the agent's own folder, which this user may write, with --data.",
            AgentStartError::ControlPlane(RemoteSetupError::Trusted { .. }) => "Mend the file that --ca-file names.",
            AgentStartError::ControlPlane(_) => "Write for instance --control-plane http://127.0.0.1:7600.",
            _ => "Mend what the text names, and try again.",
        };
        Failure::new("the process did not start", error.to_string(), "Nothing was changed.", to_do)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Refused(body) => Failure::from_body(body),
            ControlError::Folder(error) => Failure::new(
                "the agent's folder could not be used",
                error.to_string(),
                "Nothing was changed.",
                "Name the folder of the region's agent on this machine with --data.",
            ),
            error => Failure::new(
                "the agent could not be given the order",
                error.to_string(),
                "It is not known whether the agent got it; `tidegate agent pins` shows what is pinned.",
                "Try again; if that does not help, restart the agent: it serves on meanwhile.",
            ),
        }
    }
}
