//! What the story asks of the reading application, wherever that runs.

use std::time::Duration;

use super::application::Reads;
use crate::failure::Failure;

/// How long the application may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Speaks to the reading application.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    http: reqwest::Client,
    url: String,
}

impl Reading {
    /// The application at this address.
    pub(super) fn new(url: String) -> Result<Self, Failure> {
        let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().map_err(|error| failed(&error))?;
        Ok(Reading { http, url })
    }

    /// What `health-check` is to poll; `{region}` is filled in by the hook.
    pub(super) fn health_url(&self) -> String {
        format!("{}/health?region={{region}}", self.url)
    }

    /// Has it read in all regions from now on, without end.
    pub(super) async fn begin(&self) -> Result<(), Failure> {
        let asked = self.http.post(self.reads_url()).send().await.and_then(reqwest::Response::error_for_status);
        asked.map(|_| ()).map_err(|error| failed(&error))
    }

    /// The reads so far.
    pub(super) async fn reads(&self) -> Result<Reads, Failure> {
        let asked = self.http.get(self.reads_url()).send().await.and_then(reqwest::Response::error_for_status);
        asked.map_err(|error| failed(&error))?.json().await.map_err(|error| failed(&error))
    }

    fn reads_url(&self) -> String {
        format!("{}/reads", self.url)
    }
}

fn failed(error: &reqwest::Error) -> Failure {
    Failure::new(
        "the demo's reading application does not answer",
        error.to_string(),
        "The story ends here: how many reads failed is not known.",
        "Start the demo again.",
    )
}
