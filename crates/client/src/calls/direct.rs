//! Putting parts straight into the artifact store, over URLs that the server signs.
//!
//! A chunk that fails is put again; URLs that ran out are signed anew; an upload that the store does not know any more
//! is begun anew. URLs are secrets for as long as they can be used: no error and no log line has one.

use std::path::Path;

use reqwest::{Method, StatusCode, Url};
use tidegate_api::manifest::Part;
use tidegate_api::{PartSentRequest, PartUploadRequest, PartUploadView, PartView};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::pushes::limit_of;
use crate::client::{Client, chain};
use crate::error::Error;
use crate::retry::{Attempts, Repeat};

/// How often in a row a URL that was just signed may be refused.
const REFUSALS_MAX: u32 = 3;

/// How often an upload is begun anew.
const UPLOADS_MAX: u32 = 3;

/// How much of a store's error is told.
const TOLD_CHARACTERS_MAX: usize = 300;

/// What came of putting one chunk.
enum Put {
    /// It is there; the store calls it so.
    Done(String),
    /// The URL is not good (any more).
    Refused(Error),
    /// The store does not know the upload.
    Gone(Error),
}

/// What came of one upload.
enum Sent {
    Done(PartView),
    /// It has to be begun anew.
    Gone(Error),
}

impl Client {
    /// URLs over which chunks of a part can be put straight into the artifact store.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sign_part(&self, id: &str, name: &str, request: &PartUploadRequest) -> Result<PartUploadView, Error> {
        let url = self.route(&["v1", "pushes", id, "parts", name, "upload"], &[]);
        self.send_json(Method::POST, url, request, Repeat::Always).await
    }

    /// Says that all chunks of a part were put.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn part_sent(&self, id: &str, name: &str, request: &PartSentRequest) -> Result<PartView, Error> {
        let url = self.route(&["v1", "pushes", id, "parts", name, "sent"], &[]);
        self.send_json(Method::POST, url, request, Repeat::Always).await
    }

    /// Puts a part straight into the artifact store, and tells the server.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Local`] if the file can't be read.
    pub async fn put_part_direct(&self, id: &str, artifact: &str, part: &Part, file: &Path) -> Result<PartView, Error> {
        let mut uploads = 1;
        loop {
            match self.put_once(id, artifact, part, file).await? {
                Sent::Done(view) => return Ok(view),
                Sent::Gone(error) if uploads >= UPLOADS_MAX => return Err(error),
                Sent::Gone(error) => {
                    tracing::warn!(part = part.name, %error, "sending a part again");
                    uploads += 1;
                }
            }
        }
    }

    async fn put_once(&self, id: &str, artifact: &str, part: &Part, file: &Path) -> Result<Sent, Error> {
        let mut request = PartUploadRequest {
            artifact: artifact.to_owned(),
            sha256: part.sha256.clone(),
            bytes: part.bytes,
            upload: None,
            from: 0,
        };
        let mut source = Chunks::open(file).await?;
        let mut tags: Vec<String> = Vec::new();
        let mut refusals = 0;
        loop {
            let signed = self.sign_part(id, &part.name, &request).await?;
            let chunk_bytes = signed.chunk_bytes.max(1);
            let chunks = part.bytes.div_ceil(chunk_bytes);
            request.upload = Some(signed.upload.clone());
            for url in &signed.urls {
                let begin = tags.len() as u64 * chunk_bytes;
                let bytes = source.read(begin, chunk_bytes.min(part.bytes.saturating_sub(begin))).await?;
                match self.put_chunk(url, bytes).await? {
                    Put::Done(tag) => {
                        tags.push(tag);
                        refusals = 0;
                    }
                    Put::Gone(error) => return Ok(Sent::Gone(error)),
                    Put::Refused(error) if refusals >= REFUSALS_MAX => return Err(error),
                    Put::Refused(_) => {
                        refusals += 1;
                        break;
                    }
                }
            }
            if tags.len() as u64 >= chunks {
                break;
            }
            if signed.urls.is_empty() {
                return Err(unreadable(self.url(), 200, "the server gave no URL to put the part to"));
            }
            request.from = u32::try_from(tags.len()).unwrap_or(u32::MAX);
        }
        let sent = PartSentRequest {
            artifact: request.artifact,
            sha256: request.sha256,
            bytes: request.bytes,
            upload: request.upload.unwrap_or_default(),
            tags,
        };
        Ok(Sent::Done(self.part_sent(id, &part.name, &sent).await?))
    }

    /// Puts one chunk, again for as long as this client is patient.
    async fn put_chunk(&self, url: &str, bytes: bytes::Bytes) -> Result<Put, Error> {
        let url = Url::parse(url).map_err(|_| unreadable(self.url(), 200, "the server gave a URL that is none"))?;
        let store = url.origin().ascii_serialization();
        let mut attempts = Attempts::new(self.patience());
        loop {
            let sent = self
                .anonymous()
                .put(url.clone())
                .timeout(limit_of(bytes.len() as u64))
                .body(bytes.clone())
                .send()
                .await;
            let error = match sent {
                Ok(response) if response.status().is_success() => {
                    let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok());
                    return match tag {
                        Some(tag) => Ok(Put::Done(tag.to_owned())),
                        None => Err(unreadable(&store, 200, "the artifact store did not say what it calls a chunk")),
                    };
                }
                Ok(response) => {
                    let status = response.status();
                    let told = String::from_utf8_lossy(&crate::client::read_error(response).await).into_owned();
                    let error =
                        Error::StoreRefused { url: store.clone(), status: status.as_u16(), reason: told_of(&told) };
                    match status {
                        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => return Ok(Put::Refused(error)),
                        StatusCode::NOT_FOUND => return Ok(Put::Gone(error)),
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {}
                        // A request that was cut off on its way is told so.
                        StatusCode::BAD_REQUEST if told.contains("RequestTimeout") => {}
                        status if status.is_server_error() => {}
                        _ => return Err(error),
                    }
                    error
                }
                Err(error) => Error::Unreachable {
                    surely_not_sent: error.is_connect(),
                    url: store.clone(),
                    tried_for: attempts.elapsed(),
                    reason: chain(&error.without_url()),
                },
            };
            match attempts.failed() {
                Some(pause) => {
                    tracing::debug!(store, %error, ?pause, "trying again");
                    tokio::time::sleep(pause).await;
                }
                None => return Err(error.after(&attempts)),
            }
        }
    }
}

