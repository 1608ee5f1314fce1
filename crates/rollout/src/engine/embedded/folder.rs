//! What a node keeps on its disk.
//!
//! ```text
//! {node}/stores/{store}/serving.json                       what serves: incarnation and version, or none
//! {node}/stores/{store}/live.index                         data to be adopted, put there by an operator
//! {node}/stores/{store}/{incarnation}/{version}.index
//! {node}/stores/{store}/{incarnation}/{version}.{attempt}.loading…   what a load writes that has not ended
//! {node}/stores/{store}/{incarnation}/{version}.loading-begun   a byte for each load in a row that has begun and not ended
//! ```
//!
//! # Invariants
//! - A file called `.index` is whole: it gets that name after its bytes are durable.
//! - The pointer is one small file that is replaced as a whole, whatever the version's size. One that can't be read says
//!   nothing: the node serves nothing of the store until it is told what to serve.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::engine::file::{decode_name, encode_name, remove_if_there, replace, sync_folder};
use crate::engine::{ADOPTED_VERSION, StoreKey};

const POINTER: &str = "serving.json";
const LIVE: &str = "live.index";
const BEGUN: &str = "loading-begun";
const FORMAT: u32 = 1;

/// What serves, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pointer {
    format: u32,
    /// Which store of this name.
    pub(super) incarnation: Uuid,
    /// The version; `None`: none, since someone said so.
    pub(super) version: Option<u64>,
}

/// What the file of a pointer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pointed {
    /// There is none: nobody ever said what serves.
    Never,
    /// It was said.
    To(Pointer),
    /// It was said, and can't be read: cut off or damaged.
    Unreadable,
}

impl Pointed {
    pub(super) fn known(self) -> Option<Pointer> {
        match self {
            Pointed::To(pointer) => Some(pointer),
            Pointed::Never | Pointed::Unreadable => None,
        }
    }
}

/// A version as its files are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A whole index.
    Index { version: u64, path: PathBuf },
    /// What a load has left that was cut off.
    Partial { version: u64 },
    /// So many loads in a row have begun, and their process ended before they did.
    Begun { version: u64, loads: u32 },
}

/// Everything that is kept of one store name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundStore {
    pub(super) name: String,
    pub(super) pointer: Option<Pointer>,
    pub(super) incarnations: Vec<(Uuid, Vec<Found>)>,
}

/// A node's folder. All of this blocks.
#[derive(Clone, Debug)]
pub(super) struct NodeFolder {
    stores: PathBuf,
}

