//! The artifacts of another process as an object store that is read over HTTP.
//!
//! A download that breaks off goes on where it was, as often as it makes progress; without any it is tried a few times, at
//! whichever address answers. What arrives is checked by who asked for it, as with every store.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};

use super::{RemoteClient, RemoteError, chain};
use crate::region::agent::{Jitter, random_jitter};

/// How often a request is made in a row that brings nothing.
const ATTEMPTS: u32 = 8;

/// The longest pause between two attempts; the first is a sixteenth of it.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// How long the other may send nothing in the middle of a download.
const SILENCE_MAX: Duration = Duration::from_secs(30);

const STORE: &str = "Tidegate";

/// Reads artifacts by `GET /v1/artifacts/{artifact}/{file}`. Nothing can be written or listed.
#[derive(Clone)]
pub struct RemoteArtifacts {
    client: RemoteClient,
    jitter: Jitter,
}

impl RemoteArtifacts {
    /// The artifacts that this client reaches.
    #[must_use]
    pub fn new(client: RemoteClient) -> Self {
        RemoteArtifacts { client, jitter: random_jitter() }
    }

    fn pause(&self, failures: u32) -> Duration {
        let step = (PAUSE_MAX / 16).saturating_mul(1 << failures.saturating_sub(1).min(4)).min(PAUSE_MAX);
        step.mul_f64(0.5 + 0.5 * (self.jitter)())
    }

    async fn once(&self, location: &Path, method: &Method, range: Option<&str>) -> Result<Answer, Failed> {
        let parts: Vec<String> = location.parts().map(|part| part.as_ref().to_owned()).collect();
        let mut segments = vec!["v1"];
        segments.extend(parts.iter().map(String::as_str));
        let sent = self.client.send(&segments, |http, url| {
            let request = http.request(method.clone(), url);
            match range {
                Some(range) => request.header(RANGE, range),
                None => request,
            }
        });
        match sent.await {
            Ok(response) => Answer::read(response).map_err(Failed::Passing),
            Err(error @ RemoteError::Unreachable { .. }) => Err(Failed::Passing(error.to_string())),
            Err(error) if error.status() == Some(404) => {
                Err(Failed::Final(Error::NotFound { path: location.to_string(), source: error.into() }))
            }
            Err(error) => Err(Failed::Final(generic(error))),
        }
    }

    /// Asks until there is an answer, or it has been tried often enough.
    async fn ask(&self, location: &Path, method: &Method, range: Option<&str>) -> Result<Answer> {
        let mut failures = 0;
        loop {
            match self.once(location, method, range).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Passing(why)) => {
                    failures += 1;
                    if failures >= ATTEMPTS {
                        return Err(generic(Interrupted(format!("tried {failures} times: {why}"))));
                    }
                    tokio::time::sleep(self.pause(failures)).await;
                }
            }
        }
    }
}

enum Failed {
    /// It may work a little later.
    Passing(String),
    Final(Error),
}

/// What was found: the bytes from `range`, out of `size`.
struct Answer {
    response: Response,
    size: u64,
    range: Range<u64>,
}

impl Answer {
    fn read(response: Response) -> Result<Self, String> {
        let header =
            |name| response.headers().get(name).and_then(|value: &reqwest::header::HeaderValue| value.to_str().ok());
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let text = header(CONTENT_RANGE).ok_or("a part of a file came without saying which")?;
            let (range, size) = content_range(text).ok_or_else(|| format!("{text:?} is no range"))?;
            return Ok(Answer { size, range, response });
        }
        // Of a HEAD request there is no body whose size would be known otherwise.
        let size = header(CONTENT_LENGTH).and_then(|text| text.parse().ok()).ok_or("a file came without its size")?;
        Ok(Answer { size, range: 0..size, response })
    }
}

/// Reads `bytes 0-9/100`.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then(|| (first..last + 1, size))
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Interrupted(String);

fn generic(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: STORE, source: Box::new(source) }
}

fn read_only() -> Error {
    Error::NotSupported { source: "artifacts of another process can only be read".into() }
}

/// A download on its way.
struct Download {
    store: RemoteArtifacts,
    location: Path,
    /// What is still to come.
    left: Range<u64>,
    response: Option<Response>,
    failures: u32,
}

