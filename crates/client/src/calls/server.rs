//! The server itself: its metrics and its watch stream.

use reqwest::Method;
use tidegate_api::WatchEvent;

use crate::client::{Body, Client, Request};
use crate::error::Error;
use crate::events::{Events, Resume};
use crate::retry::Repeat;

impl Client {
    /// The server's metrics in Prometheus' text form.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn metrics(&self) -> Result<String, Error> {
        self.request_bytes(&Request {
            method: Method::GET,
            url: self.route(&["metrics"], &[]),
            body: Body::Nothing,
            repeat: Repeat::Always,
        })
        .await
        .map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Watches the state tree below a path (`/` or nothing: all of it), from the epoch and
    /// revision of an earlier watch, or from a snapshot.
    #[must_use]
    pub fn watch(&self, prefix: Option<&str>, from: Option<(String, u64)>) -> Events<WatchEvent> {
        let url = self.route(&["v1", "watch"], &[("prefix", prefix)]);
        Events::new(self.clone(), Resume::FromRevision { url, from })
    }
}
