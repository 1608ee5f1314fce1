//! The bytes of log rows, of changes kept with exceptions, and of record keys: numbers as LEB128, text with its length
//! before it, no field names. Written once per transaction, read only by who has fallen behind the tail in memory.

use std::sync::Arc;

use super::{
    DriverError, HookNumber, LogEntry, LogRow, ReceiptOutcome, RequestAction, RequestId, RequestedChange,
    StoredDocument,
};
use crate::path::Path;
use crate::revision::{Attributes, Revision, SubmissionId, Timestamp};

/// Begins every body, so that a later form can be told from this one.
const FORM: u8 = 1;

const CHANGE: u8 = 0;
const EXISTING: u8 = 1;
const ACTION: u8 = 2;

/// A log row's `body` column: all that has no column of its own.
pub(crate) fn encode_row(row: &LogRow) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + row.entries.len() * 96);
    put_row(&mut out, row);
    out
}

/// As [`encode_row`], behind what is there.
pub(crate) fn put_row(out: &mut Vec<u8>, row: &LogRow) {
    out.push(FORM);
    put_text(out, &row.server);
    put_attributes(out, &row.attributes);
    put_number(out, row.entries.len() as u64);
    for entry in &row.entries {
        match entry {
            LogEntry::Change { path, before, after, hooks } => {
                out.push(CHANGE);
                put_text(out, path.as_str());
                put_document(out, before.as_ref());
                put_document(out, after.as_ref());
                put_number(out, hooks.len() as u64);
                for hook in hooks {
                    put_number(out, u64::from(hook.0));
                }
            }
            LogEntry::Existing { path, hook } => {
                out.push(EXISTING);
                put_text(out, path.as_str());
                put_number(out, u64::from(hook.0));
            }
            LogEntry::Action { request, action } => {
                out.push(ACTION);
                put_number(out, request.revision.0);
                put_number(out, u64::from(request.sequence));
                put_number(out, u64::from(request.hook.0));
                out.push(match action {
                    RequestAction::Retry => 0,
                    RequestAction::Discard => 1,
                    RequestAction::Cancel => 2,
                });
            }
        }
    }
}

/// The hooks that an entry concerns.
fn hooks_of(entry: &LogEntry) -> &[HookNumber] {
    match entry {
        LogEntry::Change { hooks, .. } => hooks,
        LogEntry::Existing { hook, .. } => std::slice::from_ref(hook),
        LogEntry::Action { request, .. } => std::slice::from_ref(&request.hook),
    }
}

/// Every hook that one of the rows concerns, once, in order.
pub(crate) fn concerned_hooks<'a>(rows: impl IntoIterator<Item = &'a LogRow>) -> Vec<u32> {
    let entries = rows.into_iter().flat_map(|row| &row.entries);
    let mut concerned: Vec<u32> = entries.flat_map(hooks_of).map(|hook| hook.0).collect();
    concerned.sort_unstable();
    concerned.dedup();
    concerned
}

/// How many hooks a row concerns at most: some may count twice.
pub(crate) fn hooks_at_most(row: &LogRow) -> usize {
    row.entries.iter().map(|entry| hooks_of(entry).len()).sum()
}

/// Whether a row concerns the hook.
pub(crate) fn concerns(row: &LogRow, hook: HookNumber) -> bool {
    row.entries.iter().any(|entry| hooks_of(entry).contains(&hook))
}

/// SQLite's `hooks` column: every hook that the row concerns, four bytes each; none if there is none.
pub(crate) fn encode_hooks(row: &LogRow) -> Option<Vec<u8>> {
    let concerned = concerned_hooks([row]);
    (!concerned.is_empty()).then(|| concerned.iter().flat_map(|hook| hook.to_be_bytes()).collect())
}

/// Whether a `hooks` column names the hook.
pub(crate) fn names_hook(column: Option<&[u8]>, hook: HookNumber) -> bool {
    column.is_some_and(|bytes| bytes.chunks_exact(4).any(|chunk| chunk == hook.0.to_be_bytes()))
}

/// A log row from its columns.
pub(crate) fn decode_row(
    revision: Revision,
    at: Timestamp,
    submission: SubmissionId,
    body: &[u8],
) -> Result<LogRow, DriverError> {
    decode_row_after(None, revision, at, submission, body)
}

