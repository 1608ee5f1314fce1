//! What a memory store holds, and every operation on it as a plain function.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use uuid::Uuid;

use super::super::leases::Leases;
use super::super::record_index::{
    DeclaredKind, DeclaredKinds, PAGE_BYTES_MAX, PAGE_RECORDS_MAX, end_of_prefix, group_of, key_count, step_of,
};
use super::super::{
    Batch, DriverError, EntityRow, Exception, Fence, IndexEntry, IndexPage, IndexStep, IndexWork, LogPage, LogRow,
    Meta, Pending, Receipt, RecordId, RecordRow, RecordWrite, RequestId, Settle, Settled, SlotId, SlotToken,
    StoredState, StoredTree,
};
use crate::path::Path;
use crate::record::{IndexDeclaration, RecordCursor, RecordPage, RecordQuery, Retention};
use crate::revision::{Epoch, Revision, SubmissionId, Timestamp};

/// The format that this build writes: the memory driver has no older ones.
const FORMAT: u32 = 1;

type RecordKey = (Arc<str>, RecordId);

pub(super) struct Data {
    epoch: Epoch,
    installation: Uuid,
    format: u32,
    /// The head as `meta` says it; the newest row's revision in a sound store.
    head: Revision,
    pub(super) compacted: Revision,
    log: VecDeque<Arc<LogRow>>,
    entities_at: Revision,
    entities: BTreeMap<Path, EntityRow>,
    pub(super) leases: Leases,
    receipts: BTreeMap<RequestId, Receipt>,
    pub(super) exceptions: BTreeMap<RequestId, Exception>,
    kinds: DeclaredKinds,
    records: BTreeMap<RecordKey, RecordRow>,
    index: BTreeSet<IndexEntry>,
}

impl Data {
    pub(super) fn new() -> Self {
        Data {
            epoch: Epoch(Uuid::new_v4()),
            installation: Uuid::new_v4(),
            format: FORMAT,
            head: Revision::ZERO,
            compacted: Revision::ZERO,
            log: VecDeque::new(),
            entities_at: Revision::ZERO,
            entities: BTreeMap::new(),
            leases: Leases::default(),
            receipts: BTreeMap::new(),
            exceptions: BTreeMap::new(),
            kinds: DeclaredKinds::default(),
            records: BTreeMap::new(),
            index: BTreeSet::new(),
        }
    }

    /// An empty store that knows the same kinds of records, as a server's `open` would have declared them.
    pub(super) fn recreated(&self) -> Self {
        let mut kinds = self.kinds.clone();
        for kind in kinds.0.values_mut() {
            kind.complete = u32::try_from(kind.indexes.len()).unwrap_or(u32::MAX);
            kind.frontiers.clear();
        }
        Data { kinds, ..Data::new() }
    }

    pub(super) fn with_kinds(&self, kinds: DeclaredKinds) -> Self {
        Data { kinds, ..Data::new() }
    }

    pub(super) fn kinds(&self) -> &DeclaredKinds {
        &self.kinds
    }

    pub(super) fn replaced_by(&self, stored: StoredState) -> Self {
        let mut kinds = self.kinds.clone();
        for kind in kinds.0.values_mut() {
            // How far they were built is said by ids of another history.
            kind.frontiers.clear();
        }
        for row in &stored.record_kinds {
            let there = DeclaredKind::from(row);
            let kind = kinds.0.get(&row.kind).map_or_else(|| there.clone(), |here| here.restored(&there));
            kinds.0.insert(row.kind.clone(), kind);
        }
        Data {
            epoch: stored.meta.epoch,
            installation: stored.meta.installation,
            format: stored.meta.format,
            head: stored.meta.head,
            compacted: stored.meta.compacted,
            log: stored.log.into(),
            entities_at: stored.tree.revision,
            entities: stored.tree.entities.into_iter().map(|row| (row.path.clone(), row)).collect(),
            leases: Leases::new(stored.servers, stored.slots, stored.token_counter),
            receipts: stored.receipts.into_iter().map(|receipt| (receipt.request, receipt)).collect(),
            exceptions: stored.exceptions.into_iter().map(|row| (row.request, row)).collect(),
            kinds,
            records: stored.records.into_iter().map(|row| ((row.kind.clone(), row.id), row)).collect(),
            index: stored.index_entries.into_iter().collect(),
        }
    }

