//! What a backup's stream is made of: one item after the other, each with a tag before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::driver::encoding::{
    Bytes, decode, decode_keys, decode_requested_change, decode_row, encode_keys, encode_requested_change, encode_row,
    outcome_number, outcome_of, put_document, put_number, put_text,
};
use crate::driver::record_index::DeclaredKind;
use crate::driver::{
    EntityRow, Exception, Fence, HookNumber, LogRow, Receipt, RecordId, RecordRow, RequestId, SlotId, SlotRow,
    SlotToken,
};
use crate::revision::{Revision, SubmissionId, Timestamp};

const KIND: u8 = 1;
const ENTITY: u8 = 2;
const LOG: u8 = 3;
const RECEIPT: u8 = 4;
const EXCEPTION: u8 = 5;
const SLOT: u8 = 6;
const RECORD: u8 = 7;
const END: u8 = 8;

/// One piece of a store. Kinds come before their records, entities before the log that completes them, the end last.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// A kind of records, with its indexes.
    Kind(Arc<str>, DeclaredKind),
    /// A row of the written-behind entities.
    Entity(EntityRow),
    /// A transaction.
    Log(Arc<LogRow>),
    /// A finished request.
    Receipt(Receipt),
    /// A request that is not finished and not simply waiting in the log.
    Exception(Box<Exception>),
    /// A slot's watermark and last token. Who leases it is no part of a backup.
    Slot(SlotRow),
    /// A record. Its index entries follow from its keys.
    Record(RecordRow),
    /// Nothing comes after it; how many items came before.
    End(u64),
}

fn put_request(out: &mut Vec<u8>, request: &RequestId) {
    put_number(out, u64::from(request.hook.0));
    put_number(out, request.revision.0);
    put_number(out, u64::from(request.sequence));
}

fn put_slot(out: &mut Vec<u8>, slot: SlotId) {
    put_number(out, u64::from(slot.hook.0));
    put_number(out, u64::from(slot.slot));
}

