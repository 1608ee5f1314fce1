//! Small files that are replaced as a whole, and file names made from names of stores.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// The longest file name that an encoded name may give, leaving room for what is put behind it.
pub(crate) const ENCODED_MAX: usize = 200;

/// A name as a file name: ASCII letters, digits, `-` and `_` as they are, all else as `%` and two hexadecimal digits.
/// `None` where that gets too long for a file name.
pub(crate) fn encode_name(name: &str) -> Option<String> {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    (!encoded.is_empty() && encoded.len() <= ENCODED_MAX).then_some(encoded)
}

/// The name that [`encode_name`] made this file name from, if it did.
pub(crate) fn decode_name(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (encode_name(&name).as_deref() == Some(encoded)).then_some(name)
}

/// Replaces the file with this content, so that after a crash at any moment there is either the old file or the new one,
/// and once this has returned, the new one.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file lies in a folder"))?;
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)?;
    sync_folder(folder)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file, if it is there.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_as_file_names_and_never_leave_their_folder() {
        for name in ["airports", "a b", "..", "/", "a/b", "50%", "é", "CON", "a.json", "\"} or 1 #"] {
            let encoded = encode_name(name).unwrap();
            assert!(!encoded.contains(['/', '.', '\\', '\0']), "{encoded}");
            assert_eq!(decode_name(&encoded).as_deref(), Some(name));
        }
        assert_eq!(encode_name(""), None);
        assert_eq!(encode_name(&"é".repeat(128)), None);
        for foreign in ["a.json", "%zz", "%6", "%61", "lost+found"] {
            assert_eq!(decode_name(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pointer.json");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        remove_if_there(&path).unwrap();
        remove_if_there(&path).unwrap();
    }
}
