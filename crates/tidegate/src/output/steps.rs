//! A push as it happens: a line for each step, for logs and for terminals that can't redraw.

use std::collections::BTreeMap;

use tidegate_api::{GateView, PushPhase, PushView, RegionStage, Verdict};

use super::{Paint, Style, plain, tree};

/// Remembers what was told, so that each step is told once.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    phase: Option<PushPhase>,
    stages: BTreeMap<String, RegionStage>,
    /// By region, gate and hook: a verdict that stands may get another reason, which is news.
    answers: BTreeMap<(String, String, String), (Verdict, Option<String>)>,
    ended: bool,
}

impl Steps {
    /// What is new in this view, a line each.
    pub(crate) fn lines(&mut self, view: &PushView, style: Style) -> Vec<String> {
        let mut lines = Vec::new();
        let name = format!("push {}", plain(&view.state.push));
        if self.phase != Some(view.state.phase) && view.state.phase != PushPhase::Ended {
            self.phase = Some(view.state.phase);
            lines.push(format!("{} {name}: {}", style.mark(Paint::Going), view.state.phase.word().replace('_', " ")));
        }
        // Of a push that has ended, nothing waits any more, whatever its hooks said last.
        let waits = !view.state.status.is_terminal();
        self.gates("", &view.gates, waits, style, &mut lines);
        for region in &view.regions {
            let place = plain(&region.region);
            self.gates(&place, &region.gates, waits, style, &mut lines);
            if self.stages.insert(region.region.clone(), region.stage) == Some(region.stage) {
                continue;
            }
            let (paint, said) = match region.stage {
                RegionStage::Waiting | RegionStage::Unknown => continue,
                RegionStage::Creation => (Paint::Held, "is to get the version".to_owned()),
                RegionStage::Ingestion => (Paint::Going, "copies and loads".to_owned()),
                RegionStage::Embedded => (Paint::Going, "its embedded clients take the version".to_owned()),
                RegionStage::SwapGate => (Paint::Held, "holds the version and is to swap".to_owned()),
                RegionStage::Swapping => (Paint::Going, "swaps".to_owned()),
                RegionStage::Bake => {
                    (Paint::Held, format!("serves version {}, which is watched", version(region.serving)))
                }
                RegionStage::Done => (Paint::Good, format!("serves version {}", version(region.serving))),
                RegionStage::GoingBack => (Paint::Going, "goes back".to_owned()),
                RegionStage::WentBack => (Paint::Quiet, format!("serves version {} again", version(region.serving))),
                RegionStage::Stopped => (Paint::Quiet, "was stopped".to_owned()),
                RegionStage::Failed => {
                    let failure = region.failure.as_ref().map(|failure| plain(&failure.message)).unwrap_or_default();
                    (Paint::Bad, format!("failed: {failure}"))
                }
                RegionStage::LeftOut => {
                    (Paint::Quiet, format!("takes no part: {}", plain(region.left_out.as_deref().unwrap_or(""))))
                }
            };
            lines.push(format!("{} region {place} {said}", style.mark(paint)));
        }
        if view.state.status.is_terminal() && !self.ended {
            self.ended = true;
            let paint = if view.state.status == tidegate_api::PushStatus::Completed { Paint::Good } else { Paint::Bad };
            // The reason is told at the end, by whoever follows.
            lines.push(format!("{} {name} {}", style.mark(paint), tree::status(&view.state, style)));
        }
        lines
    }

    fn gates(&mut self, region: &str, gates: &[GateView], waits: bool, style: Style, lines: &mut Vec<String>) {
        for gate in gates {
            for hook in &gate.hooks {
                let Some(verdict) = hook.verdict.filter(|verdict| waits || *verdict != Verdict::Wait) else { continue };
                let asked = (region.to_owned(), gate.gate.clone(), hook.hook.clone());
                let answer = (verdict, hook.reason.clone());
                if self.answers.insert(asked, answer.clone()) == Some(answer) || verdict == Verdict::Proceed {
                    continue;
                }
                let paint = if verdict == Verdict::Wait { Paint::Held } else { Paint::Bad };
                let place = if region.is_empty() { String::new() } else { format!("region {region} ") };
                let reason = tree::reason_beside(hook.reason.as_deref(), &hook.hook, gate.region.as_deref());
                lines.push(format!(
                    "{} {place}{}: {} says {}{reason}",
                    style.mark(paint),
                    gate.gate,
                    plain(&hook.hook),
                    verdict.word()
                ));
            }
        }
    }
}

fn version(serving: Option<u64>) -> String {
    serving.map_or("none".to_owned(), |version| version.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tree::tests::view;

    /// The same push, whose waiting hook now gives this reason.
    fn with_reason(reason: &str) -> PushView {
        let mut view = view();
        view.regions[1].gates[0].hooks[0].reason = Some(reason.to_owned());
        view
    }

    #[test]
    fn r11_a_gate_that_still_waits_tells_its_new_reason_and_each_reason_once() {
        let mut steps = Steps::default();
        steps.lines(&with_reason("waits for a: 1 s of 3 s"), Style::PLAIN);
        let mut later = |reason: &str| steps.lines(&with_reason(reason), Style::PLAIN);
        assert!(later("waits for a: 1 s of 3 s").is_empty());
        assert_eq!(
            later("waits for a: 2 s of 3 s"),
            [".. region b pre-swap: region-order says wait: waits for a: 2 s of 3 s"]
        );
        assert!(later("waits for a: 2 s of 3 s").is_empty());
    }

    #[test]
    fn r11_nothing_waits_any_more_once_the_push_has_ended() {
        let mut ended = view();
        ended.state.status = tidegate_api::PushStatus::Killed;
        let lines = Steps::default().lines(&ended, Style::PLAIN);
        assert!(lines.iter().all(|line| !line.contains("says wait")), "{lines:?}");
    }

    #[test]
    fn r11_a_reason_that_names_its_hook_and_its_region_is_told_without_them() {
        let lines = Steps::default().lines(&with_reason("region-order: b: 3 checks were bad"), Style::PLAIN);
        assert!(
            lines.contains(&".. region b pre-swap: region-order says wait: 3 checks were bad".to_owned()),
            "{lines:?}"
        );
    }
}
