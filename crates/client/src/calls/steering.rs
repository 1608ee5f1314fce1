//! Freezes and pauses.

use reqwest::Method;
use tidegate_api::freeze::{FreezeRequest, FreezeView};
use tidegate_api::pause::{PauseAnswerRequest, PauseView};

use crate::client::{Body, Client, Request};
use crate::error::Error;
use crate::retry::Repeat;

impl Client {
    /// All freezes in force.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn freezes(&self) -> Result<Vec<FreezeView>, Error> {
        self.get_json(self.route(&["v1", "freezes"], &[])).await
    }

    /// Sets a freeze.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn freeze(&self, freeze: &FreezeRequest) -> Result<FreezeView, Error> {
        let url = self.route(&["v1", "freezes"], &[]);
        self.send_json(Method::POST, url, freeze, Repeat::Always).await
    }

    /// Lifts a freeze.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lift_freeze(&self, id: &str, reason: Option<&str>) -> Result<(), Error> {
        self.request_bytes(&Request {
            method: Method::DELETE,
            url: self.route(&["v1", "freezes", id], &[("reason", reason)]),
            body: Body::Nothing,
            repeat: Repeat::UnlessSent,
        })
        .await
        .map(|_| ())
    }

    /// All pauses, answered or not.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pauses(&self) -> Result<Vec<PauseView>, Error> {
        self.get_json(self.route(&["v1", "pauses"], &[])).await
    }

    /// Answers a pause.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn answer_pause(&self, id: &str, answer: &PauseAnswerRequest) -> Result<PauseView, Error> {
        let url = self.route(&["v1", "pauses", id, "answer"], &[]);
        self.send_json(Method::POST, url, answer, Repeat::Always).await
    }
}
