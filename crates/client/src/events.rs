//! Watch streams that reconnect and resume by themselves.

use std::marker::PhantomData;
use std::time::Duration;

use reqwest::{Method, Response, Url};
use serde::de::DeserializeOwned;
use tidegate_api::code;
use tidegate_api::sse::{Parser, RawEvent};

use crate::client::{Client, Failed, chain, read_error, refusal};
use crate::error::Error;
use crate::retry::{Attempts, Repeat};

/// The server sends something at least every ten seconds; after three times that, the connection
/// counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Where a stream goes on after a lost connection.
#[derive(Clone, Debug)]
pub enum Resume {
    /// With how things are then: each event tells everything.
    FromNow {
        /// The stream's address.
        url: Url,
    },
    /// After the last event that was read; with a snapshot if the server no longer knows what
    /// came after it.
    FromRevision {
        /// The stream's address.
        url: Url,
        /// Epoch and revision of the last event that is known.
        from: Option<(String, u64)>,
    },
}

impl Resume {
    fn url(&self) -> Url {
        match self {
            Self::FromNow { url } | Self::FromRevision { url, from: None } => url.clone(),
            Self::FromRevision { url, from: Some((epoch, revision)) } => {
                let mut url = url.clone();
                url.query_pairs_mut().append_pair("epoch", epoch).append_pair("revision", &revision.to_string());
                url
            }
        }
    }

    /// Takes note of an event's id, which is `{epoch}:{revision}`.
    fn passed(&mut self, id: &str) {
        if let Self::FromRevision { from, .. } = self
            && let Some((epoch, revision)) = id.rsplit_once(':')
            && let Ok(revision) = revision.parse()
        {
            *from = Some((epoch.to_owned(), revision));
        }
    }

    /// Forgets where it was. False if there was nothing to forget.
    fn start_over(&mut self) -> bool {
        match self {
            Self::FromRevision { from, .. } => from.take().is_some(),
            Self::FromNow { .. } => false,
        }
    }
}

/// A watch stream. It reconnects after failures for as long as the client's patience lasts, which
/// starts anew with each event.
#[derive(Debug)]
pub struct Events<T> {
    client: Client,
    resume: Resume,
    connection: Option<(Response, Parser)>,
    attempts: Attempts,
    item: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Events<T> {
    pub(crate) fn new(client: Client, resume: Resume) -> Self {
        let attempts = Attempts::new(client.patience());
        Self { client, resume, connection: None, attempts, item: PhantomData }
    }

    /// The next event; `None` when the server has ended the stream because nothing more can
    /// come. Dropping the future loses nothing.
    ///
    /// # Errors
    /// See [`Error`]. After an error the stream may be asked again.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        loop {
            let failed = match self.step().await {
                Ok(Step::Event(event)) => {
                    self.attempts.succeeded();
                    self.resume.passed(&event.id);
                    return serde_json::from_str(&event.data).map(Some).map_err(|error| Error::Unreadable {
                        url: self.resume.url().to_string(),
                        status: 200,
                        reason: error.to_string(),
                    });
                }
                Ok(Step::Finished) => return Ok(None),
                Ok(Step::Nothing) => continue,
                Err(failed) => failed,
            };
            self.connection = None;
            match failed {
                Failed::Final(error) => {
                    let gone = error.code() == Some(code::WATCH_GONE);
                    if gone && self.resume.start_over() {
                        continue;
                    }
                    return Err(error);
                }
                Failed::Again(error) => match self.attempts.failed() {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => {
                        let error = error.after(&self.attempts);
                        self.attempts.succeeded();
                        return Err(error);
                    }
                },
            }
        }
    }

    /// Connects, or reads one piece of what the server sends.
    async fn step(&mut self) -> Result<Step, Failed> {
        let Some((response, parser)) = &mut self.connection else {
            let response = self.connect().await?;
            self.connection = Some((response, Parser::default()));
            return Ok(Step::Nothing);
        };
        match parser.next() {
            Ok(Some(event)) if event.name == "end" => return Ok(Step::Finished),
            Ok(Some(event)) if event.data.is_empty() => return Ok(Step::Nothing),
            Ok(Some(event)) => return Ok(Step::Event(event)),
            Ok(None) => {}
            Err(reason) => return Err(self.unreadable(reason)),
        }
        let reason = match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                parser.push(&chunk);
                return Ok(Step::Nothing);
            }
            Ok(Ok(None)) => "the server closed the stream".to_owned(),
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("nothing came for {SILENCE_MAX:?}"),
        };
        Err(self.lost(reason))
    }

    async fn connect(&self) -> Result<Response, Failed> {
        let url = self.resume.url();
        let request = self.client.single(Method::GET, url.clone()).header("accept", "text/event-stream").send();
        let response = match tokio::time::timeout(SILENCE_MAX, request).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.client.transport(&error, Repeat::Always)),
            Err(_) => return Err(self.lost(format!("no answer for {SILENCE_MAX:?}"))),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = read_error(response).await;
        Err(refusal(&url, status, &bytes, Repeat::Always))
    }

    fn lost(&self, reason: String) -> Failed {
        Failed::Again(Error::Unreachable {
            url: self.client.url().to_owned(),
            tried_for: Duration::ZERO,
            reason,
            surely_not_sent: false,
        })
    }

    fn unreadable(&self, reason: String) -> Failed {
        Failed::Final(Error::Unreadable { url: self.resume.url().to_string(), status: 200, reason })
    }
}

enum Step {
    Event(RawEvent),
    Nothing,
    Finished,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_goes_on_after_the_last_event_that_was_read() {
        let url = Url::parse("http://h/v1/watch?prefix=%2Fstores").unwrap();
        let mut resume = Resume::FromRevision { url, from: None };
        assert_eq!(resume.url().query(), Some("prefix=%2Fstores"));
        resume.passed("no id");
        assert!(!resume.start_over());
        resume.passed("0190-e:42");
        assert_eq!(resume.url().query(), Some("prefix=%2Fstores&epoch=0190-e&revision=42"));
        assert!(resume.start_over());
        assert_eq!(resume.url().query(), Some("prefix=%2Fstores"));
    }
}