fn put_time(out: &mut Vec<u8>, at: Timestamp) {
    out.extend_from_slice(&at.0.to_be_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

impl Item {
    /// Its bytes, appended to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Item::Kind(name, kind) => {
                out.push(KIND);
                put_text(out, name);
                put_number(out, kind.indexes.len() as u64);
                for index in &kind.indexes {
                    put_text(out, index);
                }
                put_number(out, u64::from(kind.complete));
                out.push(u8::from(kind.grouped));
            }
            Item::Entity(row) => {
                out.push(ENTITY);
                put_text(out, row.path.as_str());
                put_number(out, row.revision.0);
                put_document(out, Some(&row.document));
            }
            Item::Log(row) => {
                out.push(LOG);
                put_number(out, row.revision.0);
                put_time(out, row.at);
                out.extend_from_slice(row.submission.0.as_bytes());
                put_bytes(out, &encode_row(row));
            }
            Item::Receipt(receipt) => {
                out.push(RECEIPT);
                put_request(out, &receipt.request);
                put_slot(out, receipt.fence.slot);
                put_number(out, receipt.fence.token.0);
                out.push(u8::try_from(outcome_number(receipt.outcome)).expect("outcomes are few"));
            }
            Item::Exception(exception) => {
                out.push(EXCEPTION);
                put_request(out, &exception.request);
                put_slot(out, exception.slot);
                put_text(out, &serde_json::to_string(&exception.state).expect("a state has only text keys"));
                put_number(out, u64::from(exception.attempts));
                put_number(out, u64::from(exception.deaths));
                out.push(u8::from(exception.error.is_some()));
                put_text(out, exception.error.as_deref().unwrap_or_default());
                put_text(out, exception.change.path.as_str());
                put_bytes(out, &encode_requested_change(&exception.change));
            }
            Item::Slot(slot) => {
                out.push(SLOT);
                put_slot(out, slot.slot);
                put_number(out, slot.token.0);
                put_number(out, slot.watermark.0);
            }
            Item::Record(record) => {
                out.push(RECORD);
                put_text(out, &record.kind);
                put_number(out, record.id.revision.0);
                put_number(out, u64::from(record.id.sequence));
                out.push(u8::from(record.closed));
                put_time(out, record.at);
                put_document(out, Some(&record.document));
                put_bytes(out, &encode_keys(&record.keys));
            }
            Item::End(count) => {
                out.push(END);
                put_number(out, *count);
            }
        }
    }

    /// The reverse of [`Item::encode`]; none if the bytes are no item, or more than one.
    pub(crate) fn decode(body: &[u8]) -> Option<Item> {
        decode(body, |bytes| {
            Some(match bytes.byte()? {
                KIND => {
                    let name = Arc::from(bytes.text()?);
                    let count = bytes.count()?;
                    let indexes = (0..count).map(|_| bytes.text().map(Arc::from)).collect::<Option<_>>()?;
                    let complete = small(bytes)?;
                    // How far others are built is not kept: they are built from the beginning.
                    let (grouped, frontiers) = (flag(bytes)?, BTreeMap::new());
                    Item::Kind(name, DeclaredKind { indexes, complete, grouped, frontiers })
                }
                ENTITY => {
                    let path = bytes.path()?;
                    let revision = Revision(bytes.number()?);
                    Item::Entity(EntityRow { path, revision, document: bytes.document()?? })
                }
                LOG => {
                    let revision = Revision(bytes.number()?);
                    let at = time(bytes)?;
                    let submission = SubmissionId(Uuid::from_bytes(bytes.take(16)?.try_into().ok()?));
                    let row = decode_row(revision, at, submission, long(bytes)?).ok()?;
                    Item::Log(Arc::new(row))
                }
                RECEIPT => {
                    let request = request(bytes)?;
                    let fence = Fence { slot: slot(bytes)?, token: SlotToken(bytes.number()?) };
                    Item::Receipt(Receipt { request, fence, outcome: outcome_of(i64::from(bytes.byte()?))? })
                }
                EXCEPTION => {
                    let (request, slot) = (request(bytes)?, slot(bytes)?);
                    let state = serde_json::from_str(bytes.text()?).ok()?;
                    let (attempts, deaths) = (small(bytes)?, small(bytes)?);
                    let has_error = flag(bytes)?;
                    let error = bytes.text()?;
                    let error = has_error.then(|| error.to_owned());
                    let path = bytes.path()?;
                    let change = decode_requested_change(path, long(bytes)?)?;
                    Item::Exception(Box::new(Exception { request, slot, state, attempts, deaths, error, change }))
                }
                SLOT => {
                    let slot = slot(bytes)?;
                    let token = SlotToken(bytes.number()?);
                    Item::Slot(SlotRow { slot, owner: None, token, watermark: Revision(bytes.number()?) })
                }
                RECORD => {
                    let kind = Arc::from(bytes.text()?);
                    let id = RecordId { revision: Revision(bytes.number()?), sequence: small(bytes)? };
                    let (closed, at) = (flag(bytes)?, time(bytes)?);
                    let document = bytes.document()??;
                    let keys = decode_keys(long(bytes)?)?;
                    Item::Record(RecordRow { kind, id, closed, at, document, keys })
                }
                END => Item::End(bytes.number()?),
                _ => return None,
            })
        })
    }
}

fn small(bytes: &mut Bytes<'_>) -> Option<u32> {
    u32::try_from(bytes.number()?).ok()
}

fn flag(bytes: &mut Bytes<'_>) -> Option<bool> {
    match bytes.byte()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn time(bytes: &mut Bytes<'_>) -> Option<Timestamp> {
    Some(Timestamp(i64::from_be_bytes(bytes.take(8)?.try_into().ok()?)))
}

fn long<'a>(bytes: &mut Bytes<'a>) -> Option<&'a [u8]> {
    let length = bytes.count()?;
    bytes.take(length)
}

fn request(bytes: &mut Bytes<'_>) -> Option<RequestId> {
    let hook = HookNumber(small(bytes)?);
    let revision = Revision(bytes.number()?);
    Some(RequestId { revision, sequence: small(bytes)?, hook })
}

fn slot(bytes: &mut Bytes<'_>) -> Option<SlotId> {
    let hook = HookNumber(small(bytes)?);
    Some(SlotId { hook, slot: small(bytes)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::StoredDocument;

    #[test]
    fn d35_items_read_back_and_no_part_of_one_reads() {
        let row = EntityRow {
            path: crate::Path::root().child("things", "é/ü").unwrap(),
            revision: Revision(300),
            document: StoredDocument { format: 2, json: "{\"a\":1}".into() },
        };
        let mut bytes = Vec::new();
        Item::Entity(row.clone()).encode(&mut bytes);
        assert!(matches!(Item::decode(&bytes), Some(Item::Entity(read)) if read == row));
        for length in 0..bytes.len() {
            assert!(Item::decode(&bytes[..length]).is_none(), "{length}");
        }
        bytes.push(0);
        assert!(Item::decode(&bytes).is_none());
    }
}
