//! The schema gate: a schema that the store does not know is registered if its hooks let it.

use tidegate_lifecycle::{Function, GateStep};

use super::planner::PushStep;
use crate::entities::{Phase, PushState, RegisteredSchema, SchemaProgress};

impl PushStep<'_> {
    pub(super) fn schema(&mut self) {
        self.tell(Function::PostStartOfPushJob, None);
        let SchemaProgress::Proposed { schema } = self.facts.push.schema.clone() else {
            self.facts.push.state = PushState::Running(Phase::Upload);
            return;
        };
        match self.ask(Function::PreSchemaRegistration, None) {
            GateStep::Open => {
                let now = self.now();
                let schemas = &mut self.planner.view.schemas;
                // Someone may have registered the very same schema meanwhile.
                let known = schemas.iter().find(|(_, known)| known.schema == schema).map(|(number, _)| *number);
                let (number, registered) = match known {
                    Some(number) => (number, false),
                    None => (schemas.keys().next_back().copied().unwrap_or(0) + 1, true),
                };
                schemas.entry(number).or_insert_with(|| RegisteredSchema {
                    schema,
                    registered_at: now,
                    registered_by: self.facts.push.pushed_by.clone(),
                    push: Some(self.id.to_owned()),
                });
                self.facts.push.schema = SchemaProgress::Known { number, registered };
                self.facts.push.state = PushState::Running(Phase::Upload);
            }
            GateStep::Abort { hook, reason } | GateStep::Rollback { hook, reason } => {
                self.abort(Function::PreSchemaRegistration, None, &hook, &reason);
            }
            GateStep::Ask(_) | GateStep::Waiting { .. } => {}
        }
    }

    /// Tells hooks about a schema that this push registered.
    pub(super) fn tell_schema(&mut self) {
        if matches!(self.facts.push.schema, SchemaProgress::Known { registered: true, .. }) {
            self.tell(Function::PostSchemaRegistration, None);
        }
    }
}