    pub(super) fn to_stored(&self) -> StoredState {
        let (servers, slots) = self.leases.rows();
        StoredState {
            meta: self.meta(),
            token_counter: self.leases.token_counter(),
            log: self.log.iter().cloned().collect(),
            tree: self.tree(),
            receipts: self.receipts.values().cloned().collect(),
            exceptions: self.exceptions.values().cloned().collect(),
            slots,
            servers,
            records: self.records.values().cloned().collect(),
            index_entries: self.index.iter().cloned().collect(),
            record_kinds: self.kinds.rows(),
        }
    }

    pub(super) fn begin_epoch(&mut self, tokens_above: SlotToken) {
        self.epoch = Epoch(Uuid::new_v4());
        self.leases.begin_epoch(tokens_above);
    }

    pub(super) fn head(&self) -> Revision {
        self.head
    }

    pub(super) fn meta(&self) -> Meta {
        Meta {
            epoch: self.epoch,
            installation: self.installation,
            format: self.format,
            head: self.head,
            compacted: self.compacted,
        }
    }

    pub(super) fn tree(&self) -> StoredTree {
        StoredTree { revision: self.entities_at, entities: self.entities.values().cloned().collect() }
    }

    fn rows_after(&self, after: Revision) -> impl Iterator<Item = &Arc<LogRow>> {
        let start = self.log.partition_point(|row| row.revision <= after);
        self.log.range(start..)
    }

    pub(super) fn read_log(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<LogPage, DriverError> {
        if epoch != self.epoch {
            return Err(DriverError::EpochChanged { expected: epoch, found: self.epoch });
        }
        if after > self.head {
            return Err(DriverError::SetBack { head: self.head, seen: after });
        }
        if after < self.compacted {
            return Err(DriverError::Compacted { reaches_back_to: self.compacted });
        }
        let rows: Vec<Arc<LogRow>> = self.rows_after(after).take(rows_max.max(1)).cloned().collect();
        super::super::check_no_gap(after, &rows, rows_max.max(1), self.head)?;
        Ok(LogPage { rows, head: self.head })
    }

    pub(super) fn find_submission(&self, submission: SubmissionId, after: Revision) -> Option<Revision> {
        let newest_first = self.log.iter().rev().take_while(|row| row.revision > after);
        newest_first.clone().find(|row| row.submission == submission).map(|row| row.revision)
    }

    /// Applies a batch whole, or fails and has changed nothing.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<(), DriverError> {
        super::super::check_batch(self.head, &batch)?;
        // Everything that can fail comes before the first change. An update may name a record of the same batch.
        let mut appended: BTreeMap<RecordKey, bool> = BTreeMap::new();
        for write in &batch.records {
            match write {
                RecordWrite::Append(row) => {
                    self.kinds.check(row)?;
                    appended.insert((row.kind.clone(), row.id), row.closed);
                }
                RecordWrite::Update(row) => {
                    self.kinds.check(row)?;
                    let key = (row.kind.clone(), row.id);
                    let closed = appended.get(&key).copied().or_else(|| self.records.get(&key).map(|row| row.closed));
                    if closed != Some(false) {
                        return Err(DriverError::RecordClosed(row.id));
                    }
                    appended.insert(key, row.closed);
                }
            }
        }
        for row in batch.rows {
            self.head = row.revision;
            self.log.push_back(row);
        }
        for write in batch.records {
            match write {
                RecordWrite::Append(row) => self.put_record(row),
                RecordWrite::Update(row) => {
                    let appended_at = self.remove_record(&row.kind, row.id).map_or(row.at, |old| old.at);
                    self.put_record(RecordRow { at: appended_at, ..row });
                }
            }
        }
        for receipt in batch.receipts {
            self.put_receipt(receipt);
        }
        for exception in batch.exceptions {
            self.put_exception(exception);
        }
        if let Some(tokens_above) = batch.new_epoch {
            self.begin_epoch(tokens_above);
        }
        Ok(())
    }

