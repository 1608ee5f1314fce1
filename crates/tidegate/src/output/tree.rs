//! A push as a tree: the push, its regions in order, and who holds what and why.

use tidegate_api::{
    GateStatus, GateView, HoldView, Progress, PushPhase, PushRegionView, PushState, PushStatus, PushView, RegionStage,
    Verdict,
};

use super::{Paint, Style, bytes, count, counted, elapsed, plain};

/// The whole tree, a line each, without a line end after the last.
pub(crate) fn push(view: &PushView, style: Style) -> String {
    let mut lines = without_reason(view, style);
    if let (true, Some(reason)) = (view.state.status.is_terminal(), &view.state.reason) {
        lines.push_str(&format!("\n  {}", plain(reason)));
    }
    lines
}

/// The tree for where the reason of its end is told beside it.
pub(crate) fn without_reason(view: &PushView, style: Style) -> String {
    let mut lines = vec![heading(view, style)];
    if let Some(artifact) = &view.artifact {
        let duplicates =
            if artifact.duplicates == 0 { String::new() } else { format!(", {} repeated", count(artifact.duplicates)) };
        let text = format!(
            "artifact {} · {}{duplicates} · {} · {}",
            short(&artifact.id),
            counted(artifact.records, "record"),
            counted(artifact.parts, "part"),
            bytes(artifact.bytes)
        );
        lines.push(format!("  {}", style.paint(Paint::Quiet, &text)));
    } else if let Some(client) = &view.client
        && !view.state.status.is_terminal()
    {
        let progress = client.progress.map(progress_text).unwrap_or_default();
        let doing = format!("{:?}", client.phase).to_lowercase();
        lines.push(format!("  {} client {doing} {progress}", style.mark(Paint::Going)).trim_end().to_owned());
    }
    for gate in view.gates.iter().filter(|gate| worth_showing(gate)) {
        lines.push(format!("  {}", gate_line(gate, view, style)));
        lines.extend(hook_lines(gate, style).into_iter().map(|line| format!("    {line}")));
    }
    let width = view.regions.iter().map(|region| region.region.chars().count()).max().unwrap_or(0);
    for (place, region) in view.regions.iter().enumerate() {
        let last = place + 1 == view.regions.len();
        let (branch, below) = match (style.rich, last) {
            (true, false) => ("├─", "│ "),
            (true, true) => ("└─", "  "),
            (false, false) => ("|-", "| "),
            (false, true) => ("`-", "  "),
        };
        lines.push(format!("  {branch} {}", region_line(region, view, width, style)));
        for line in region_details(region, view, style) {
            lines.push(format!("  {below}    {line}"));
        }
    }
    for hold in view.holds.iter().filter(|hold| hold.region.is_none() && !view.state.status.is_terminal()) {
        lines.push(format!("  {}", hold_line(hold, view, style)));
    }
    lines.join("\n")
}

fn heading(view: &PushView, style: Style) -> String {
    let state = &view.state;
    let version = state.version.map(|version| format!(" v{version}")).unwrap_or_default();
    let ended = view.ended_at.unwrap_or(view.now);
    let age = elapsed(difference(ended, view.created_at));
    let name = style.paint(Paint::Strong, &format!("{}{version}", plain(&state.store)));
    format!(
        "{} push {} → {name}  {}  {}",
        style.mark(paint(state)),
        plain(&state.push),
        status(state, style),
        style.paint(Paint::Quiet, &age)
    )
}

/// `STARTED (rollout)`, `ERROR (region)`.
pub(crate) fn status(state: &PushState, style: Style) -> String {
    let word = style.paint(paint(state), state.status.word());
    match (state.ended_by, state.status) {
        (Some(ended_by), _) => format!("{word} ({})", ended_by.word()),
        (None, PushStatus::Started) if state.phase != PushPhase::Ended => format!("{word} ({})", state.phase.word()),
        (None, _) => word,
    }
}

fn paint(state: &PushState) -> Paint {
    match state.status {
        PushStatus::Completed => Paint::Good,
        PushStatus::Aborted | PushStatus::RolledBack | PushStatus::Error | PushStatus::Killed => Paint::Bad,
        PushStatus::Started => Paint::Going,
        PushStatus::Queued | PushStatus::Unknown => Paint::Held,
    }
}

