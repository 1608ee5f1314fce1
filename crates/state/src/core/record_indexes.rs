//! Builds indexes that were added to kinds of records which have records already: a page is read, its entries are had from the
//! type, and the driver enters them if the page is still as it was read. Any server does it whose build has the type; one
//! that finds another at it lets it go on.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use crate::driver::{DriverError, IndexPage, IndexStep, IndexWork};
use crate::record::{IndexKey, RecordKeys};
use crate::testing::points::{Pass, name as point};

/// How many records one step looks at: each step holds the write lock for as long as entering them takes.
const ROWS_MAX: usize = 500;
/// How many steps are taken before other work has its turn.
const STEPS_MAX: usize = 64;
/// What is left to writers between two steps.
const PAUSE: Duration = Duration::from_millis(2);

impl Core {
    /// Builds on at the indexes of all kinds; says whether every one is complete. A kind that fails does not hold up the others.
    pub(crate) async fn build_indexes(&self) -> Result<bool, DriverError> {
        let mut complete = Ok(true);
        for keys in &self.options.record_keys {
            match self.build_indexes_of(keys).await {
                Ok(of_kind) => complete = complete.map(|all| all && of_kind),
                Err(error) => complete = complete.and(Err(error)),
            }
        }
        complete
    }

    async fn build_indexes_of(&self, keys: &RecordKeys) -> Result<bool, DriverError> {
        for _ in 0..STEPS_MAX {
            let turn = self.indexing.lock().await;
            let Some(page) = self.next_page(keys).await? else { return Ok(true) };
            match self.enter_page(keys, page).await? {
                IndexStep::Complete => return Ok(true),
                // Another server is at it.
                IndexStep::Overtaken => return Ok(false),
                IndexStep::Entered => {}
            }
            drop(turn);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(false)
    }

    /// Whether the indexes of a kind are complete, if need be after one step: few records of an older build are entered when
    /// they are asked for; a whole index is left to the upkeep.
    pub(crate) async fn completes_indexes(&self, kind: &str) -> bool {
        let Some(keys) = self.options.record_keys.iter().find(|keys| *keys.kind == *kind) else { return false };
        match self.next_page(keys).await {
            Ok(None) => return true,
            Ok(Some(page)) if page.last => {}
            Ok(Some(_)) | Err(_) => return false,
        }
        // Whoever else asks meanwhile waits for the same step, and then finds nothing left to do.
        let _turn = self.indexing.lock().await;
        match self.next_page(keys).await {
            Ok(None) => true,
            Ok(Some(page)) => page.last && matches!(self.enter_page(keys, page).await, Ok(IndexStep::Complete)),
            Err(_) => false,
        }
    }

    async fn next_page(&self, keys: &RecordKeys) -> Result<Option<IndexPage>, DriverError> {
        let metrics = &self.metrics.record_indexes;
        match self.driver.records_to_index(&keys.kind, keys.indexes, ROWS_MAX).await? {
            IndexWork::Complete => {
                metrics.note_complete(&keys.kind);
                Ok(None)
            }
            IndexWork::Page(page) => {
                metrics.note_page(&keys.kind, page.from.revision);
                Ok(Some(page))
            }
        }
    }

    async fn enter_page(&self, keys: &RecordKeys, page: IndexPage) -> Result<IndexStep, DriverError> {
        let page = Arc::new(page);
        let (of, given) = (keys.clone(), page.clone());
        // A page of large values takes a while to read.
        let entries = tokio::task::spawn_blocking(move || entries_of(&of, &given));
        let (entries, unreadable) = entries.await.map_err(|error| {
            DriverError::Unavailable(format!("the index entries of records of kind {} failed: {error}", keys.kind))
        })?;
        if self.points.pass(point::UPKEEP_INDEXING).await == Pass::Cut {
            return Err(DriverError::Unavailable("cut off at a test point".to_owned()));
        }
        let step = self.driver.index_records(page.clone(), entries).await?;
        if step != IndexStep::Overtaken {
            self.metrics.record_indexes.note_entered(&keys.kind, page.lacking.len(), unreadable);
        }
        if step == IndexStep::Complete {
            self.metrics.record_indexes.note_complete(&keys.kind);
            tracing::info!(kind = &*keys.kind, "every record of this kind is in all of its indexes");
        }
        Ok(step)
    }
}

/// The entries of each record of a page, and how many have none: they can't be read, and stand before all others.
fn entries_of(keys: &RecordKeys, page: &IndexPage) -> (Vec<Vec<Vec<u8>>>, usize) {
    let mut unreadable = 0;
    let entries = page.lacking.iter().map(|row| {
        keys.of_document(&row.document).unwrap_or_else(|why| {
            unreadable += 1;
            tracing::warn!(kind = &*row.kind, record = %row.id, why, "a record can't be read; its new index entries are empty");
            vec![IndexKey::new().into_bytes(); usize::try_from(keys.indexes).unwrap_or(0)]
        })
    });
    (entries.collect(), unreadable)
}