impl NodeFolder {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let stores = folder.join("stores");
        fs::create_dir_all(&stores)?;
        Ok(NodeFolder { stores })
    }

    pub(super) fn root(&self) -> &Path {
        &self.stores
    }

    fn store(&self, name: &str) -> io::Result<PathBuf> {
        let encoded = encode_name(name).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the store's name is too long for a file name")
        })?;
        Ok(self.stores.join(encoded))
    }

    fn versions(&self, key: &StoreKey) -> io::Result<PathBuf> {
        Ok(self.store(&key.name)?.join(key.incarnation.to_string()))
    }

    fn index_path(&self, key: &StoreKey, version: u64) -> io::Result<PathBuf> {
        Ok(self.versions(key)?.join(format!("{version}.index")))
    }

    /// Where a load writes, in a folder that exists; `attempt` is another one each time, so that a load which was left
    /// behind meets nobody.
    pub(super) fn begin_load(&self, key: &StoreKey, version: u64, attempt: Uuid) -> io::Result<PathBuf> {
        let folder = self.versions(key)?;
        fs::create_dir_all(&folder)?;
        Ok(folder.join(format!("{version}.{}.loading", attempt.simple())))
    }

    /// Notes durably that so many loads in a row have begun and not ended, this one included.
    pub(super) fn note_begun(&self, key: &StoreKey, version: u64, loads: u32) -> io::Result<()> {
        let folder = self.versions(key)?;
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{version}.{BEGUN}"));
        let file = fs::File::options().create(true).write(true).truncate(false).open(path)?;
        // Its length is the number, which goes from one to the next with nothing in between.
        file.set_len(u64::from(loads))?;
        file.sync_all()?;
        sync_folder(&folder)?;
        // The first of a store makes its folders.
        sync_folder(&self.store(&key.name)?)?;
        sync_folder(&self.stores)
    }

    /// Takes back that loads have begun: this one has ended, however.
    pub(super) fn note_ended(&self, key: &StoreKey, version: u64) -> io::Result<()> {
        remove_if_there(&self.versions(key)?.join(format!("{version}.{BEGUN}")))
    }

    /// Gives a finished load its name. Its bytes are durable by then.
    pub(super) fn finish_load(&self, key: &StoreKey, version: u64, loaded: &Path) -> io::Result<PathBuf> {
        let path = self.index_path(key, version)?;
        fs::rename(loaded, &path)?;
        sync_folder(&self.versions(key)?)?;
        sync_folder(&self.store(&key.name)?)?;
        sync_folder(&self.stores)?;
        Ok(path)
    }

    /// Takes what is to be adopted, if it is there; answers where it is then.
    pub(super) fn take_live(&self, key: &StoreKey) -> io::Result<Option<PathBuf>> {
        let live = self.store(&key.name)?.join(LIVE);
        if !live.exists() {
            return Ok(None);
        }
        fs::create_dir_all(self.versions(key)?)?;
        self.finish_load(key, ADOPTED_VERSION, &live).map(Some)
    }

    pub(super) fn pointer(&self, name: &str) -> io::Result<Pointed> {
        Ok(match read_pointer(&self.store(name)?.join(POINTER))? {
            None => Pointed::Never,
            Some(Ok(pointer)) => Pointed::To(pointer),
            Some(Err(_)) => Pointed::Unreadable,
        })
    }

    pub(super) fn set_pointer(&self, key: &StoreKey, version: Option<u64>) -> io::Result<()> {
        let folder = self.store(&key.name)?;
        if !folder.exists() && version.is_none() {
            return Ok(());
        }
        fs::create_dir_all(&folder)?;
        let pointer = Pointer { format: FORMAT, incarnation: key.incarnation, version };
        replace(&folder.join(POINTER), &serde_json::to_vec(&pointer).map_err(io::Error::other)?)
    }

    /// Removes every file of the version, then the folders that are empty without it.
    pub(super) fn remove_version(&self, key: &StoreKey, version: u64) -> io::Result<()> {
        let folder = self.versions(key)?;
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let mut others = false;
        for entry in entries {
            let path = entry?.path();
            match classify(&path) {
                Some(
                    Found::Index { version: of, .. }
                    | Found::Partial { version: of }
                    | Found::Begun { version: of, .. },
                ) if of == version => {
                    if path.is_dir() {
                        fs::remove_dir_all(&path)?
                    } else {
                        remove_if_there(&path)?
                    }
                }
                _ => others = true,
            }
        }
        sync_folder(&folder)?;
        if !others {
            fs::remove_dir(&folder)?;
            self.forget_if_empty(&key.name)?;
        }
        Ok(())
    }

    /// Removes the store's folder once there is nothing in it but a pointer to nothing.
    fn forget_if_empty(&self, name: &str) -> io::Result<()> {
        let folder = self.store(name)?;
        let mut only_pointer = true;
        for entry in fs::read_dir(&folder)? {
            only_pointer &= entry?.path().file_stem() == Path::new(POINTER).file_stem();
        }
        let points = matches!(read_pointer(&folder.join(POINTER)), Ok(Some(Ok(Pointer { version: Some(_), .. }))));
        if only_pointer && !points {
            remove_if_there(&folder.join(POINTER))?;
            fs::remove_dir(&folder)?;
            sync_folder(&self.stores)?;
        }
        Ok(())
    }

    /// Everything there is. Files of other names are left alone.
    pub(super) fn scan(&self) -> io::Result<Vec<FoundStore>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.stores)? {
            let folder = entry?.path();
            let name = folder.file_name().and_then(|name| name.to_str()).and_then(decode_name);
            let Some(name) = name.filter(|_| folder.is_dir()) else {
                continue;
            };
            let pointer = read_pointer(&folder.join(POINTER))?.transpose().unwrap_or_else(|error| {
                tracing::error!(
                    store = %name, %error,
                    "the file that says what serves can't be read; nothing of the store serves on this node until its agent \
                     sets it right from the assignment"
                );
                None
            });
            let mut incarnations = Vec::new();
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let incarnation = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
                if let Some(incarnation) = incarnation.filter(|_| path.is_dir()) {
                    let mut versions = Vec::new();
                    for entry in fs::read_dir(&path)? {
                        versions.extend(classify(&entry?.path()));
                    }
                    incarnations.push((incarnation, versions));
                }
            }
            found.push(FoundStore { name, pointer, incarnations });
        }
        Ok(found)
    }
}