    fn index_entries<'a>(&'a self, row: &'a RecordRow) -> impl Iterator<Item = IndexEntry> + 'a {
        let names = self.kinds.0.get(&row.kind).map_or(&[][..], |kind| &kind.indexes);
        names.iter().zip(&row.keys).map(|(index, key)| IndexEntry {
            kind: row.kind.clone(),
            index: index.clone(),
            key: key.clone(),
            id: row.id,
        })
    }

    fn put_record(&mut self, row: RecordRow) {
        if let Some(kind) = self.kinds.0.get_mut(&row.kind) {
            kind.lower(key_count(&row.keys), row.id);
        }
        let entries: Vec<IndexEntry> = self.index_entries(&row).collect();
        self.index.extend(entries);
        self.records.insert((row.kind.clone(), row.id), row);
    }

    fn remove_record(&mut self, kind: &Arc<str>, id: RecordId) -> Option<RecordRow> {
        let row = self.records.remove(&(kind.clone(), id))?;
        let entries: Vec<IndexEntry> = self.index_entries(&row).collect();
        for entry in entries {
            self.index.remove(&entry);
        }
        Some(row)
    }

    fn put_receipt(&mut self, receipt: Receipt) {
        self.exceptions.remove(&receipt.request);
        self.receipts.entry(receipt.request).or_insert(receipt);
    }

    /// A receipt that is there already wins (invariant 5).
    fn put_exception(&mut self, exception: Exception) {
        if !self.receipts.contains_key(&exception.request) {
            self.exceptions.insert(exception.request, exception);
        }
    }

    pub(super) fn settle(&mut self, item: Settle, now: Timestamp) -> Settled {
        let fence: Fence = match &item {
            Settle::Receipt(receipt) => receipt.fence,
            Settle::Exception { fence, .. } | Settle::Watermark { fence, .. } => *fence,
        };
        if !self.leases.holds(&fence, now) {
            return Settled::Refused;
        }
        match item {
            Settle::Receipt(receipt) => self.put_receipt(receipt),
            Settle::Exception { exception, .. } => self.put_exception(*exception),
            Settle::Watermark { fence, to } => {
                self.leases.raise(fence.slot, to);
            }
        }
        Settled::Durable
    }

    pub(super) fn pending(&self, slot: SlotId, after: Revision, rows_max: usize) -> Pending {
        let mut rows = Vec::new();
        let mut read_to = self.head;
        for row in self.rows_after(after).filter(|row| row.concerns(slot.hook)) {
            if rows.len() == rows_max.max(1) {
                // The row that does not fit any more is not covered; everything before it is.
                read_to = Revision(row.revision.0 - 1);
                break;
            }
            rows.push(row.clone());
        }
        let receipts = self
            .receipts
            .keys()
            .filter(|request| request.hook == slot.hook && request.revision > after && request.revision <= read_to)
            .copied()
            .collect();
        let exceptions = self.exceptions.values().filter(|row| row.slot == slot).cloned().collect();
        Pending { rows, receipts, exceptions, read_to, head: self.head, epoch: self.epoch }
    }

    /// Refuses what a caller knows of another store.
    pub(super) fn in_epoch(&mut self, expected: Epoch) -> Result<&mut Data, DriverError> {
        if self.epoch == expected { Ok(self) } else { Err(DriverError::EpochChanged { expected, found: self.epoch }) }
    }

