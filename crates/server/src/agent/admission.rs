//! Whether the control plane lets an agent host its region.
//!
//! A token of another region, or of another role, does not become the right one by waiting: who starts an agent with one is
//! told so, and the agent ends. That is decided by the first answer alone. Whatever else goes wrong can pass by itself, and
//! a region that was let in once is served on, whatever becomes of its token.

use std::time::Duration;

use tidegate_api::{ErrorBody, code};
use tidegate_rollout::region::agent::random_jitter;
use tidegate_rollout::region::remote::RemoteError;
use tidegate_rollout::region::{RemoteClient, TokenFile};

/// How long the start waits for the first answer. After that the agent serves, and is told later.
const FIRST_LIMIT: Duration = Duration::from_secs(2);

/// The longest pause between two questions.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Asks whether this agent is let in.
#[derive(Clone)]
pub(super) struct Admission {
    region: String,
    client: RemoteClient,
    token: Option<TokenFile>,
}

/// What the control plane says.
#[derive(Debug)]
pub(super) enum Answer {
    /// The agent is let in, or what keeps it out can pass by itself.
    Heard,
    /// Nobody answered.
    Nothing,
    /// It is kept out, and goes on being so.
    Refused(Box<ErrorBody>),
}

impl Admission {
    pub(super) fn new(region: &str, client: RemoteClient, token: Option<TokenFile>) -> Self {
        Admission { region: region.to_owned(), client, token }
    }

    /// Asks once, for as long as a start may wait for it.
    pub(super) async fn at_start(&self) -> Answer {
        tokio::time::timeout(FIRST_LIMIT, self.ask()).await.unwrap_or(Answer::Nothing)
    }

    /// Asks until there is an answer; ends only if that is a refusal.
    pub(super) async fn refused(&self) -> Box<ErrorBody> {
        let jitter = random_jitter();
        loop {
            match self.ask().await {
                Answer::Nothing => tokio::time::sleep(PAUSE_MAX.mul_f64(0.5 + 0.5 * jitter())).await,
                Answer::Refused(body) => return body,
                Answer::Heard => std::future::pending().await,
            }
        }
    }

    async fn ask(&self) -> Answer {
        // What an agent asks anyway, of which nothing is changed by asking. The stream ends with the answer.
        let segments = ["v1", "regions", &self.region, "agent", "watch"];
        let asked = self.client.send(&segments, |http, url| http.get(url).header("accept", "text/event-stream"));
        match asked.await {
            Ok(_) => Answer::Heard,
            Err(RemoteError::Unreachable { .. }) => Answer::Nothing,
            Err(RemoteError::Refused { body, .. }) if body.code == code::FORBIDDEN => {
                Answer::Refused(Box::new(self.refusal(&body)))
            }
            Err(RemoteError::Refused { .. }) => Answer::Heard,
        }
    }

    fn refusal(&self, body: &ErrorBody) -> ErrorBody {
        let region = &self.region;
        let what = format!("The control plane does not let this agent host region `{region}`.");
        let from = self.token.as_ref().map_or_else(String::new, |file| format!(" It is in {}.", file.path().display()));
        ErrorBody::new(
            code::FORBIDDEN,
            what,
            format!("{} {}{from}", body.what, body.why),
            "The agent ends. Nothing was changed, and what its folder holds is kept.",
            format!(
                "Start it with a token for this region (`tidegate token create --role region --region {region} --name \
                 NAME`), or for the region that the token is for."
            ),
        )
    }
}
