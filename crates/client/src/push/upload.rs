//! Sending the parts that the server does not have.

use std::collections::BTreeMap;
use std::path::Path;

use futures::stream::{StreamExt, TryStreamExt};
use tidegate_api::manifest::{Manifest, Part};
use tidegate_api::{ClientPhase, HeartbeatRequest, PushState, code};

use super::PushEvent;
use super::known::Pulse;
use super::work::{Events, Stopped};
use crate::client::Client;
use crate::error::Error;

/// How often a part is sent again that arrived otherwise than it was sent.
const DAMAGED_MAX: u32 = 3;

/// How often the server may miss parts that it was sent.
const ROUNDS_MAX: u32 = 5;

pub(super) struct Upload<'a> {
    pub(super) client: &'a Client,
    pub(super) push: &'a str,
    pub(super) folder: &'a Path,
    pub(super) manifest: &'a Manifest,
    pub(super) at_once: usize,
    pub(super) pulse: &'a Pulse,
    pub(super) events: &'a Events,
}

impl Upload<'_> {
    /// Sends what is missing, and then the manifest.
    pub(super) async fn run(&self) -> Result<PushState, Stopped> {
        for _ in 1..ROUNDS_MAX {
            self.send_missing().await?;
            match self.client.complete_push(self.push, self.manifest).await {
                Ok(state) => return Ok(state),
                Err(error) if error.code() == Some(code::PARTS_MISSING) => {
                    tracing::warn!(%error, "sending parts again");
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.send_missing().await?;
        Ok(self.client.complete_push(self.push, self.manifest).await?)
    }

    async fn send_missing(&self) -> Result<(), Stopped> {
        let known = self.client.parts(self.push).await?;
        let arrived: BTreeMap<String, (u64, String)> =
            known.parts.into_iter().map(|part| (part.name, (part.bytes, part.sha256))).collect();
        let is_there = |part: &&Part| {
            arrived.get(&part.name).is_some_and(|(bytes, sha256)| *bytes == part.bytes && *sha256 == part.sha256)
        };
        let there: Vec<&Part> = self.manifest.parts.iter().filter(is_there).collect();
        let missing: Vec<&Part> = self.manifest.parts.iter().filter(|part| !is_there(part)).collect();
        let bytes_before: u64 = there.iter().map(|part| part.bytes).sum();
        let mut bytes = bytes_before;
        let mut parts = there.len() as u64;
        self.report(bytes, parts, bytes_before);
        // Put together before the stream, so that the job's future can move between threads.
        let sends: Vec<_> = missing.into_iter().map(|part| self.send(part, known.direct)).collect();
        let mut sent = futures::stream::iter(sends).buffer_unordered(self.at_once.max(1));
        while let Some(part) = sent.try_next().await? {
            bytes += part.bytes;
            parts += 1;
            self.report(bytes, parts, bytes_before);
        }
        Ok(())
    }

    async fn send<'p>(&self, part: &'p Part, is_direct: bool) -> Result<&'p Part, Error> {
        let file = self.folder.join(&part.name);
        if is_direct {
            self.client.put_part_direct(self.push, &self.manifest.artifact_id, part, &file).await?;
            return Ok(part);
        }
        let mut damaged = 0;
        loop {
            let sent = self.client.put_part(self.push, &part.name, &part.sha256, &file).await;
            match sent {
                Ok(_) => return Ok(part),
                Err(error) if error.code() == Some(code::PART_DAMAGED) && damaged < DAMAGED_MAX => {
                    damaged += 1;
                    tracing::warn!(part = part.name, %error, "sending a part again");
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn report(&self, bytes: u64, parts: u64, bytes_before: u64) {
        let of = self.manifest.parts.iter().map(|part| part.bytes).sum();
        self.pulse.set(HeartbeatRequest {
            phase: ClientPhase::Uploading,
            bytes,
            of: Some(of),
            records: self.manifest.record_count,
        });
        self.events.progress(PushEvent::Uploading {
            bytes,
            of,
            parts,
            parts_of: self.manifest.parts.len() as u64,
            bytes_before,
        });
    }
}