    pub(super) fn write_entities(
        &mut self,
        from: Revision,
        to: Revision,
        changed: Vec<EntityRow>,
        removed: Vec<Path>,
    ) -> Result<(), DriverError> {
        if self.entities_at >= to || from == to {
            return Ok(());
        }
        super::super::check_entities_step(self.entities_at, from, to, self.head)?;
        for path in removed {
            self.entities.remove(&path);
        }
        for row in changed {
            self.entities.insert(row.path.clone(), row);
        }
        self.entities_at = to;
        Ok(())
    }

    pub(super) fn replace_entities(&mut self, tree: StoredTree) -> Result<(), DriverError> {
        if self.entities_at >= tree.revision {
            return Ok(());
        }
        super::super::check_entities_step(self.compacted, Revision::ZERO, tree.revision, self.head)?;
        self.entities_at = tree.revision;
        self.entities = tree.entities.into_iter().map(|row| (row.path.clone(), row)).collect();
        Ok(())
    }

    pub(super) fn compact(&mut self, keep: Timestamp, floor: Revision, rows_max: usize) -> Revision {
        let watermark = self.leases.watermark_min().unwrap_or(Revision(u64::MAX));
        let bound = floor.min(self.entities_at).min(watermark).min(Revision(self.head.0.saturating_sub(1)));
        for _ in 0..rows_max {
            match self.log.front() {
                Some(row) if row.revision <= bound && row.at < keep => {
                    self.compacted = row.revision;
                    self.log.pop_front();
                }
                _ => break,
            }
        }
        let compacted = self.compacted;
        self.receipts.retain(|request, _| request.revision > compacted);
        compacted
    }

    pub(super) fn declare(&mut self, declaration: &IndexDeclaration) -> Result<(), DriverError> {
        let has_records = self.records.keys().any(|(kind, _)| *kind == declaration.kind);
        self.kinds.declare(declaration, has_records).map(|_| ())
    }

    pub(super) fn query_records(&self, query: &RecordQuery) -> Result<RecordPage, DriverError> {
        let number = self.kinds.index_of(query)?;
        let kind = &self.kinds.0[&query.kind];
        kind.check_complete(&query.kind, number, kind.complete)?;
        let index = &kind.indexes[number];
        let prefix = query.prefix.clone().into_bytes();
        let entry = |key: Vec<u8>, id: RecordId| IndexEntry { kind: query.kind.clone(), index: index.clone(), key, id };
        let first = RecordId { revision: Revision::ZERO, sequence: 0 };
        let mut low = Bound::Included(entry(prefix.clone(), first));
        let mut high = end_of_prefix(&prefix).map_or(Bound::Unbounded, |end| Bound::Excluded(entry(end, first)));
        if let Some(RecordCursor { key, id }) = &query.cursor {
            // A cursor from outside the prefix leaves the range's own end where it is.
            let place = entry(key.clone(), *id);
            if query.backwards {
                if !matches!(&high, Bound::Excluded(end) if *end <= place) {
                    high = Bound::Excluded(place);
                }
            } else if !matches!(&low, Bound::Included(start) if *start > place) {
                low = Bound::Excluded(place);
            }
        }
        if is_empty_range(&low, &high) {
            return Ok(RecordPage { rows: Vec::new(), next: None });
        }
        let of_this_index = |found: &&IndexEntry| found.kind == query.kind && found.index == *index;
        let range = self.index.range((low, high));
        let mut found: Box<dyn Iterator<Item = &IndexEntry>> = if query.backwards {
            Box::new(range.rev().skip_while(|entry| !of_this_index(entry)))
        } else {
            Box::new(range)
        };
        let limit = query.limit.clamp(1, PAGE_RECORDS_MAX);
        let mut page = RecordPage { rows: Vec::new(), next: None };
        let mut last: Option<&IndexEntry> = None;
        let mut bytes = 0;
        while let Some(entry) = found.next().filter(of_this_index) {
            let Some(row) = self.records.get(&(entry.kind.clone(), entry.id)) else { continue };
            bytes += row.document.json.len();
            if page.rows.len() == limit || (bytes > PAGE_BYTES_MAX && !page.rows.is_empty()) {
                page.next = last.map(|last| RecordCursor { key: last.key.clone(), id: last.id });
                break;
            }
            page.rows.push(row.clone());
            last = Some(entry);
        }
        Ok(page)
    }