fn region_line(region: &PushRegionView, view: &PushView, width: usize, style: Style) -> String {
    let mark = match region.stage {
        RegionStage::Done => Paint::Good,
        RegionStage::Failed => Paint::Bad,
        RegionStage::Creation | RegionStage::SwapGate | RegionStage::Bake => Paint::Held,
        RegionStage::Ingestion | RegionStage::Embedded | RegionStage::Swapping | RegionStage::GoingBack => Paint::Going,
        RegionStage::WentBack
        | RegionStage::Stopped
        | RegionStage::LeftOut
        | RegionStage::Waiting
        | RegionStage::Unknown => Paint::Quiet,
    };
    let since =
        region.serving_since.map(|since| format!(" for {}", elapsed(difference(view.now, since)))).unwrap_or_default();
    let serving = region.serving.map_or("serves nothing".to_owned(), |version| format!("serves v{version}"));
    // Of a push that has ended it is of interest what it left; what came after it is another push's.
    let left = match region.stage {
        RegionStage::Done if view.state.status.is_terminal() => Some(view.state.version),
        RegionStage::WentBack if view.state.status.is_terminal() => Some(region.previous_version),
        _ => None,
    };
    let (serving, since) = match left {
        Some(left) if left != region.serving => {
            let left = left.map_or("nothing".to_owned(), |version| format!("v{version}"));
            (format!("was left on {left}, {serving} now"), String::new())
        }
        _ => (serving, since),
    };
    let stage = format!("{:<10}", region.stage.word().replace('_', " "));
    format!(
        "{} {:<width$}  {} {}",
        style.mark(mark),
        plain(&region.region),
        stage,
        style.paint(Paint::Quiet, &format!("{serving}{since}"))
    )
}

fn region_details(region: &PushRegionView, view: &PushView, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(failure) = &region.failure {
        lines.push(style.paint(Paint::Bad, &format!("{}: {}", plain(&failure.kind), plain(&failure.message))));
    }
    if let Some(pin) = &region.pin
        && region.left_out.is_none()
    {
        let text = format!("pinned to v{} by {}: {}", pin.version, plain(&pin.by), plain(&pin.reason));
        lines.push(style.paint(Paint::Held, &text));
    }
    if let Some(reason) = &region.left_out {
        lines.push(format!("left out: {}", plain(reason)));
    }
    if let (RegionStage::Ingestion, Some(progress)) = (region.stage, region.progress) {
        lines.push(progress_text(progress));
    }
    if view.state.status.is_terminal() {
        return lines;
    }
    for gate in region.gates.iter().filter(|gate| worth_showing(gate)) {
        lines.push(gate_line(gate, view, style));
        lines.extend(hook_lines(gate, style).into_iter().map(|line| format!("  {line}")));
    }
    lines
}

/// Open gates where nothing was said are no news.
fn worth_showing(gate: &GateView) -> bool {
    match gate.status {
        GateStatus::Asking
        | GateStatus::Waiting
        | GateStatus::Aborted
        | GateStatus::RolledBack
        | GateStatus::Overridden => true,
        GateStatus::Open | GateStatus::NotAskedAnyMore | GateStatus::Unknown => false,
    }
}

fn gate_line(gate: &GateView, view: &PushView, style: Style) -> String {
    let paint = match gate.status {
        GateStatus::Open | GateStatus::Overridden => Paint::Good,
        GateStatus::Aborted | GateStatus::RolledBack => Paint::Bad,
        GateStatus::Asking | GateStatus::Waiting | GateStatus::Unknown => Paint::Held,
        GateStatus::NotAskedAnyMore => Paint::Quiet,
    };
    let again = match gate.next_ask_at {
        Some(at) if at > view.now => format!(", asked again in {}", elapsed(difference(at, view.now))),
        _ => String::new(),
    };
    let round = if gate.round > 1 { format!(", round {}", gate.round) } else { String::new() };
    format!("{} {} {}{round}{again}", style.mark(paint), gate.gate, gate.status.word().replace('_', " "))
}

fn hook_lines(gate: &GateView, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(overridden) = &gate.overridden {
        lines.push(format!("opened by {}: {}", plain(&overridden.by), plain(&overridden.reason)));
    }
    for hook in &gate.hooks {
        let said = match (hook.verdict, &hook.failed) {
            (_, Some(failed)) => format!("failed ({})", plain(failed)),
            (Some(Verdict::Proceed), None) => continue,
            (Some(verdict), None) => verdict.word().to_owned(),
            (None, None) if hook.asking => "is asked".to_owned(),
            (None, None) => continue,
        };
        let reason = reason_beside(hook.reason.as_deref(), &hook.hook, gate.region.as_deref());
        lines.push(format!("{} {said}{reason}", style.paint(Paint::Strong, &plain(&hook.hook))));
    }
    lines
}

/// What follows a hook's answer: its reason after a colon, without the names of the hook and of the region where it begins
/// with them, as they stand before it already.
pub(super) fn reason_beside(reason: Option<&str>, hook: &str, region: Option<&str>) -> String {
    let Some(reason) = reason else { return String::new() };
    let reason = without_name(reason, hook);
    let reason = region.map_or(reason, |region| without_name(reason, region));
    format!(": {}", plain(reason))
}

fn without_name<'text>(text: &'text str, name: &str) -> &'text str {
    text.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(text)
}

/// One line for something that holds: who, since when, why, until when, and what then.
pub(crate) fn hold_line(hold: &HoldView, view: &PushView, style: Style) -> String {
    hold_text(hold, view.now, style)
}

