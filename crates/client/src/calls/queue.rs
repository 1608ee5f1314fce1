//! Requests of cluster hooks.

use reqwest::Method;
use tidegate_api::{QueueAction, QueueEntryState, QueueEntryView};

use crate::client::{Body, Client, Request};
use crate::error::Error;
use crate::retry::Repeat;

impl Client {
    /// Requests of cluster hooks: of one hook or all, in one state or any.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn queue(
        &self,
        hook: Option<&str>,
        state: Option<QueueEntryState>,
    ) -> Result<Vec<QueueEntryView>, Error> {
        let state = state.and_then(|state| match serde_json::to_value(state) {
            Ok(serde_json::Value::String(word)) => Some(word),
            _ => None,
        });
        let query = [("hook", hook), ("state", state.as_deref())];
        self.get_json(self.route(&["v1", "queue"], &query)).await
    }

    /// Retries, discards or cancels a request.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn queue_act(&self, request: &str, action: QueueAction) -> Result<(), Error> {
        self.request_bytes(&Request {
            method: Method::POST,
            url: self.route(&["v1", "queue", request, action.word()], &[]),
            body: Body::Nothing,
            repeat: Repeat::UnlessSent,
        })
        .await
        .map(|_| ())
    }
}
