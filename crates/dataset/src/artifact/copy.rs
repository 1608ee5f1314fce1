//! Copying whole artifacts between stores, and reading them from end to end.

use std::path::Path;

use tidegate_api::manifest::Part;

use super::transfer::{self, Fetch, Sink, digest_object};
use super::{ArtifactError, ArtifactStore, ROOT, StoredManifest, leftovers};
use crate::progress::{Cancel, OnProgress, Phase, Progress};

/// What [`ArtifactStore::copy_to`] did.
#[derive(Clone, Debug, PartialEq)]
pub struct Copied {
    /// The manifest of the artifact.
    pub manifest: StoredManifest,
    /// Parts that were copied.
    pub parts_copied: usize,
    /// Parts that were there already, and whole.
    pub parts_present: usize,
}

impl ArtifactStore {
    /// Copies an artifact into another store: parts first, the manifest last. Parts that are there
    /// and whole are left alone, so that a copy that was interrupted goes on, and one that was
    /// damaged is mended; within a part it goes on where it stopped if the other store is a folder.
    /// `digest` names one of several manifests.
    ///
    /// # Errors
    /// [`ArtifactError::Damaged`] naming the file that is damaged at the source; the copy is not
    /// complete then.
    pub async fn copy_to(
        &self,
        other: &ArtifactStore,
        id: &str,
        digest: Option<&str>,
        progress: OnProgress<'_>,
        cancel: &Cancel,
    ) -> Result<Copied, ArtifactError> {
        let stored = self.any_manifest(id, digest).await?;
        let parts = &stored.manifest.parts;
        let (mut parts_copied, mut parts_present, mut done) = (0, 0, 0);
        for part in parts {
            let object = Self::part_object(id, part)?;
            let present = digest_object(&other.store, &object, part, cancel, &mut |_| {}).await?;
            if present.as_deref() == Some(part.sha256.as_str()) {
                parts_present += 1;
            } else {
                let report = &mut |bytes| {
                    progress(Progress {
                        phase: Phase::Copying,
                        done: done + bytes,
                        total: stored.manifest.bytes,
                        records: 0,
                    });
                };
                match &other.folder {
                    Some(folder) => self.fetch_into(folder, id, part, cancel, report).await?,
                    None => {
                        let mut sink = Sink::new(&other.store, object.clone(), part).await?;
                        let copied = transfer::copy_object(&self.store, &object, &mut sink, part, cancel, report).await;
                        sink.finish(id, copied).await?;
                    }
                }
                parts_copied += 1;
            }
            done += part.bytes;
        }
        let written = other.put_manifest(&stored.manifest).await?;
        if written != stored.digest {
            return Err(ArtifactError::BadManifest {
                artifact: id.to_owned(),
                why: String::from("it does not survive being read and written by this release"),
            });
        }
        Ok(Copied { manifest: stored, parts_copied, parts_present })
    }

    /// Reads every byte of an artifact and checks it against its digests.
    ///
    /// # Errors
    /// [`ArtifactError::Damaged`] or [`ArtifactError::Missing`], naming the file.
    pub async fn verify(
        &self,
        id: &str,
        digest: Option<&str>,
        progress: OnProgress<'_>,
        cancel: &Cancel,
    ) -> Result<StoredManifest, ArtifactError> {
        let stored = self.any_manifest(id, digest).await?;
        let mut done = 0;
        for part in &stored.manifest.parts {
            let object = Self::part_object(id, part)?;
            let report = &mut |bytes: u64| {
                progress(Progress {
                    phase: Phase::Verifying,
                    done: done + bytes,
                    total: stored.manifest.bytes,
                    records: 0,
                });
            };
            match digest_object(&self.store, &object, part, cancel, report).await? {
                Some(found) if found == part.sha256 => {}
                Some(found) => return Err(ArtifactError::damaged(id, part, found)),
                None => {
                    return Err(ArtifactError::Missing { artifact: id.to_owned(), parts: vec![part.name.clone()] });
                }
            }
            done += part.bytes;
        }
        Ok(stored)
    }

    /// Fetches a part into a folder store. What has come of it before the connection broke, or before the process
    /// ended, need not come again.
    async fn fetch_into(
        &self,
        folder: &Path,
        id: &str,
        part: &Part,
        cancel: &Cancel,
        report: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), ArtifactError> {
        let object = Self::part_object(id, part)?;
        let fetch = Fetch { store: &self.store, object, artifact: id, part, is_kept: true };
        let folder = folder.join(ROOT).join(id);
        let disk_error = |source| ArtifactError::Disk { path: folder.display().to_string(), source };
        tokio::fs::create_dir_all(&folder).await.map_err(disk_error)?;
        let partial = folder.join(leftovers::unfinished_name(part));
        fetch.to_file(&folder.join(&part.name), &partial, cancel, report).await
    }
}