/// The pointer, or why its content is none; `None`: there is no file.
fn read_pointer(path: &Path) -> io::Result<Option<Result<Pointer, String>>> {
    let content = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        content => content?,
    };
    Ok(Some(match serde_json::from_slice::<Pointer>(&content) {
        Err(error) => Err(error.to_string()),
        Ok(pointer) if pointer.format != FORMAT => {
            Err(format!("format {} is not known; this release reads {FORMAT}", pointer.format))
        }
        Ok(pointer) => Ok(pointer),
    }))
}

/// What a file of a store's folder is, by its name.
fn classify(path: &Path) -> Option<Found> {
    let (version, rest) = path.file_name()?.to_str()?.split_once('.')?;
    let version = version.parse().ok()?;
    if rest == "index" {
        return Some(Found::Index { version, path: path.to_owned() });
    }
    if rest == BEGUN {
        let loads = fs::metadata(path).map_or(0, |file| file.len());
        return Some(Found::Begun { version, loads: u32::try_from(loads).unwrap_or(u32::MAX) });
    }
    rest.contains(".loading").then_some(Found::Partial { version })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> StoreKey {
        StoreKey { name: "a/b".to_owned(), incarnation: Uuid::from_u128(7) }
    }

    #[test]
    fn what_was_written_is_found_again_and_removed_without_a_trace() {
        let folder = tempfile::tempdir().unwrap();
        let node = NodeFolder::open(folder.path()).unwrap();
        let loading = node.begin_load(&key(), 2, Uuid::nil()).unwrap();
        fs::write(&loading, b"index").unwrap();
        node.finish_load(&key(), 2, &loading).unwrap();
        let cut_off = node.begin_load(&key(), 3, Uuid::nil()).unwrap();
        fs::write(cut_off.with_extension("loading.partial"), b"half").unwrap();
        fs::create_dir(cut_off.with_extension("loading.work")).unwrap();
        node.set_pointer(&key(), Some(2)).unwrap();
        let found = node.scan().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "a/b");
        assert_eq!(found[0].pointer.unwrap().version, Some(2));
        let versions = &found[0].incarnations[0].1;
        assert_eq!(versions.len(), 3);
        assert!(versions.contains(&Found::Partial { version: 3 }));
        node.remove_version(&key(), 3).unwrap();
        node.remove_version(&key(), 2).unwrap();
        node.remove_version(&key(), 2).unwrap();
        assert!(node.scan().unwrap()[0].incarnations.is_empty(), "a pointer to something is kept");
        node.set_pointer(&key(), None).unwrap();
        fs::create_dir_all(folder.path().join("stores/a%2Fb").join(key().incarnation.to_string())).unwrap();
        node.remove_version(&key(), 2).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("stores")).unwrap().count(), 0);
    }

    #[test]
    fn loads_that_have_begun_are_counted_until_one_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let node = NodeFolder::open(folder.path()).unwrap();
        let found =
            || node.scan().unwrap().into_iter().flat_map(|store| store.incarnations).flat_map(|(_, found)| found);
        for loads in 1..=3 {
            node.note_begun(&key(), 2, loads).unwrap();
            assert_eq!(found().collect::<Vec<_>>(), [Found::Begun { version: 2, loads }]);
        }
        node.note_ended(&key(), 2).unwrap();
        node.note_ended(&key(), 2).unwrap();
        assert_eq!(found().count(), 0);
        node.note_begun(&key(), 2, 1).unwrap();
        node.remove_version(&key(), 2).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("stores")).unwrap().count(), 0, "it goes with its version");
    }

    #[test]
    fn a_pointer_that_cant_be_read_is_no_pointer() {
        let folder = tempfile::tempdir().unwrap();
        let node = NodeFolder::open(folder.path()).unwrap();
        node.set_pointer(&key(), Some(2)).unwrap();
        fs::write(folder.path().join("stores/a%2Fb/serving.json"), b"{\"format\":9}").unwrap();
        assert_eq!(node.pointer("a/b").unwrap(), Pointed::Unreadable);
        assert_eq!(node.scan().unwrap()[0].pointer, None);
    }
}