    fn records_from(&self, kind: &Arc<str>, from: RecordId) -> impl Iterator<Item = &RecordRow> {
        let of_kind = self.records.range((kind.clone(), from)..).take_while(move |((other, _), _)| other == kind);
        of_kind.map(|(_, row)| row)
    }

    pub(super) fn records_to_index(&self, name: &str, indexes: u32, rows_max: usize) -> IndexWork {
        let Some((name, kind)) = self.kinds.0.get_key_value(name).filter(|(_, kind)| kind.complete < indexes) else {
            return IndexWork::Complete;
        };
        let from = kind.frontier(indexes);
        let mut page = IndexPage { kind: name.clone(), indexes, from, to: from, lacking: Vec::new(), last: true };
        let mut bytes = 0;
        for (number, row) in self.records_from(name, from).enumerate() {
            let lacks = key_count(&row.keys) < indexes;
            bytes += if lacks { row.document.json.len() } else { 0 };
            if number == rows_max.max(1) || (bytes > PAGE_BYTES_MAX && !page.lacking.is_empty()) {
                page.last = false;
                break;
            }
            page.to = row.id.next();
            page.lacking.extend(lacks.then(|| row.clone()));
        }
        IndexWork::Page(page)
    }

    pub(super) fn index_records(&mut self, page: &IndexPage, keys: &[Vec<Vec<u8>>]) -> IndexStep {
        let Some(kind) = self.kinds.0.get(&page.kind) else { return IndexStep::Overtaken };
        if !kind.is_as_read(page) {
            return IndexStep::Overtaken;
        }
        let there = self.records_from(&page.kind, page.from).take_while(|row| row.id < page.to);
        let there = there.map(|row| (row.id, row.keys.clone(), Some(row.document.json.clone())));
        let Some(changed) = step_of(page, keys, there) else { return IndexStep::Overtaken };
        for (id, _, keys) in changed {
            if let Some(row) = self.remove_record(&page.kind, id) {
                self.put_record(RecordRow { keys, ..row });
            }
        }
        let every_one =
            page.last && self.records_from(&page.kind, page.to).all(|row| key_count(&row.keys) >= page.indexes);
        if let Some(kind) = self.kinds.0.get_mut(&page.kind) {
            kind.advance(page.indexes, page.to, every_one);
        }
        if every_one { IndexStep::Complete } else { IndexStep::Entered }
    }

    pub(super) fn prune_records(&mut self, retention: &Retention, rows_max: usize) -> usize {
        let mut going: BTreeSet<RecordId> = BTreeSet::new();
        let mut groups: BTreeMap<&[u8], Vec<RecordId>> = BTreeMap::new();
        for ((_, id), row) in self.records.iter().filter(|((kind, _), _)| *kind == retention.kind) {
            if retention.before.is_some_and(|before| row.at < before) {
                going.insert(*id);
            }
            if let Some(key) = row.keys.first() {
                groups.entry(group_of(key)).or_default().push(*id);
            }
        }
        if let Some(per_key) = retention.per_key {
            for ids in groups.values() {
                let excess = ids.len().saturating_sub(usize::try_from(per_key).unwrap_or(usize::MAX));
                going.extend(&ids[..excess]);
            }
        }
        let going: Vec<RecordId> = going.into_iter().take(rows_max).collect();
        for id in &going {
            self.remove_record(&retention.kind, *id);
        }
        going.len()
    }
}

fn is_empty_range(low: &Bound<IndexEntry>, high: &Bound<IndexEntry>) -> bool {
    match (low, high) {
        (Bound::Included(low) | Bound::Excluded(low), Bound::Excluded(high)) => low >= high,
        _ => false,
    }
}