impl Download {
    /// The next bytes, from wherever they are to be had.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.left.is_empty() {
            let why = match &mut self.response {
                None => {
                    let range = format!("bytes={}-{}", self.left.start, self.left.end - 1);
                    match self.store.once(&self.location, &Method::GET, Some(&range)).await {
                        Ok(answer) if answer.range == self.left => {
                            self.response = Some(answer.response);
                            continue;
                        }
                        Ok(answer) => format!("asked for {range}, was given {:?}", answer.range),
                        Err(Failed::Final(error)) => return Err(error),
                        Err(Failed::Passing(why)) => why,
                    }
                }
                Some(response) => match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
                    Ok(Ok(Some(chunk))) => {
                        let room = usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX);
                        let chunk = chunk.slice(..chunk.len().min(room));
                        self.left.start += chunk.len() as u64;
                        self.failures = 0;
                        return Ok(Some(chunk));
                    }
                    Ok(Ok(None)) => "the file ended too early".to_owned(),
                    Ok(Err(error)) => chain(&error.without_url()),
                    Err(_) => format!("nothing came for {} s", SILENCE_MAX.as_secs()),
                },
            };
            self.response = None;
            self.failures += 1;
            if self.failures >= ATTEMPTS {
                let left = self.left.end - self.left.start;
                return Err(generic(Interrupted(format!(
                    "the download broke off with {left} bytes to come, and did not go on in {ATTEMPTS} attempts: {why}"
                ))));
            }
            tracing::debug!(location = %self.location, at = self.left.start, why, "a download broke off and goes on");
            tokio::time::sleep(self.store.pause(self.failures)).await;
        }
        Ok(None)
    }
}

fn body(download: Download) -> BoxStream<'static, Result<Bytes>> {
    stream::try_unfold(
        download,
        |mut download| async move { Ok(download.next().await?.map(|chunk| (chunk, download))) },
    )
    .boxed()
}

fn meta(location: &Path, size: u64) -> ObjectMeta {
    // Artifacts are immutable and known by their digests: nobody asks when one was written.
    ObjectMeta { location: location.clone(), last_modified: Default::default(), size, e_tag: None, version: None }
}

impl fmt::Debug for RemoteArtifacts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RemoteArtifacts").finish_non_exhaustive()
    }
}

impl fmt::Display for RemoteArtifacts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the artifacts of another Tidegate process")
    }
}

#[async_trait]
impl ObjectStore for RemoteArtifacts {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(read_only())
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(read_only())
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            let answer = self.ask(location, &Method::HEAD, None).await?;
            return Ok(GetResult {
                payload: GetResultPayload::Stream(stream::empty().boxed()),
                meta: meta(location, answer.size),
                range: 0..answer.size,
                attributes: Attributes::new(),
                extensions: Default::default(),
            });
        }
        let range = match options.range {
            None => None,
            Some(GetRange::Bounded(range)) if range.is_empty() => return Err(read_nothing()),
            Some(GetRange::Bounded(range)) => Some(format!("bytes={}-{}", range.start, range.end - 1)),
            Some(GetRange::Offset(start)) => Some(format!("bytes={start}-")),
            Some(GetRange::Suffix(bytes)) => Some(format!("bytes=-{bytes}")),
        };
        let answer = self.ask(location, &Method::GET, range.as_deref()).await?;
        let download = Download {
            store: self.clone(),
            location: location.clone(),
            left: answer.range.clone(),
            response: Some(answer.response),
            failures: 0,
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(body(download)),
            meta: meta(location, answer.size),
            range: answer.range,
            attributes: Attributes::new(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        stream::once(async { Err(read_only()) }).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::once(async { Err(read_only()) }).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(read_only())
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(read_only())
    }
}

fn read_nothing() -> Error {
    generic(Interrupted("a range of no bytes was asked for".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_bad_ones_are_none() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0..10, 100)));
        assert_eq!(content_range("bytes 99-99/100"), Some((99..100, 100)));
        for bad in ["", "bytes */100", "bytes 9-0/100", "bytes 0-100/100", "bytes 0-9/*", "0-9/100"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
