//! Artifacts in an object store.
//!
//! ```text
//! artifacts/{artifact id}/{part name}
//! artifacts/{artifact id}/manifest-{SHA-256 of this file}.json
//! probe/{token}                      tells this store from others
//! ```
//!
//! Invariants:
//! - an object appears whole or not at all, and only after its SHA-256 was found to be right;
//! - a manifest is written after all parts that it names: an artifact is listed only when complete;
//! - nothing that is read counts before its SHA-256 was checked. A manifest carries its own in its
//!   name, so that every damaged byte of it shows, also to who does not know its digest.
//!
//! The same parts may have several manifests (with other golden keys, say); they are one artifact.

mod copy;
mod direct;
mod error;
mod footer;
mod leftovers;
mod probe;
mod serve;
mod transfer;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use tidegate_api::manifest::{HASH_FUNCTION, MANIFEST_FORMAT, Manifest, Part};

pub use copy::Copied;
pub use direct::chunk_bytes;
pub use error::ArtifactError;
pub use serve::{ArtifactFile, FileError, FileRange};

use crate::build::BuildOptions;
use crate::digest::{artifact_id, sha256};
use crate::location::S3;
use crate::progress::Cancel;
use transfer::{Fetch, Sink, copy_file, digest_object};

/// The largest manifest that is read, in bytes.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024 * 1024;

const ROOT: &str = "artifacts";

/// A manifest and the SHA-256 of its file, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// The SHA-256 of its file.
    pub digest: String,
}

/// A store of artifacts. Clones share it.
#[derive(Clone, Debug)]
pub struct ArtifactStore {
    store: Arc<dyn ObjectStore>,
    folder: Option<Arc<Path>>,
    s3: Option<Arc<S3>>,
    /// What people know it by.
    name: Arc<str>,
}

/// How a part is in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartCheck {
    /// All of it is there, with the right SHA-256.
    Whole,
    /// It is not there.
    Absent,
    /// Something else is there; in words, what.
    Other(String),
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_part_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(allowed)
        && !name.starts_with('.')
        && !name.starts_with("manifest")
}

/// Checks that a manifest is one that this release can work with and that it is at one with
/// itself: known format, no more parts than there may be, safe and distinct part names, usable
/// schema, sums, and its artifact id. Takes time in proportion to the manifest's size; a big one is
/// for a thread that may be blocked.
///
/// # Errors
/// [`ArtifactError::BadManifest`], saying what is wrong.
pub fn check_manifest(manifest: &Manifest) -> Result<(), ArtifactError> {
    let refuse = |why: String| Err(ArtifactError::BadManifest { artifact: manifest.artifact_id.clone(), why });
    if manifest.format != MANIFEST_FORMAT {
        return refuse(format!("its format is {}, this release reads {MANIFEST_FORMAT}", manifest.format));
    }
    if manifest.hash_function != HASH_FUNCTION {
        return refuse(format!(
            "its hash function is `{}`, this release knows {HASH_FUNCTION}",
            manifest.hash_function
        ));
    }
    if manifest.parts.len() != manifest.partition_count as usize {
        return refuse(format!("it has {} parts for {} partitions", manifest.parts.len(), manifest.partition_count));
    }
    if manifest.partition_count > BuildOptions::PARTITIONS_MAX {
        return refuse(format!(
            "it has {} partitions, there are at most {}",
            manifest.partition_count,
            BuildOptions::PARTITIONS_MAX
        ));
    }
    let mut names = HashSet::with_capacity(manifest.parts.len());
    for part in &manifest.parts {
        if !is_part_name(&part.name) || !is_sha256(&part.sha256) {
            return refuse(format!("part `{}` has no usable name or digest", crate::key::shorten(&part.name)));
        }
        if !names.insert(part.name.as_str()) {
            return refuse(format!("part `{}` is in it twice", part.name));
        }
    }
    let rows: u128 = manifest.parts.iter().map(|part| u128::from(part.rows)).sum();
    let bytes: u128 = manifest.parts.iter().map(|part| u128::from(part.bytes)).sum();
    if rows != u128::from(manifest.record_count) || bytes != u128::from(manifest.bytes) {
        return refuse(String::from("its counts are not the sums over its parts"));
    }
    if let Err(error) = crate::schema::validate(&manifest.schema, &manifest.key_columns) {
        return refuse(error.to_string());
    }
    let id = artifact_id(&manifest.schema, &manifest.key_columns, &manifest.parts);
    if id != manifest.artifact_id {
        return refuse(format!("its parts are those of artifact {id}"));
    }
    Ok(())
}