/// As [`hold_line`], at a time.
pub(crate) fn hold_text(hold: &HoldView, now: u64, style: Style) -> String {
    let place = match (&hold.region, &hold.gate) {
        (Some(region), Some(gate)) => format!("{} {}: ", plain(region), plain(gate)),
        (Some(region), None) => format!("{}: ", plain(region)),
        (None, Some(gate)) => format!("{}: ", plain(gate)),
        (None, None) => String::new(),
    };
    let by = hold.by.as_deref().map(|by| format!("{} ", style.paint(Paint::Strong, &plain(by)))).unwrap_or_default();
    // What stands before it is named once.
    let names = [hold.by.as_deref(), hold.region.as_deref()];
    let reason = names.into_iter().flatten().fold(hold.reason.as_str(), without_name);
    let reason = plain(reason);
    let since = hold.since.map(|since| format!(", for {}", elapsed(difference(now, since)))).unwrap_or_default();
    let until = match hold.until {
        Some(until) if until > now => format!("; in {}: {}", elapsed(difference(until, now)), plain(&hold.then)),
        _ if hold.then.is_empty() => String::new(),
        _ => format!("; then: {}", plain(&hold.then)),
    };
    format!("{} {place}{by}{reason}{since}{until}", style.mark(Paint::Held))
}

fn progress_text(progress: Progress) -> String {
    match (progress.ratio(), progress.of) {
        (Some(ratio), Some(of)) => format!("{:.0} % of {}", ratio * 100.0, bytes(of)),
        _ => bytes(progress.bytes),
    }
}

/// The part of an artifact's id that people compare.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn difference(later: u64, earlier: u64) -> i64 {
    i64::try_from(later.saturating_sub(earlier)).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use tidegate_api::{EndedBy, ExecutionStatus, HookAnswerView, Mode};

    use super::*;

    /// A push that region `a` serves and that `region-order` holds in `b`.
    pub(in crate::output) fn view() -> PushView {
        let region = |name: &str, stage, serving| PushRegionView {
            region: name.to_owned(),
            stage,
            version_status: None,
            job_status: ExecutionStatus::Completed,
            times: std::collections::BTreeMap::new(),
            progress: None,
            failure: None,
            left_out: None,
            previous_version: Some(1),
            serving: Some(serving),
            serving_since: Some(8_000),
            heard_at: None,
            available: true,
            lagging_nodes: Vec::new(),
            pin: None,
            embedded: tidegate_api::EmbeddedCounts::default(),
            gates: Vec::new(),
        };
        let mut waiting = region("b", RegionStage::SwapGate, 1);
        waiting.gates.push(GateView {
            gate: "pre-swap".to_owned(),
            function: "pre_store_version_swap".to_owned(),
            region: Some("b".to_owned()),
            status: GateStatus::Waiting,
            round: 2,
            asked_at: Some(9_000),
            opened_at: None,
            next_ask_at: Some(12_000),
            hooks: vec![HookAnswerView {
                hook: "region-order".to_owned(),
                mode: Mode::Enforce,
                attempts: 2,
                asking: false,
                verdict: Some(Verdict::Wait),
                reason: Some("waits for a: \u{1b}[2J1 s of 3 s".to_owned()),
                failed: None,
                answered_at: None,
                ask_again_at: None,
                stops_clock: false,
            }],
            overridden: None,
        });
        PushView {
            state: PushState {
                push: "p2".to_owned(),
                store: "airports".to_owned(),
                version: Some(2),
                status: PushStatus::Started,
                phase: PushPhase::Rollout,
                ended_by: None,
                reason: None,
            },
            pushed_by: String::new(),
            attributes: std::collections::BTreeMap::new(),
            now: 10_000,
            created_at: 5_000,
            completed_at: None,
            ended_at: None,
            client: None,
            artifact: None,
            version_status: None,
            gates: Vec::new(),
            regions: vec![region("a", RegionStage::Done, 2), waiting],
            holds: Vec::new(),
        }
    }

    #[test]
    fn r11_the_tree_says_who_holds_what_and_why() {
        let text = push(&view(), Style::PLAIN);
        let expected = "-> push p2 → airports v2  STARTED (rollout)  5s\n  |- ok a  done       serves v2 for 2s\n  `- .. b  swap gate  serves v1 for 2s\n        .. pre-swap waiting, round 2, asked again in 2s\n          region-order wait: waits for a: \\u{1b}[2J1 s of 3 s";
        assert_eq!(text, expected);
    }

    #[test]
    fn r11_an_ended_push_says_how_and_why() {
        let mut view = view();
        view.state.status = PushStatus::Aborted;
        view.state.ended_by = Some(EndedBy::Gate);
        view.state.reason = Some("data-quality: null ratio of tz 38.2 % (limit +5 points over 0.0 %)".to_owned());
        let text = push(&view, Style::PLAIN);
        assert!(text.starts_with("!! push p2 → airports v2  ABORTED (gate)"), "{text}");
        assert!(text.ends_with("38.2 % (limit +5 points over 0.0 %)"), "{text}");
        assert!(!text.contains("pre-swap"), "{text}");
    }
}
