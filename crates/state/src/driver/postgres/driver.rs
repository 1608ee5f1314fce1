//! The contract of [`Driver`] on top of the connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_postgres::Row;

use super::super::encoding::decode_requested_change;
use super::super::{
    Begun, Burden, Driver, DriverError, EntityRow, Exception, Fence, HookNumber, IndexPage, IndexStep, IndexWork,
    LogPage, Meta, Pending, ServerId, ServerRow, Settle, Settled, SlotId, SlotRow, StoredState, StoredTree,
};
use super::connection::{Call, Role, values};
use super::contraction::Alone;
use super::link::Link;
use super::listener::Listener;
use super::log::{NEWS_ROWS, NEWS_TOLD, Page, StoredEntities, news_call, page_call, read_news, read_page};
use super::records::{self, Kinds};
use super::settlement::{column_number, column_request, column_slot};
use super::{
    Shared, burden, compaction, entities, log, pending, record_indexes, schema, session, settlement, slots, stored,
};
use crate::clock::Clock;
use crate::path::Path;
use crate::record::{IndexDeclaration, RecordPage, RecordQuery, Retention};
use crate::revision::{Epoch, Revision, SubmissionId, Timestamp};

/// How long what a look at the log has shown beside its rows is not asked for again, where few rows are all that is new. A new
/// epoch and damage are told of; a raised format, and how far the entities are written, is learned so much later.
const LOOKED_FOR: Duration = Duration::from_millis(500);

/// A server's connections, one for each role.
pub(super) struct Links {
    pub(super) shared: Arc<Shared>,
    pub(super) commit: Link,
    pub(super) settle: Link,
    pub(super) read: Link,
    pub(super) upkeep: Link,
    pub(super) watch: Link,
    /// The kinds of records as this epoch's tables number them.
    kinds: Mutex<(Option<Epoch>, Arc<Kinds>)>,
    /// What this build declares, for tables that are made anew.
    declarations: Mutex<Vec<IndexDeclaration>>,
    /// Whether the release before still shares the store.
    pub(super) alone: Mutex<Alone>,
    /// As the last look at the log has seen them.
    pub(super) entities: Mutex<Option<StoredEntities>>,
}

/// A server's way to the store. Clones are one driver.
#[derive(Clone)]
pub(super) struct PostgresDriver {
    pub(super) links: Arc<Links>,
    /// Started when news are first waited for; ends with the last clone.
    listener: Arc<Mutex<Option<Listener>>>,
}

impl PostgresDriver {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let link = |role| Link::new(shared.clone(), role);
        let links = Links {
            commit: link(Role::Commit),
            settle: link(Role::Settle),
            read: link(Role::Read),
            upkeep: link(Role::Upkeep),
            watch: link(Role::Watch),
            kinds: Mutex::default(),
            declarations: Mutex::default(),
            alone: Mutex::default(),
            entities: Mutex::default(),
            shared,
        };
        PostgresDriver { links: Arc::new(links), listener: Arc::default() }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.links.shared
    }

    pub(super) fn kinds(&self) -> Arc<Kinds> {
        self.links.kinds.lock().1.clone()
    }

    /// Makes or migrates the tables, and takes in how they number the kinds of records.
    async fn declare(&self, records: &[IndexDeclaration]) -> Result<Meta, DriverError> {
        let (meta, kinds) = schema::open(self.shared(), records).await?;
        self.shared().take_format(meta.format);
        *self.links.kinds.lock() = (Some(meta.epoch), Arc::new(kinds));
        Ok(meta)
    }

    /// A store that was made anew, or restored, has numbers of its own for kinds of records.
    pub(super) async fn follow_epoch(&self, epoch: Epoch) -> Result<(), DriverError> {
        if self.links.kinds.lock().0.is_none_or(|known| known == epoch) {
            return Ok(());
        }
        let declarations = self.links.declarations.lock().clone();
        self.declare(&declarations).await.map(drop)
    }

    /// Takes over what a look at the log has shown beside its rows.
    pub(super) fn took(&self, page: &Page) {
        self.shared().take_format(page.format);
        *self.links.entities.lock() = Some(page.entities);
    }

    /// Whether all that a look at the log shows beside its rows was seen a moment ago.
    fn has_looked_lately(&self, epoch: Epoch) -> bool {
        let entities = *self.links.entities.lock();
        entities.is_some_and(|entities| entities.epoch == epoch && entities.looked_at.elapsed() < LOOKED_FOR)
    }

    /// The few rows that are all that is new, if so; without what else a look at the log shows, since that was seen a moment
    /// ago.
    pub(super) async fn read_news(
        &self,
        epoch: Epoch,
        after: Revision,
        rows_max: usize,
    ) -> Result<Option<LogPage>, DriverError> {
        let is_enough = rows_max as u64 >= NEWS_ROWS && self.shared().news.is_a_few_rows(after, NEWS_TOLD);
        if !is_enough || !self.has_looked_lately(epoch) {
            return Ok(None);
        }
        let rows = self.read(vec![news_call(epoch, after, self.shared().format())]).await?;
        // Why something can't be read, the whole look says.
        Ok(read_news(&rows[0], after).unwrap_or(None))
    }

    fn limit(&self) -> Duration {
        self.shared().options.answer_limit
    }

    /// Runs statements on the connection for reading.
    pub(super) async fn read(&self, calls: Vec<Call>) -> Result<Vec<Vec<Row>>, DriverError> {
        self.links.read.get().await?.run(calls, self.limit()).await
    }
}

