//! Queries of records, typed.

use std::marker::PhantomData;

use crate::document::{Form, decode_json};
use crate::driver::{DriverError, RecordId, RecordRow};
use crate::error::{QueryError, ReadError};
use crate::record::{IndexKey, Record, RecordCursor, RecordQuery};
use crate::revision::Timestamp;
use crate::state::State;

/// The most records of one page.
pub const PAGE_MAX: usize = 1_000;

/// Asks for a page of records of one kind by one of its declared indexes.
#[derive(Debug, Clone)]
pub struct RecordSearch {
    index: String,
    prefix: IndexKey,
    cursor: Option<RecordCursor>,
    backwards: bool,
    limit: usize,
}

impl RecordSearch {
    /// All records in the order of this index, 100 to a page.
    #[must_use]
    pub fn by(index: impl Into<String>) -> RecordSearch {
        RecordSearch { index: index.into(), prefix: IndexKey::new(), cursor: None, backwards: false, limit: 100 }
    }

    /// Only those whose entry begins with this.
    #[must_use]
    pub fn prefix(mut self, prefix: IndexKey) -> Self {
        self.prefix = prefix;
        self
    }

    /// Against the index's order.
    #[must_use]
    pub fn backwards(mut self) -> Self {
        self.backwards = true;
        self
    }

    /// Behind the place at which another page ended (or before it, backwards).
    #[must_use]
    pub fn after(mut self, cursor: Option<RecordCursor>) -> Self {
        self.cursor = cursor;
        self
    }

    /// So many to a page; 1 to [`PAGE_MAX`].
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit.clamp(1, PAGE_MAX);
        self
    }
}

/// A record with what the store knows about it.
#[derive(Debug, Clone)]
pub struct Stored<R> {
    /// Which one.
    pub id: RecordId,
    /// When it was appended, by the driver's clock.
    pub at: Timestamp,
    /// Closed records are never updated again.
    pub closed: bool,
    /// Its content, or why that can't be read; the rest of the page reads all the same.
    pub value: Result<R, ReadError>,
}

/// A page of records.
#[derive(Debug, Clone)]
pub struct RecordPageOf<R> {
    /// The records, in the order that was asked for.
    pub items: Vec<Stored<R>>,
    /// Where to go on; none at the end.
    pub next: Option<RecordCursor>,
    kind: PhantomData<fn() -> R>,
}

impl State {
    /// Reads a page of records from the store: all that was committed before the call, also by other servers.
    ///
    /// # Errors
    /// [`QueryError::Store`]: the store can't be reached; no index of this name is declared; or it is being built
    /// ([`DriverError::IndexIncomplete`]), and it helps to ask again later.
    pub async fn records<R: Record>(&self, search: RecordSearch) -> Result<RecordPageOf<R>, QueryError> {
        let query = RecordQuery {
            kind: R::KIND.into(),
            index: search.index,
            prefix: search.prefix,
            cursor: search.cursor,
            backwards: search.backwards,
            limit: search.limit,
        };
        let page = match self.driver().query_records(&query).await {
            // An older build has appended some: what is left to do may fit into one step.
            Err(DriverError::IndexIncomplete { .. }) if self.core().completes_indexes(&query.kind).await => {
                self.driver().query_records(&query).await?
            }
            page => page?,
        };
        let items = page.rows.iter().map(read).collect();
        Ok(RecordPageOf { items, next: page.next, kind: PhantomData })
    }
}

fn read<R: Record>(row: &RecordRow) -> Stored<R> {
    let value = decode_json(&row.document.json, row.document.format, &Form::of_record::<R>())
        .map_err(|reason| ReadError::Unreadable { path: format!("record {} of kind {}", row.id, row.kind), reason });
    Stored { id: row.id, at: row.at, closed: row.closed, value }
}