impl ArtifactStore {
    /// A store in a local folder, which is created if need be. What is written there is flushed to
    /// the disk before it counts.
    ///
    /// # Errors
    /// If the folder can't be created.
    pub fn local(folder: impl AsRef<Path>) -> Result<Self, ArtifactError> {
        let folder = folder.as_ref();
        let disk_error = |source| ArtifactError::Disk { path: folder.display().to_string(), source };
        std::fs::create_dir_all(folder).map_err(disk_error)?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|source| ArtifactError::store(&ObjectPath::from(ROOT), source))?
            .with_fsync(true)
            .with_automatic_cleanup(true);
        let name = format!("file://{}", folder.display());
        Ok(Self { store: Arc::new(store), folder: Some(folder.into()), s3: None, name: name.into() })
    }

    /// A store of any kind that the `object_store` crate knows. To open one by its address, see
    /// [`StorePlan`](crate::location::StorePlan).
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        let name = store.to_string();
        Self { store, folder: None, s3: None, name: name.into() }
    }

    pub(crate) fn s3(s3: S3, name: String) -> Self {
        let store = PrefixStore::new(s3.client.clone(), s3.prefix.clone());
        Self { store: Arc::new(store), folder: None, s3: Some(Arc::new(s3)), name: name.into() }
    }

    /// What people know the store by: its address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The objects themselves, for what is kept beside the artifacts.
    #[must_use]
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The folder of a local store.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    fn object(id: &str, name: &str) -> Result<ObjectPath, ArtifactError> {
        if !is_sha256(id) {
            return Err(ArtifactError::BadName { name: crate::key::shorten(id) });
        }
        Ok(ObjectPath::from_iter([ROOT, id, name]))
    }

    fn part_object(id: &str, part: &Part) -> Result<ObjectPath, ArtifactError> {
        if !is_part_name(&part.name) {
            return Err(ArtifactError::BadName { name: crate::key::shorten(&part.name) });
        }
        Self::object(id, &part.name)
    }

    /// Stores a part from a local file, after its digest was found to be right on the way.
    /// Writing a part that is there replaces it.
    ///
    /// # Errors
    /// [`ArtifactError::Damaged`] if the file is not the part; then nothing is stored.
    pub async fn put_part(&self, id: &str, part: &Part, file: &Path, cancel: &Cancel) -> Result<(), ArtifactError> {
        let object = Self::part_object(id, part)?;
        let sink = Sink::new(&self.store, object, part).await?;
        copy_file(sink, part, file, cancel).await
    }

    /// Which of these parts are there with the right size: those that an interrupted upload need
    /// not send again. Their bytes are checked when the artifact is read.
    ///
    /// # Errors
    /// If the store can't be asked.
    pub async fn has_parts(&self, id: &str, parts: &[Part]) -> Result<Vec<bool>, ArtifactError> {
        let mut found = Vec::with_capacity(parts.len());
        for part in parts {
            let object = Self::part_object(id, part)?;
            found.push(match self.store.head(&object).await {
                Ok(meta) => meta.size == part.bytes,
                Err(object_store::Error::NotFound { .. }) => false,
                Err(source) => return Err(ArtifactError::store(&object, source)),
            });
        }
        Ok(found)
    }

    /// Reads a part and says how it is.
    ///
    /// # Errors
    /// If the store can't be read, or the work was cancelled.
    pub async fn check_part(&self, id: &str, part: &Part, cancel: &Cancel) -> Result<PartCheck, ArtifactError> {
        let object = Self::part_object(id, part)?;
        Ok(match digest_object(&self.store, &object, part, cancel, &mut |_| {}).await? {
            None => PartCheck::Absent,
            Some(found) if found == part.sha256 => PartCheck::Whole,
            Some(found) => PartCheck::Other(found),
        })
    }

    /// Completes an artifact: stores its manifest, and answers with the SHA-256 of its file.
    ///
    /// # Errors
    /// [`ArtifactError::Missing`] naming the parts that are not there, or not of the right size;
    /// [`ArtifactError::BadManifest`].
    pub async fn put_manifest(&self, manifest: &Manifest) -> Result<String, ArtifactError> {
        check_manifest(manifest)?;
        let id = &manifest.artifact_id;
        let found = self.has_parts(id, &manifest.parts).await?;
        let missing: Vec<_> =
            manifest.parts.iter().zip(found).filter(|(_, found)| !found).map(|(part, _)| part.name.clone()).collect();
        if !missing.is_empty() {
            return Err(ArtifactError::Missing { artifact: id.clone(), parts: missing });
        }
        let bytes = serde_json::to_vec(manifest)
            .map_err(|error| ArtifactError::BadManifest { artifact: id.clone(), why: error.to_string() })?;
        let digest = sha256(&bytes);
        let object = Self::object(id, &format!("manifest-{digest}.json"))?;
        self.store.put(&object, bytes.into()).await.map_err(|source| ArtifactError::store(&object, source))?;
        Ok(digest)
    }

    /// What of an artifact is not in the store, in words; nothing if its manifest and all its parts are there, each with the
    /// right size. Their bytes are checked when the artifact is read.
    ///
    /// # Errors
    /// If the store can't be asked.
    pub async fn lacks(&self, id: &str, manifest_sha256: &str) -> Result<Option<String>, ArtifactError> {
        let manifest = match self.manifest_with_digest(id, manifest_sha256).await {
            Ok(stored) => stored.manifest,
            Err(ArtifactError::NotFound { .. }) => return Ok(Some("its manifest".to_owned())),
            Err(error @ (ArtifactError::Damaged { .. } | ArtifactError::BadManifest { .. })) => {
                return Ok(Some(format!("its manifest: {error}")));
            }
            Err(error) => return Err(error),
        };
        let folder = Self::object(id, "")?;
        let listed = self.store.list_with_delimiter(Some(&folder)).await;
        let listed = listed.map_err(|source| ArtifactError::store(&folder, source))?;
        let sizes: HashMap<&str, u64> =
            listed.objects.iter().filter_map(|meta| Some((meta.location.filename()?, meta.size))).collect();
        let is_there = |part: &&Part| sizes.get(part.name.as_str()) == Some(&part.bytes);
        let there = manifest.parts.iter().filter(is_there).count();
        let all = manifest.parts.len();
        Ok((there < all).then(|| format!("{} of its {all} parts", all - there)))
    }

    /// The manifest of an artifact, checked against its digest. Of several the first by digest.
    ///
    /// # Errors
    /// [`ArtifactError::NotFound`] if the artifact is not complete, [`ArtifactError::Damaged`] if
    /// the file is not what its name says.
    pub async fn manifest(&self, id: &str) -> Result<StoredManifest, ArtifactError> {
        let folder = Self::object(id, "")?;
        let listed = self
            .store
            .list_with_delimiter(Some(&folder))
            .await
            .map_err(|source| ArtifactError::store(&folder, source))?;
        let digest = listed
            .objects
            .iter()
            .filter_map(|meta| manifest_digest(&meta.location))
            .min()
            .ok_or_else(|| ArtifactError::NotFound { artifact: id.to_owned() })?;
        self.manifest_with_digest(id, digest).await
    }

    /// The manifest of an artifact whose file has this SHA-256.
    ///
    /// # Errors
    /// As [`ArtifactStore::manifest`].
    pub async fn manifest_with_digest(&self, id: &str, digest: &str) -> Result<StoredManifest, ArtifactError> {
        if !is_sha256(digest) {
            return Err(ArtifactError::BadName { name: crate::key::shorten(digest) });
        }
        let object = Self::object(id, &format!("manifest-{digest}.json"))?;
        let store_error = |source| match source {
            object_store::Error::NotFound { .. } => ArtifactError::NotFound { artifact: id.to_owned() },
            source => ArtifactError::store(&object, source),
        };
        let got = self.store.get(&object).await.map_err(store_error)?;
        if got.meta.size > MANIFEST_BYTES_MAX {
            return Err(ArtifactError::BadManifest {
                artifact: id.to_owned(),
                why: format!("it takes {} bytes, the limit is {MANIFEST_BYTES_MAX}", got.meta.size),
            });
        }
        let bytes = got.bytes().await.map_err(store_error)?;
        let found = sha256(&bytes);
        if found != digest {
            return Err(ArtifactError::Damaged {
                artifact: id.to_owned(),
                file: format!("manifest-{digest}.json"),
                expected: digest.to_owned(),
                found,
            });
        }
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| ArtifactError::BadManifest { artifact: id.to_owned(), why: error.to_string() })?;
        check_manifest(&manifest)?;
        if manifest.artifact_id != id {
            return Err(ArtifactError::BadManifest {
                artifact: id.to_owned(),
                why: format!("it is that of artifact {}", manifest.artifact_id),
            });
        }
        Ok(StoredManifest { manifest, digest: found })
    }

    async fn any_manifest(&self, id: &str, digest: Option<&str>) -> Result<StoredManifest, ArtifactError> {
        match digest {
            Some(digest) => self.manifest_with_digest(id, digest).await,
            None => self.manifest(id).await,
        }
    }

    /// Fetches a part into a local file, which appears only when its digest was found to be right,
    /// and replaces what is there.
    ///
    /// # Errors
    /// [`ArtifactError::Damaged`] if the part is not what the manifest says.
    pub async fn fetch_part(&self, id: &str, part: &Part, file: &Path, cancel: &Cancel) -> Result<(), ArtifactError> {
        let mut partial = file.as_os_str().to_owned();
        partial.push(".partial");
        let object = Self::part_object(id, part)?;
        let fetch = Fetch { store: &self.store, object, artifact: id, part, is_kept: false };
        fetch.to_file(file, Path::new(&partial), cancel, &mut |_| {}).await
    }

    /// Removes an artifact: manifests first, so that at no time something incomplete is listed.
    /// One that is not there is done already.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn delete(&self, id: &str) -> Result<(), ArtifactError> {
        let folder = Self::object(id, "")?;
        let mut objects: Vec<ObjectPath> = self
            .store
            .list(Some(&folder))
            .map_ok(|meta| meta.location)
            .try_collect()
            .await
            .map_err(|source| ArtifactError::store(&folder, source))?;
        objects.sort_by_key(|object| manifest_digest(object).is_none());
        for object in objects {
            match self.store.delete(&object).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(ArtifactError::store(&object, source)),
            }
        }
        if let Some(root) = &self.folder {
            let artifact = root.join(ROOT).join(id);
            let removed = tokio::task::spawn_blocking(move || leftovers::remove_of(&artifact));
            removed.await.map_err(|_| ArtifactError::Cancelled)??;
        }
        Ok(())
    }

    /// Removes what uploads left in a local store that were cut off over so long ago. (Other stores
    /// drop such pieces by rules of their own.) Blocks. Answers how many files went.
    ///
    /// # Errors
    /// If the folder can't be read, or a file not be removed.
    pub fn remove_leftovers(&self, older_than: std::time::Duration) -> Result<u64, ArtifactError> {
        let Some(folder) = &self.folder else {
            return Ok(0);
        };
        leftovers::remove(&folder.join(ROOT), older_than)
    }

    /// The ids of all complete artifacts, in order.
    ///
    /// # Errors
    /// If the store can't be listed.
    pub async fn list(&self) -> Result<Vec<String>, ArtifactError> {
        let root = ObjectPath::from(ROOT);
        let mut ids: Vec<String> = self
            .store
            .list(Some(&root))
            .try_filter_map(|meta| async move {
                let id = meta.location.parts().nth(1);
                Ok(manifest_digest(&meta.location).and(id).map(|id| id.as_ref().to_owned()))
            })
            .try_collect()
            .await
            .map_err(|source| ArtifactError::store(&root, source))?;
        ids.retain(|id| is_sha256(id));
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// The ids of all artifacts of which anything is there, complete or not, in order.
    ///
    /// # Errors
    /// If the store can't be listed.
    pub async fn list_with_incomplete(&self) -> Result<Vec<String>, ArtifactError> {
        let root = ObjectPath::from(ROOT);
        let listed =
            self.store.list_with_delimiter(Some(&root)).await.map_err(|source| ArtifactError::store(&root, source))?;
        let mut ids: Vec<String> = listed
            .common_prefixes
            .iter()
            .filter_map(|prefix| Some(prefix.parts().nth(1)?.as_ref().to_owned()))
            .filter(|id| is_sha256(id))
            .collect();
        ids.sort();
        Ok(ids)
    }
}

/// The digest that a manifest's name carries; `None` for other objects.
fn manifest_digest(object: &ObjectPath) -> Option<&str> {
    let digest = object.filename()?.strip_prefix("manifest-")?.strip_suffix(".json")?;
    is_sha256(digest).then_some(digest)
}
