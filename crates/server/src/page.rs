//! The page: rendered here in full, so that it also works without scripts. The script only fetches
//! it again when something has changed.
//!
//! Everything that comes from outside goes through `maud`, which escapes it.

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};
use tidegate_api::{
    EpochMs, GateStatus, GateView, HoldView, PinView, Progress, PushRegionView, PushStatus, PushView, RegionStage,
    RegionView, StoreView, Verdict,
};

/// What the page shows.
pub(crate) struct Content {
    pub(crate) server: String,
    /// Where the watch goes on from, for the script.
    pub(crate) epoch: String,
    pub(crate) revision: u64,
    pub(crate) now: EpochMs,
    pub(crate) stores: Vec<StoreView>,
    pub(crate) regions: Vec<RegionView>,
    pub(crate) pushes: Vec<PushView>,
    /// Whose session it is, where somebody has signed in.
    pub(crate) signed_in: Option<String>,
}

pub(crate) fn render(content: &Content) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Tidegate" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/assets/page.css";
                script src="/assets/page.js" defer {}
            }
            body {
                header {
                    h1 { "Tidegate" }
                    span.quiet { (content.server) }
                    span.live id="live" { "static" }
                    @if let Some(name) = &content.signed_in {
                        form.session method="post" action="/logout" {
                            span.quiet { (name) }
                            button type="submit" { "Sign out" }
                        }
                    }
                }
                main id="main" data-epoch=(content.epoch) data-revision=(content.revision) {
                    (pushes(&content.pushes))
                    (stores(content))
                    (regions(&content.regions))
                    p.quiet {
                        "As of " (time(content.now)) ", revision " (content.revision) ". "
                        a href="/openapi.json" { "API" } " · " a href="/metrics" { "metrics" }
                    }
                }
            }
        }
    }
}

/// The form to sign in with, and what was wrong with what was shown before.
pub(crate) fn sign_in(message: &str) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Tidegate" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/assets/page.css";
            }
            body {
                header { h1 { "Tidegate" } }
                main {
                    section {
                        h2 { "Sign in" }
                        @if !message.is_empty() { p.reason { (message) } }
                        form method="post" action="/login" {
                            p {
                                label for="token" { "Token " }
                                input id="token" name="token" type="password" required autocomplete="off" autofocus;
                                " "
                                button type="submit" { "Sign in" }
                            }
                        }
                        p.quiet {
                            "A token of role viewer, operator or admin. " code { "tidegate token create" } " makes one."
                        }
                    }
                }
            }
        }
    }
}

fn pushes(pushes: &[PushView]) -> Markup {
    html! {
        section {
            h2 { "Pushes" }
            @if pushes.is_empty() {
                p.quiet { "None yet. " code { "tidegate push STORE FILE…" } " starts one." }
            }
            @for push in pushes { (push_card(push)) }
        }
    }
}

fn push_card(push: &PushView) -> Markup {
    let state = &push.state;
    html! {
        details.push open[!state.status.is_terminal()] id={ "push-" (state.push) } {
            summary {
                span.badge.(status_class(state.status)) { (state.status.word()) }
                strong { (state.store) }
                @if let Some(version) = state.version { span { "version " (version) } }
                span.quiet { "push " (state.push) }
                span.strip {
                    @for region in &push.regions {
                        span.dot.(stage_class(region.stage)) title={ (region.region) ": " (words(region.stage.word())) } {}
                    }
                }
                span.quiet.right { (time(push.ended_at.unwrap_or(push.created_at))) }
            }
            @if let Some(reason) = &state.reason {
                p.reason {
                    @if let Some(by) = state.ended_by { span.quiet { (by.word()) ": " } }
                    (reason)
                }
            }
            @if let Some(client) = &push.client {
                p {
                    "The client is " (words(&format!("{:?}", client.phase).to_lowercase())) " "
                    @if let Some(progress) = client.progress { (bar(progress)) }
                    span.quiet { " heard of " (time(client.heard_at)) }
                }
            }
            @if let Some(artifact) = &push.artifact {
                p.quiet {
                    (artifact.records) " records, " (bytes(artifact.bytes)) " in "
                    (artifact.parts) " parts · artifact " (artifact.id.chars().take(12).collect::<String>())
                    " · pushed by " (push.pushed_by)
                }
            }
            @for hold in &push.holds { (hold_line(hold)) }
            @for gate in &push.gates { (gate_line(gate)) }
            @if !push.regions.is_empty() {
                div.regions {
                    @for region in &push.regions { (region_card(region)) }
                }
            }
        }
    }
}