#[async_trait]
impl Driver for PostgresDriver {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.shared().clock()
    }

    fn entities_at(&self, epoch: Epoch) -> Revision {
        let entities = *self.links.entities.lock();
        entities.filter(|entities| entities.epoch == epoch).map_or(Revision::ZERO, |entities| entities.at)
    }

    fn lock_limit(&self) -> Option<Duration> {
        Some(self.shared().options.lock_limit)
    }

    async fn open(&self, records: &[IndexDeclaration]) -> Result<Meta, DriverError> {
        let meta = self.declare(records).await?;
        *self.links.declarations.lock() = records.to_vec();
        let sent = Instant::now();
        let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
        let rows = self.read(vec![Call::plain(now)]).await?;
        if let Some(row) = rows[0].first() {
            self.shared().clock.observe(Timestamp(row.get(0)), sent);
        }
        Ok(meta)
    }

    async fn meta(&self) -> Result<Meta, DriverError> {
        let rows = self.read(vec![schema::meta()]).await?;
        schema::read_meta(&rows[0])
    }

    async fn load(&self) -> Result<StoredTree, DriverError> {
        entities::load_or_mend(self).await
    }

    async fn read_log(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<LogPage, DriverError> {
        let rows_max = rows_max.max(1);
        let look = self.shared().news.look();
        let page = match self.read_news(epoch, after, rows_max).await? {
            Some(page) => page,
            None => {
                let sent = Instant::now();
                let rows = self.read(vec![page_call(epoch, after, rows_max, Some(0))]).await?;
                let read = read_page(&rows[0], epoch, after, rows_max, sent)?;
                self.took(&read);
                read.page
            }
        };
        if self.shared().news.seen(look, epoch, page.head) {
            self.shared().news.wake();
        }
        Ok(page)
    }

    async fn wait_for_news(&self, after: Revision, limit: Duration) {
        {
            let mut listener = self.listener.lock();
            if listener.is_none() {
                *listener = Some(Listener::start(&self.links));
            }
        }
        self.shared().news.wait(after, limit).await;
    }

    async fn find_submission(
        &self,
        submission: SubmissionId,
        after: Revision,
    ) -> Result<Option<Revision>, DriverError> {
        log::find_submission(self, submission, after).await
    }

    async fn begin(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<Begun, DriverError> {
        session::begin(self, epoch, after, rows_max).await
    }

    async fn query_records(&self, query: &RecordQuery) -> Result<RecordPage, DriverError> {
        records::query(self, query).await
    }

    async fn prune_records(&self, retention: &Retention, rows_max: usize) -> Result<usize, DriverError> {
        records::prune(self, retention, rows_max).await
    }

    async fn records_to_index(&self, kind: &str, indexes: u32, rows_max: usize) -> Result<IndexWork, DriverError> {
        record_indexes::records_to_index(self, kind, indexes, rows_max).await
    }

    async fn index_records(&self, page: Arc<IndexPage>, keys: Vec<Vec<Vec<u8>>>) -> Result<IndexStep, DriverError> {
        record_indexes::index_records(self, &page, &keys).await
    }

    async fn join(&self, server: ServerRow) -> Result<(), DriverError> {
        slots::join(self, &server).await
    }

    async fn heartbeat(&self, server: ServerRow) -> Result<(), DriverError> {
        slots::heartbeat(self, &server).await
    }

    async fn leave(&self, server: ServerId) -> Result<(), DriverError> {
        slots::leave(self, server).await
    }

    async fn cluster(&self) -> Result<(Vec<ServerRow>, Vec<SlotRow>), DriverError> {
        let connection = self.links.read.get().await?;
        let rows = connection.snapshot(slots::cluster_calls(), self.limit()).await?;
        slots::read_cluster(&rows[0], &rows[1])
    }

    async fn take_slots(&self, server: ServerId, slots: &[SlotId]) -> Result<Vec<Fence>, DriverError> {
        slots::take(self, server, slots).await
    }

    async fn release_slots(&self, fences: &[Fence]) -> Result<(), DriverError> {
        slots::release(self, fences).await
    }

    async fn pending(&self, slot: SlotId, after: Revision, rows_max: usize) -> Result<Pending, DriverError> {
        pending::pending(self, slot, after, rows_max.max(1)).await
    }

    async fn settle(&self, items: Vec<Settle>) -> Result<Vec<Settled>, DriverError> {
        settlement::settle(self, items).await
    }

    async fn exceptions(&self, hook: Option<HookNumber>) -> Result<Vec<Exception>, DriverError> {
        let call = match hook {
            None => Call::plain(exceptions_sql("true")),
            Some(hook) => Call::new(exceptions_sql("hook = $1"), values![hook.0.cast_signed()]),
        };
        let rows = self.read(vec![call]).await?;
        read_exceptions(&rows[0])
    }

    async fn write_entities(
        &self,
        epoch: Epoch,
        from: Revision,
        to: Revision,
        changed: Vec<EntityRow>,
        removed: Vec<Path>,
    ) -> Result<(), DriverError> {
        entities::write(self, epoch, from, to, changed, removed).await
    }

    async fn replace_entities(&self, epoch: Epoch, tree: StoredTree) -> Result<(), DriverError> {
        entities::replace(self, epoch, tree).await
    }

    async fn compact(
        &self,
        epoch: Epoch,
        keep: Timestamp,
        floor: Revision,
        rows_max: usize,
    ) -> Result<Revision, DriverError> {
        compaction::compact(self, epoch, keep, floor, rows_max).await
    }

    async fn burden(&self) -> Result<Burden, DriverError> {
        burden::burden(self).await
    }

    async fn stored(&self) -> Result<StoredState, DriverError> {
        stored::read(self).await
    }
}

/// Exceptions in order of hook and request.
pub(super) fn exceptions_sql(condition: &str) -> String {
    format!(
        "SELECT hook, revision, sequence, slot_hook, slot, state, attempts, deaths, error, path, change
         FROM exceptions WHERE {condition} ORDER BY hook, revision, sequence"
    )
}

pub(super) fn read_exceptions(rows: &[Row]) -> Result<Vec<Exception>, DriverError> {
    let damaged = || DriverError::Damaged("an exception can't be read; restore the store from a backup".to_owned());
    let read = |row: &Row| {
        let path = Path::parse(row.get(9)).map_err(|_| damaged())?;
        let error = row.get::<_, Option<Vec<u8>>>(8).map(String::from_utf8).transpose().map_err(|_| damaged())?;
        Ok(Exception {
            request: column_request(row, 0),
            slot: column_slot(row, 3),
            state: serde_json::from_str(row.get(5)).map_err(|_| damaged())?,
            attempts: column_number(row, 6),
            deaths: column_number(row, 7),
            error,
            change: decode_requested_change(path, row.get(10)).ok_or_else(damaged)?,
        })
    };
    rows.iter().map(read).collect()
}
