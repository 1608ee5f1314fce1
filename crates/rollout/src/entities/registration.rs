//! A schema that is registered without a push: the wish, its gates and their calls, kept until everyone was told.

use serde::{Deserialize, Serialize};
use tidegate_api::manifest::Schema;
use tidegate_lifecycle::{CallSite, CallState, GateState};
use tidegate_state::{Entity, Timestamp};

use super::Store;

/// `/stores/{s}/registrations/{id}`: a schema that someone wants to register directly. Its id follows from the schema, so
/// that asking twice is asking once. It goes when its hooks have been told what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SchemaRegistration {
    /// The schema.
    pub schema: Schema,
    /// Who asked.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// What became of it.
    pub state: RegistrationState,
}

/// Where a direct registration stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistrationState {
    /// Its hooks are asked.
    Asked,
    /// It is registered, and hooks are told.
    Registered {
        /// Under this number.
        number: u64,
    },
    /// It was not registered.
    Refused {
        /// The hook that said so, or none where the schema no longer fits those that are there.
        hook: Option<String>,
        /// Why.
        reason: String,
    },
}

impl Entity for SchemaRegistration {
    const COLLECTION: &'static str = "registrations";
    type Parent = Store;
    type Id = String;
}

/// `/stores/{s}/registrations/{id}/gates/{gate}`, as [`super::Gate`] is for pushes: `pre-schema` and `post-schema`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegistrationGate {
    /// Its rounds and answers.
    pub state: GateState,
}

impl Entity for RegistrationGate {
    const COLLECTION: &'static str = "gates";
    type Parent = SchemaRegistration;
    type Id = String;
}

/// `…/gates/{gate}/calls/{hook}`, as [`super::Call`] is for pushes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegistrationCall {
    /// What is asked, and what was answered.
    pub state: CallState,
}

impl Entity for RegistrationCall {
    const COLLECTION: &'static str = "calls";
    type Parent = RegistrationGate;
    type Id = String;
}

impl CallSite for RegistrationCall {
    const REGISTRATION: &'static str = "lifecycle-registration-call";

    fn state(&self) -> &CallState {
        &self.state
    }

    fn set_state(&mut self, state: CallState) {
        self.state = state;
    }

    fn pattern(hook: &str) -> String {
        format!("/stores/{{store}}/registrations/{{registration}}/gates/{{gate}}/calls/{hook}")
    }
}