fn hold_line(hold: &HoldView) -> Markup {
    html! {
        p.hold {
            @if let Some(region) = &hold.region { strong { (region) } " " }
            (hold.reason)
            span.quiet {
                @if let Some(until) = hold.until { " · " (time(until)) }
                " · " (hold.then)
            }
        }
    }
}

fn region_card(region: &PushRegionView) -> Markup {
    html! {
        div.region.(stage_class(region.stage)) {
            p {
                strong { (region.region) }
                span.badge.(stage_class(region.stage)) { (words(region.stage.word())) }
                span.quiet.right {
                    @match region.serving {
                        Some(version) => { "serves " (version) },
                        None => { "serves nothing" },
                    }
                }
            }
            @if let Some(progress) = region.progress { p { (bar(progress)) } }
            @if let Some(failure) = &region.failure { p.reason { (words(&failure.kind)) ": " (failure.message) } }
            @if let Some(why) = &region.left_out { p.quiet { (why) } }
            @if let Some(pin) = &region.pin { p.reason { (pinned(pin)) } }
            @if !region.lagging_nodes.is_empty() {
                p.quiet { "behind: " (region.lagging_nodes.join(", ")) }
            }
            @for gate in &region.gates { (gate_line(gate)) }
        }
    }
}

fn gate_line(gate: &GateView) -> Markup {
    let spoken = gate.hooks.iter().any(|hook| hook.verdict.is_some() || hook.asking);
    html! {
        @if spoken || gate.overridden.is_some() {
            div.gate {
                p {
                    code { (gate.gate) }
                    span.badge.(gate_class(gate.status)) { (words(gate.status.word())) }
                    @if gate.round > 1 { span.quiet { "round " (gate.round) } }
                    @if let Some(at) = gate.next_ask_at { span.quiet { "asked again " (time(at)) } }
                }
                @if let Some(by) = &gate.overridden {
                    p.reason { "opened by " (by.by) ": " (by.reason) }
                }
                ul {
                    @for hook in gate.hooks.iter().filter(|hook| hook.verdict.is_some() || hook.asking) {
                        li {
                            span { (hook.hook) }
                            @match hook.verdict {
                                Some(verdict) => { span.badge.(verdict_class(verdict)) { (verdict.word()) } },
                                None => { span.badge.moving { "asking" } },
                            }
                            @if hook.mode == tidegate_api::Mode::Observe { span.quiet { "observed" } }
                            @if let Some(reason) = &hook.reason { span { (reason) } }
                        }
                    }
                }
            }
        }
    }
}

