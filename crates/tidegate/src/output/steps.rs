//! A push as it happens: a line for each step, for logs and for terminals that can't redraw.

use std::collections::BTreeMap;

use tidegate_api::{GateView, PushPhase, PushView, RegionStage, Verdict};

use super::{Paint, Style, plain, tree};

/// Remembers what was told, so that each step is told once.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    phase: Option<PushPhase>,
    stages: BTreeMap<String, RegionStage>,
    verdicts: BTreeMap<(String, String, String), Verdict>,
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
        self.gates("", &view.gates, style, &mut lines);
        for region in &view.regions {
            let place = plain(&region.region);
            self.gates(&place, &region.gates, style, &mut lines);
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

    fn gates(&mut self, region: &str, gates: &[GateView], style: Style, lines: &mut Vec<String>) {
        for gate in gates {
            for hook in &gate.hooks {
                let Some(verdict) = hook.verdict else { continue };
                let asked = (region.to_owned(), gate.gate.clone(), hook.hook.clone());
                if self.verdicts.insert(asked, verdict) == Some(verdict) || verdict == Verdict::Proceed {
                    continue;
                }
                let paint = if verdict == Verdict::Wait { Paint::Held } else { Paint::Bad };
                let place = if region.is_empty() { String::new() } else { format!("region {region} ") };
                let reason = hook.reason.as_deref().map(|reason| format!(": {}", plain(reason))).unwrap_or_default();
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