/// As [`decode_row`]; what it has in common with the row before it is shared with that.
pub(crate) fn decode_row_after(
    before: Option<&LogRow>,
    revision: Revision,
    at: Timestamp,
    submission: SubmissionId,
    body: &[u8],
) -> Result<LogRow, DriverError> {
    decode(body, |bytes| {
        if bytes.byte()? != FORM {
            return None;
        }
        let server = bytes.text()?;
        let server = match before {
            Some(before) if *before.server == *server => before.server.clone(),
            Some(_) | None => Arc::from(server),
        };
        let attributes = bytes.attributes()?;
        let attributes = match before {
            Some(before) if *before.attributes == attributes => before.attributes.clone(),
            Some(_) | None => Arc::new(attributes),
        };
        let count = bytes.count()?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(match bytes.byte()? {
                CHANGE => {
                    let path = bytes.path()?;
                    let before = bytes.document()?;
                    let after = bytes.document()?;
                    let count = bytes.count()?;
                    let hooks = (0..count).map(|_| bytes.hook()).collect::<Option<Vec<HookNumber>>>()?;
                    LogEntry::Change { path, before, after, hooks }
                }
                EXISTING => LogEntry::Existing { path: bytes.path()?, hook: bytes.hook()? },
                ACTION => {
                    let revision = Revision(bytes.number()?);
                    let sequence = u32::try_from(bytes.number()?).ok()?;
                    let request = RequestId { revision, sequence, hook: bytes.hook()? };
                    let action = match bytes.byte()? {
                        0 => RequestAction::Retry,
                        1 => RequestAction::Discard,
                        2 => RequestAction::Cancel,
                        _ => return None,
                    };
                    LogEntry::Action { request, action }
                }
                _ => return None,
            });
        }
        Some(LogRow { revision, submission, at, server, attributes, entries })
    })
    .ok_or_else(|| DriverError::Damaged(format!("the log's row {revision} can't be read")))
}

/// The `change` column of an exception, without the path, which has a column of its own.
pub(crate) fn encode_requested_change(change: &RequestedChange) -> Vec<u8> {
    let mut out = vec![FORM];
    put_document(&mut out, change.before.as_ref());
    put_document(&mut out, change.after.as_ref());
    out.extend_from_slice(&change.at.0.to_be_bytes());
    put_attributes(&mut out, &change.attributes);
    out
}

/// The reverse of [`encode_requested_change`].
pub(crate) fn decode_requested_change(path: Path, body: &[u8]) -> Option<RequestedChange> {
    decode(body, |bytes| {
        if bytes.byte()? != FORM {
            return None;
        }
        let before = bytes.document()?;
        let after = bytes.document()?;
        let at = Timestamp(i64::from_be_bytes(bytes.take(8)?.try_into().ok()?));
        let attributes = Arc::new(bytes.attributes()?);
        Some(RequestedChange { path, before, after, at, attributes })
    })
}

/// The `keys` column of a record.
pub(crate) fn encode_keys(keys: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(keys.iter().map(|key| key.len() + 2).sum());
    for key in keys {
        put_number(&mut out, key.len() as u64);
        out.extend_from_slice(key);
    }
    out
}

/// The reverse of [`encode_keys`].
pub(crate) fn decode_keys(body: &[u8]) -> Option<Vec<Vec<u8>>> {
    decode(body, |bytes| {
        let mut keys = Vec::new();
        while !bytes.0.is_empty() {
            let length = bytes.count()?;
            keys.push(bytes.take(length)?.to_vec());
        }
        Some(keys)
    })
}

/// How an outcome is stored.
pub(crate) fn outcome_number(outcome: ReceiptOutcome) -> i64 {
    match outcome {
        ReceiptOutcome::Done => 0,
        ReceiptOutcome::Coalesced => 1,
        ReceiptOutcome::Discarded => 2,
        ReceiptOutcome::Cancelled => 3,
    }
}

/// The reverse of [`outcome_number`].
pub(crate) fn outcome_of(number: i64) -> Option<ReceiptOutcome> {
    let all = [ReceiptOutcome::Done, ReceiptOutcome::Coalesced, ReceiptOutcome::Discarded, ReceiptOutcome::Cancelled];
    all.into_iter().find(|outcome| outcome_number(*outcome) == number)
}

pub(crate) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// None is 0; a document is its format plus 1, then its text.
pub(crate) fn put_document(out: &mut Vec<u8>, document: Option<&StoredDocument>) {
    match document {
        None => out.push(0),
        Some(document) => {
            put_number(out, u64::from(document.format) + 1);
            put_text(out, &document.json);
        }
    }
}