/// What the store says of a refusal, in one line: its code and message, never what was signed.
fn told_of(answer: &str) -> String {
    let within = |tag: &str| {
        let (_, rest) = answer.split_once(&format!("<{tag}>"))?;
        let (text, _) = rest.split_once('<')?;
        Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let told = match (within("Code"), within("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => "it did not say why".to_owned(),
    };
    told.chars().take(TOLD_CHARACTERS_MAX).collect()
}

fn unreadable(url: &str, status: u16, reason: &str) -> Error {
    Error::Unreadable { url: url.to_owned(), status, reason: reason.to_owned() }
}

/// A file that is read by chunks.
struct Chunks<'a> {
    path: &'a Path,
    file: tokio::fs::File,
}

impl<'a> Chunks<'a> {
    async fn open(path: &'a Path) -> Result<Self, Error> {
        let file = tokio::fs::File::open(path).await.map_err(|error| local(path, &error))?;
        Ok(Self { path, file })
    }

    async fn read(&mut self, begin: u64, length: u64) -> Result<bytes::Bytes, Error> {
        let local = |error: std::io::Error| local(self.path, &error);
        self.file.seek(std::io::SeekFrom::Start(begin)).await.map_err(local)?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.file.read_exact(&mut bytes).await.map_err(local)?;
        Ok(bytes.into())
    }
}

fn local(path: &Path, error: &std::io::Error) -> Error {
    Error::Local { what: format!("could not read {}", path.display()), reason: error.to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn of_a_refusal_only_code_and_message_are_told() {
        let answer = "<Error><Code>SignatureDoesNotMatch</Code><Message>It does\n not.</Message>\
                      <StringToSign>hush</StringToSign></Error>";
        assert_eq!(told_of(answer), "SignatureDoesNotMatch: It does not.");
        assert!(!told_of("hush").contains("hush"));
    }
}
