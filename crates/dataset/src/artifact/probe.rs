//! Telling one store from another.
//!
//! A store that several machines use may be spelled in many ways, and two folders of the same name on two machines are
//! two stores. So its address says nothing; an object in it does, whose name and content only the right store has.

use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path as ObjectPath;

use super::{ArtifactError, ArtifactStore};
use crate::location::is_no_bucket;

const ROOT: &str = "probe";

/// The longest probe that is read, in bytes.
const BYTES_MAX: u64 = 1024;

/// How many marks are named.
const PROBES_MAX: usize = 8;

fn object(token: &str) -> Result<ObjectPath, ArtifactError> {
    let is_token = !token.is_empty() && token.len() <= 64 && token.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_token {
        Ok(ObjectPath::from_iter([ROOT, token]))
    } else {
        Err(ArtifactError::BadName { name: crate::key::shorten(token) })
    }
}

fn content(token: &str) -> String {
    format!("tidegate {token}\n")
}

impl ArtifactStore {
    /// Leaves the mark of this token (up to 64 letters and digits, best random ones) in the store.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn put_probe(&self, token: &str) -> Result<(), ArtifactError> {
        let object = object(token)?;
        let put = self.store.put(&object, content(token).into_bytes().into()).await;
        put.map(|_| ()).map_err(|source| ArtifactError::store(&object, source))
    }

    /// Removes the mark of a token. What is not there is done already.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn remove_probe(&self, token: &str) -> Result<(), ArtifactError> {
        let object = object(token)?;
        match self.store.delete(&object).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(ArtifactError::store(&object, source)),
        }
    }

    /// The tokens whose marks are in the store, the first few of them by name.
    ///
    /// # Errors
    /// If the store can't be listed.
    pub async fn probes(&self) -> Result<Vec<String>, ArtifactError> {
        let folder = ObjectPath::from(ROOT);
        let mut listed = self.store.list(Some(&folder));
        let mut tokens = Vec::new();
        while let Some(found) = listed.next().await {
            let found = found.map_err(|source| ArtifactError::store(&folder, source))?;
            tokens.extend(found.location.filename().map(crate::key::shorten));
            if tokens.len() == PROBES_MAX {
                break;
            }
        }
        tokens.sort();
        Ok(tokens)
    }

    /// Checks that this is the store in which the mark of this token was left.
    ///
    /// # Errors
    /// [`ArtifactError::OtherStore`] if it is not; [`ArtifactError::Store`] if it can't be told.
    pub async fn check_probe(&self, token: &str) -> Result<(), ArtifactError> {
        let object = object(token)?;
        let other = |why: String| ArtifactError::OtherStore { store: self.name().to_owned(), why };
        let got = match self.store.get(&object).await {
            Ok(got) => got,
            // A bucket that is not there is no other store.
            Err(error @ object_store::Error::NotFound { .. }) if !is_no_bucket(&error) => {
                return Err(other(format!("it has no `{object}`")));
            }
            Err(source) => return Err(ArtifactError::store(&object, source)),
        };
        if got.meta.size > BYTES_MAX {
            return Err(other(format!("its `{object}` is another one")));
        }
        let bytes = got.bytes().await.map_err(|source| ArtifactError::store(&object, source))?;
        if bytes.as_ref() == content(token).as_bytes() {
            Ok(())
        } else {
            Err(other(format!("its `{object}` is another one")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mark_tells_one_store_from_another() {
        let folder = tempfile::tempdir().unwrap();
        let one = ArtifactStore::local(folder.path().join("one")).unwrap();
        let other = ArtifactStore::local(folder.path().join("other")).unwrap();
        one.put_probe("t1").await.unwrap();
        one.check_probe("t1").await.unwrap();
        assert_eq!((one.probes().await.unwrap(), other.probes().await.unwrap()), (vec!["t1".to_owned()], vec![]));
        for (store, token) in [(&other, "t1"), (&one, "t2")] {
            let error = store.check_probe(token).await.unwrap_err();
            assert!(matches!(error, ArtifactError::OtherStore { .. }), "{error}");
            assert!(error.to_string().contains(store.name()), "{error}");
        }
        other.put_probe("t1").await.unwrap();
        std::fs::write(folder.path().join("other/probe/t1"), "tidegate t2\n").unwrap();
        assert!(matches!(other.check_probe("t1").await, Err(ArtifactError::OtherStore { .. })));
        one.remove_probe("t1").await.unwrap();
        one.remove_probe("t1").await.unwrap();
        assert!(one.check_probe("t1").await.is_err());
        for token in ["", "a/b", "..", "é"] {
            assert!(matches!(one.put_probe(token).await, Err(ArtifactError::BadName { .. })), "{token}");
        }
    }
}