fn put_attributes(out: &mut Vec<u8>, attributes: &Attributes) {
    put_number(out, attributes.len() as u64);
    for (name, value) in attributes {
        put_text(out, name);
        put_text(out, value);
    }
}

/// Reads all of `body`; none if it is cut short, malformed or has something left over.
pub(crate) fn decode<T>(body: &[u8], read: impl FnOnce(&mut Bytes<'_>) -> Option<T>) -> Option<T> {
    let mut bytes = Bytes(body);
    let value = read(&mut bytes)?;
    bytes.0.is_empty().then_some(value)
}

/// What is still to be read.
pub(crate) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return None;
            }
            number |= part << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    /// A number of items still to come; each takes a byte at least, which bounds what is reserved for them.
    pub(crate) fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.number()?).ok()?;
        (count <= self.0.len()).then_some(count)
    }

    pub(crate) fn text(&mut self) -> Option<&'a str> {
        let length = self.count()?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    pub(crate) fn path(&mut self) -> Option<Path> {
        Path::parse(self.text()?).ok()
    }

    pub(crate) fn hook(&mut self) -> Option<HookNumber> {
        Some(HookNumber(u32::try_from(self.number()?).ok()?))
    }

    pub(crate) fn document(&mut self) -> Option<Option<StoredDocument>> {
        let form = self.number()?;
        if form == 0 {
            return Some(None);
        }
        let format = u32::try_from(form - 1).ok()?;
        Some(Some(StoredDocument { format, json: Arc::from(self.text()?) }))
    }

    pub(crate) fn attributes(&mut self) -> Option<Attributes> {
        let count = self.count()?;
        (0..count).map(|_| Some((self.text()?.to_owned(), self.text()?.to_owned()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document() -> impl Strategy<Value = Option<StoredDocument>> {
        proptest::option::of(
            (0u32..9, ".{0,40}").prop_map(|(format, json)| StoredDocument { format, json: json.into() }),
        )
    }

    fn entry() -> impl Strategy<Value = LogEntry> {
        let path = ".{1,12}".prop_map(|id| Path::root().child("things", &id).unwrap());
        let hook = any::<u32>().prop_map(HookNumber);
        prop_oneof![
            (path.clone(), document(), document(), proptest::collection::vec(hook.clone(), 0..3))
                .prop_map(|(path, before, after, hooks)| LogEntry::Change { path, before, after, hooks }),
            (path, hook.clone()).prop_map(|(path, hook)| LogEntry::Existing { path, hook }),
            (any::<u64>(), any::<u32>(), hook, 0..3u8).prop_map(|(revision, sequence, hook, action)| {
                LogEntry::Action {
                    request: RequestId { revision: Revision(revision), sequence, hook },
                    action: match action {
                        0 => RequestAction::Retry,
                        1 => RequestAction::Discard,
                        _ => RequestAction::Cancel,
                    },
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn d01_a_log_row_reads_back_as_it_was_written_and_no_part_of_it_reads(
            entries in proptest::collection::vec(entry(), 0..5),
            attributes in proptest::collection::btree_map(".{0,6}", ".{0,6}", 0..3),
        ) {
            let row = LogRow {
                revision: Revision(7),
                submission: SubmissionId(uuid::Uuid::from_u128(3)),
                at: Timestamp(-5),
                server: "a".into(),
                attributes: Arc::new(attributes),
                entries,
            };
            let body = encode_row(&row);
            prop_assert_eq!(&decode_row(row.revision, row.at, row.submission, &body).unwrap(), &row);
            for length in 0..body.len() {
                prop_assert!(decode_row(row.revision, row.at, row.submission, &body[..length]).is_err());
            }
            for entry in &row.entries {
                if let LogEntry::Existing { hook, .. } = entry {
                    prop_assert!(names_hook(encode_hooks(&row).as_deref(), *hook));
                }
            }
        }

        #[test]
        fn d01_whatever_bytes_a_damaged_row_has_reading_it_is_an_error_and_no_panic(
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = decode_row(Revision(1), Timestamp(0), SubmissionId(uuid::Uuid::nil()), &body);
            let _ = decode_keys(&body);
            let _ = decode_requested_change(Path::root(), &body);
        }
    }
}