fn stores(content: &Content) -> Markup {
    html! {
        section {
            h2 { "Stores" }
            @if content.stores.is_empty() {
                p.quiet { "None yet. " code { "tidegate store create NAME --key COLUMN" } " makes one." }
            } @else {
                div.scroll {
                    table {
                        thead {
                            tr {
                                th { "store" }
                                th { "key" }
                                @for region in &content.regions { th { (region.name) } }
                                th { "push" }
                            }
                        }
                        tbody {
                            @for store in &content.stores {
                                tr {
                                    td { strong { (store.name) } }
                                    td { (store.key_columns.join(", ")) }
                                    @for region in &content.regions {
                                        td {
                                            @match store.serving.get(&region.name) {
                                                Some(version) => { "version " (version) },
                                                None => { span.quiet { "–" } },
                                            }
                                        }
                                    }
                                    td {
                                        @match (&store.running, &store.last_push) {
                                            (Some(push), _) => { span.badge.moving { "runs" } " " (push) },
                                            (None, Some(push)) => { span.quiet { (push) } },
                                            (None, None) => { span.quiet { "–" } },
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A pin, wherever its region is shown.
fn pinned(pin: &PinView) -> String {
    format!("pinned to version {} by {}: {}", pin.version, pin.by, pin.reason)
}

fn regions(regions: &[RegionView]) -> Markup {
    html! {
        section {
            h2 { "Regions" }
            div.scroll {
                table {
                    thead { tr { th { "region" } th { "nodes" } th { "hosted by" } th { "state" } th { "behind" } } }
                    tbody {
                        @for region in regions {
                            tr {
                                td { strong { (region.name) } }
                                td { (region.nodes) span.quiet { " (" (region.enough) " are enough)" } }
                                td {
                                    @match &region.host {
                                        Some(host) if !host.lapsed => { (host.name) }
                                        _ => { span.quiet { "nobody" } }
                                    }
                                }
                                td {
                                    @if region.available {
                                        span.badge.good { "available" }
                                    } @else {
                                        span.badge.bad { "unavailable" }
                                        @if let Some(reason) = &region.reason { " " (reason) }
                                    }
                                }
                                td {
                                    @for (store, view) in &region.stores {
                                        @if let Some(pin) = &view.pin {
                                            p.reason { (store) " " (pinned(pin)) }
                                        }
                                        @if !view.lagging_nodes.is_empty() {
                                            (store) ": " (view.lagging_nodes.join(", ")) " "
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A word of the API for people.
fn words(word: &str) -> String {
    word.replace('_', " ")
}

fn status_class(status: PushStatus) -> &'static str {
    match status {
        PushStatus::Completed => "good",
        PushStatus::Queued | PushStatus::Unknown => "idle",
        PushStatus::Started => "moving",
        PushStatus::Aborted | PushStatus::RolledBack | PushStatus::Killed => "warn",
        PushStatus::Error => "bad",
    }
}

fn stage_class(stage: RegionStage) -> &'static str {
    match stage {
        RegionStage::Done => "good",
        RegionStage::Waiting | RegionStage::LeftOut | RegionStage::Unknown => "idle",
        RegionStage::Creation
        | RegionStage::Ingestion
        | RegionStage::Embedded
        | RegionStage::SwapGate
        | RegionStage::Swapping
        | RegionStage::Bake => "moving",
        RegionStage::GoingBack | RegionStage::WentBack | RegionStage::Stopped => "warn",
        RegionStage::Failed => "bad",
    }
}

fn gate_class(status: GateStatus) -> &'static str {
    match status {
        GateStatus::Open => "good",
        GateStatus::Asking | GateStatus::Waiting => "moving",
        GateStatus::Aborted | GateStatus::RolledBack => "bad",
        GateStatus::Overridden => "warn",
        GateStatus::NotAskedAnyMore | GateStatus::Unknown => "idle",
    }
}

fn verdict_class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Proceed => "good",
        Verdict::Wait => "moving",
        Verdict::Abort | Verdict::Rollback => "bad",
        Verdict::Unknown => "idle",
    }
}

fn bar(progress: Progress) -> Markup {
    html! {
        @match progress.of {
            Some(of) => {
                progress max=(of.max(1)) value=(progress.bytes.min(of)) {}
                span.quiet { " " (bytes(progress.bytes)) " of " (bytes(of)) }
            },
            None => { span.quiet { (bytes(progress.bytes)) } },
        }
    }
}

/// A time as text that a script can turn into "two minutes ago".
fn time(at: EpochMs) -> Markup {
    let millisecond = i64::try_from(at).unwrap_or(i64::MAX);
    let text = match Timestamp::from_millisecond(millisecond) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => at.to_string(),
    };
    html! { time data-ms=(at) { (text) } }
}

/// A size for people.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{size:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let nasty = "<script>alert(1)</script>\"'&";
        let store = serde_json::json!({
            "name": nasty, "key_columns": [nasty], "partitions": 1,
            "schema_mode": "compatible", "auto_register_schemas": true, "allow_empty": false,
            "retention": 2, "keep_rejected_ms": 1, "grace_ms": 1, "keep_pushes": 1,
            "embedded_swap": "alone", "embedded_dead_percent_max": 10, "on_new_push": "refuse",
            "limits": {"push_ms": 1, "region_ms": 1, "silence_ms": 1, "confirmation_ms": 1, "value_bytes": 1},
            "last_push": nasty
        });
        let push = serde_json::json!({
            "push": nasty, "store": nasty, "status": "ABORTED", "phase": "ended", "reason": nasty,
            "pushed_by": nasty, "now": 1, "created_at": 1,
            "regions": [{"region": nasty, "stage": "failed", "job_status": "ERROR",
                "failure": {"kind": nasty, "message": nasty}, "available": true,
                "gates": [{"gate": nasty, "function": nasty, "status": "aborted", "round": 1,
                    "hooks": [{"hook": nasty, "mode": "enforce", "attempts": 1, "asking": false,
                        "verdict": "abort", "reason": nasty}]}]}],
            "holds": [{"kind": "gate", "reason": nasty, "then": nasty}]
        });
        let content = Content {
            server: nasty.to_owned(),
            epoch: nasty.to_owned(),
            revision: 1,
            now: 1,
            signed_in: Some(nasty.to_owned()),
            stores: vec![serde_json::from_value(store).unwrap()],
            regions: Vec::new(),
            pushes: vec![serde_json::from_value(push).unwrap()],
        };
        let page = render(&content).into_string();
        assert!(!page.contains("<script>alert"), "{page}");
        assert!(page.contains("&lt;script&gt;alert"), "{page}");
        // Nothing inline: the policy of the page forbids it.
        assert!(!page.contains("style=") && !page.contains("onclick"), "{page}");
    }

    #[test]
    fn sizes_are_told_in_the_largest_unit_that_fits() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }
}
