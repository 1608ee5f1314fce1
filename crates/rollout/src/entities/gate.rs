//! Gates and the calls that they make.

use serde::{Deserialize, Serialize};
use tidegate_lifecycle::{CallRequest, CallSite, CallState, Function, GateState};
use tidegate_state::Entity;

use super::Push;

/// `/stores/{s}/pushes/{id}/gates/{gate}`, where the id is the function's short name, followed by `@` and the region for
/// functions of a region: `pre-start`, `pre-swap@a`. One for every function that was asked or told, also where no hook
/// takes part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Its rounds and answers.
    pub state: GateState,
    /// A digest of the settings under which its current round was asked: the store's own and the published ones. Once they
    /// are others, the round is asked again at once.
    #[serde(default)]
    pub settings: u64,
    /// A digest of which other regions were at rest, or left out, when its current round was asked. Where `region-order`
    /// holds the gate, the round is asked again as soon as that changes.
    #[serde(default)]
    pub others: u64,
    /// When `region-order` said that the region's turn would come, and how long that then was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<Turn>,
    /// When it was first asked.
    #[serde(default)]
    pub asked_at: tidegate_state::Timestamp,
}

/// A region's turn, as it was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// When it comes.
    pub at: tidegate_state::Timestamp,
    /// How long it was until then when that was said, in milliseconds.
    pub delay_ms: u64,
}

impl Turn {
    /// Whether the delay is over by more than a tenth.
    #[must_use]
    pub fn is_overdue(&self, now: tidegate_state::Timestamp) -> bool {
        now.since(self.at).as_millis() > u128::from(self.delay_ms / 10)
    }
}

impl Entity for Gate {
    const COLLECTION: &'static str = "gates";
    type Parent = Push;
    type Id = String;
}

impl Gate {
    /// The id of a function's gate.
    #[must_use]
    pub fn id(function: Function, region: Option<&str>) -> String {
        match region {
            None => function.short_name().to_owned(),
            Some(region) => format!("{}@{region}", function.short_name()),
        }
    }

    /// The function and the region that an id names.
    #[must_use]
    pub fn parse_id(id: &str) -> Option<(Function, Option<&str>)> {
        match id.split_once('@') {
            None => Some((Function::from_short_name(id)?, None)),
            Some((function, region)) => Some((Function::from_short_name(function)?, Some(region))),
        }
    }
}

/// `…/gates/{gate}/calls/{hook}`: what the gate asks one hook. The gate's controller asks, `lifecycle-call` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// What is asked, and what was answered.
    pub state: CallState,
}

impl Call {
    /// A call that is to be made.
    #[must_use]
    pub fn asked(request: CallRequest) -> Self {
        Call { state: CallState::Asked { request } }
    }
}

impl Entity for Call {
    const COLLECTION: &'static str = "calls";
    type Parent = Gate;
    type Id = String;
}

impl CallSite for Call {
    fn state(&self) -> &CallState {
        &self.state
    }

    fn set_state(&mut self, state: CallState) {
        self.state = state;
    }

    fn pattern(hook: &str) -> String {
        format!("/stores/{{store}}/pushes/{{push}}/gates/{{gate}}/calls/{hook}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gates_id_leads_back_to_its_function_and_region() {
        for function in Function::ALL {
            for region in [None, Some("a"), Some("eu@west")] {
                assert_eq!(Gate::parse_id(&Gate::id(function, region)), Some((function, region)));
            }
        }
        assert_eq!(Gate::parse_id("nothing@a"), None);
    }
}
