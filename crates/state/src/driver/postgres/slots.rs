//! Who leases what: servers, slots and tokens.
//!
//! Joining, leaving, taking, releasing and new epochs begin with the lock on the row of `tokens`, which puts them in one
//! order. Heartbeats are not among them: one statement on the server's own row. Whatever changes a slot's owner or token
//! waits for those who hold the token (see the key of `slots`).

use tokio_postgres::Row;
use uuid::Uuid;

use super::super::{DriverError, Fence, ServerId, ServerRow, SlotId, SlotRow, SlotToken};
use super::connection::{Call, values};
use super::driver::PostgresDriver;
use super::log::column_revision;
use super::schema::{FORMAT, check_format, own_row};
use super::settlement::{
    clock_time, column_fence, column_number, column_slot, fence_values, held_slots, transaction_time,
};
use crate::revision::{Revision, Timestamp};

pub(super) const ORDER: &str = "SELECT counter FROM tokens FOR UPDATE";

/// Holds compaction back until a new slot's watermark is stored.
const COMPACTION: &str = "SELECT compacted FROM meta FOR SHARE";

const FREE: &str = "UPDATE slots SET owner = NULL WHERE owner = $1";

/// Rows of dead servers go once nothing names them; a slot of theirs passes on with its next owner.
const FORGET: &str = concat!(
    "DELETE FROM servers o WHERE o.lease_until <= ",
    transaction_time!("$1"),
    " AND NOT EXISTS (SELECT FROM slots s WHERE s.owner = o.id)"
);

const FORMAT_OF_STORE: &str = "SELECT format FROM meta";

/// The lease is counted by the database from now, whatever the clock of who asks says. A server that does not know the
/// store's format is not entered, nor is its lease renewed: what it owns passes to those that know it.
const ENTER: &str = concat!(
    "WITH entered AS (
         INSERT INTO servers (id, name, lease_until, draining, applied, hooks, load)
         SELECT $1::uuid, $2::text, $3::bigint + ",
    transaction_time!("$4"),
    ", $5::boolean, $6::bigint, $7::text, $8::text WHERE (SELECT format FROM meta) <= $9
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, lease_until = excluded.lease_until,
             draining = excluded.draining, applied = excluded.applied, hooks = excluded.hooks, load = excluded.load
         RETURNING id
     )
     INSERT INTO server_formats (server, format) SELECT id, $9::integer FROM entered
     ON CONFLICT (server) DO UPDATE SET format = excluded.format"
);

const FORGET_FORMATS: &str =
    "DELETE FROM server_formats f WHERE NOT EXISTS (SELECT FROM servers o WHERE o.id = f.server)";

/// Judged when the row is locked: a taking over that has begun before is seen. One that lands late neither takes back what
/// a later one has renewed nor lets a server that drains have slots again.
const HEARTBEAT: &str = concat!(
    "UPDATE servers SET name = $2, draining = draining OR $5, applied = $6, hooks = $7, load = $8,
         lease_until = greatest(lease_until, $3 + ",
    clock_time!("$4"),
    ") WHERE id = $1 AND lease_until > ",
    clock_time!("$4"),
    " AND (SELECT format FROM meta) <= $9 RETURNING ",
    clock_time!("$4")
);

/// No heartbeat of an owner, or of this server, comes in between.
const OWNERS: &str = concat!(
    "SELECT o.id, o.lease_until > ",
    transaction_time!("$4"),
    " FROM servers o
     WHERE o.id = $1 OR o.id IN (
         SELECT s.owner FROM unnest($2::integer[], $3::integer[]) AS wanted (hook, slot)
         JOIN slots s ON s.hook = wanted.hook AND s.slot = wanted.slot)
     ORDER BY o.id FOR SHARE OF o"
);

/// Takes what is free, in order of slots, each under a token above all before it.
const TAKE: &str = concat!(
    "WITH me AS (
         SELECT FROM servers WHERE id = $1 AND NOT draining AND lease_until > ",
    transaction_time!("$4"),
    "), free AS (
         SELECT wanted.hook, wanted.slot, row_number() OVER (ORDER BY wanted.place) AS place
         FROM unnest($2::integer[], $3::integer[]) WITH ORDINALITY AS wanted (hook, slot, place)
         LEFT JOIN slots s ON s.hook = wanted.hook AND s.slot = wanted.slot
         LEFT JOIN servers o ON o.id = s.owner AND o.lease_until > ",
    transaction_time!("$4"),
    " WHERE o.id IS NULL AND EXISTS (SELECT FROM me)
     ), counted AS (
         UPDATE tokens SET counter = counter + (SELECT count(*) FROM free)
         WHERE EXISTS (SELECT FROM free) RETURNING counter
     )
     INSERT INTO slots (hook, slot, owner, token, watermark)
     SELECT free.hook, free.slot, $1, counted.counter - (SELECT count(*) FROM free) + free.place,
            (SELECT compacted FROM meta)
     FROM free CROSS JOIN counted ORDER BY free.hook, free.slot
     ON CONFLICT (hook, slot) DO UPDATE SET owner = excluded.owner, token = excluded.token
     RETURNING hook, slot, token"
);

const RELEASE: &str = concat!(
    "WITH held AS (SELECT s.hook, s.slot",
    held_slots!(transaction_time!("$4")),
    " ORDER BY s.hook, s.slot FOR UPDATE OF s)
     UPDATE slots s SET owner = NULL FROM held WHERE s.hook = held.hook AND s.slot = held.slot"
);

fn server_values(driver: &PostgresDriver, server: &ServerRow) -> Vec<super::connection::Value> {
    let hooks = serde_json::to_string(&server.hooks).expect("a server's hooks have only text keys");
    let load = serde_json::to_string(&server.load).expect("a server's load has only text keys");
    // What is asked for is a time by the clock of who asks; what is stored is as long by the database's.
    let lease = server.lease_until.0.saturating_sub(driver.shared().now().0);
    values![
        server.id.0,
        server.name.to_string(),
        lease,
        driver.shared().now_given(),
        server.draining,
        server.applied.0.cast_signed(),
        hooks,
        load,
        FORMAT.cast_signed()
    ]
}

async fn in_order(driver: &PostgresDriver, calls: Vec<Call>) -> Result<Vec<Vec<Row>>, DriverError> {
    let mut all = vec![Call::plain(ORDER)];
    all.extend(calls);
    let connection = driver.links.settle.get().await?;
    let mut rows = connection.transaction(all, driver.shared().options.answer_limit).await?;
    rows.remove(0);
    Ok(rows)
}

/// Enters a server. One that comes under the id that it had before owns nothing any more.
pub(super) async fn join(driver: &PostgresDriver, server: &ServerRow) -> Result<(), DriverError> {
    let calls = vec![
        Call::plain(FORMAT_OF_STORE),
        Call::new(FREE, values![server.id.0]),
        Call::new(FORGET, values![driver.shared().now_given()]),
        Call::plain(FORGET_FORMATS),
        Call::new(ENTER, server_values(driver, server)),
    ];
    let rows = in_order(driver, calls).await?;
    check_format(column_number(own_row(&rows[0])?, 0))
}

pub(super) async fn heartbeat(driver: &PostgresDriver, server: &ServerRow) -> Result<(), DriverError> {
    let connection = driver.links.watch.get().await?;
    let sent = std::time::Instant::now();
    let call = Call::new(HEARTBEAT, server_values(driver, server));
    let limit = driver.shared().options.answer_limit;
    let rows = connection.run(vec![call], limit).await?;
    let Some(row) = rows[0].first() else {
        let rows = connection.run(vec![Call::plain(FORMAT_OF_STORE)], limit).await?;
        check_format(column_number(own_row(&rows[0])?, 0))?;
        return Err(DriverError::LeaseLapsed);
    };
    driver.shared().clock.observe(Timestamp(row.get(0)), sent);
    Ok(())
}

pub(super) async fn leave(driver: &PostgresDriver, server: ServerId) -> Result<(), DriverError> {
    let calls =
        vec![Call::new(FREE, values![server.0]), Call::new("DELETE FROM servers WHERE id = $1", values![server.0])];
    in_order(driver, calls).await.map(drop)
}

pub(super) async fn take(
    driver: &PostgresDriver,
    server: ServerId,
    wanted: &[SlotId],
) -> Result<Vec<Fence>, DriverError> {
    let mut sorted = wanted.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let hooks: Vec<i32> = sorted.iter().map(|slot| slot.hook.0.cast_signed()).collect();
    let slots: Vec<i32> = sorted.iter().map(|slot| slot.slot.cast_signed()).collect();
    let now = driver.shared().now_given();
    let calls = vec![
        Call::plain(COMPACTION),
        Call::new(OWNERS, values![server.0, hooks.clone(), slots.clone(), now]),
        Call::new(TAKE, values![server.0, hooks, slots, now]),
    ];
    let rows = in_order(driver, calls).await?;
    let lives = rows[1].iter().any(|row| row.get::<_, Uuid>(0) == server.0 && row.get::<_, bool>(1));
    if !lives {
        return Err(DriverError::LeaseLapsed);
    }
    let mut fences: Vec<Fence> = rows[2].iter().map(|row| column_fence(row, 0)).collect();
    // In the order that they were asked for.
    fences.sort_by_key(|fence| wanted.iter().position(|slot| *slot == fence.slot));
    Ok(fences)
}

pub(super) async fn release(driver: &PostgresDriver, fences: &[Fence]) -> Result<(), DriverError> {
    let call = Call::new(RELEASE, fence_values(fences, driver.shared().now_given()));
    in_order(driver, vec![call]).await.map(drop)
}

/// Servers and slots, as two statements for a snapshot.
pub(super) fn cluster_calls() -> Vec<Call> {
    vec![
        Call::plain("SELECT id, name, lease_until, draining, applied, hooks, load FROM servers ORDER BY id"),
        Call::plain("SELECT hook, slot, owner, token, watermark FROM slots ORDER BY hook, slot"),
    ]
}

pub(super) fn read_cluster(servers: &[Row], slots: &[Row]) -> Result<(Vec<ServerRow>, Vec<SlotRow>), DriverError> {
    let damaged = |_| DriverError::Damaged("a server's row can't be read; remove it from the table servers".to_owned());
    let servers = servers.iter().map(|row| {
        Ok(ServerRow {
            id: ServerId(row.get(0)),
            name: row.get::<_, &str>(1).into(),
            lease_until: Timestamp(row.get(2)),
            draining: row.get(3),
            applied: column_revision(row, 4),
            hooks: serde_json::from_str(row.get(5)).map_err(damaged)?,
            load: serde_json::from_str(row.get(6)).map_err(damaged)?,
        })
    });
    let slots = slots.iter().map(|row| SlotRow {
        slot: column_slot(row, 0),
        owner: row.get::<_, Option<Uuid>>(2).map(ServerId),
        token: SlotToken(row.get::<_, i64>(3).cast_unsigned()),
        watermark: Revision(row.get::<_, i64>(4).cast_unsigned()),
    });
    Ok((servers.collect::<Result<_, DriverError>>()?, slots.collect()))
}

/// Another epoch: nobody leases anything, and tokens go on above all that were given out. Runs under the write lock.
pub(super) fn new_epoch_calls(epoch: Uuid, tokens_above: SlotToken) -> Vec<Call> {
    vec![
        Call::plain(ORDER),
        Call::plain("SELECT compacted FROM meta FOR UPDATE"),
        Call::new("UPDATE meta SET epoch = $1", values![epoch]),
        Call::plain("UPDATE slots SET owner = NULL WHERE owner IS NOT NULL"),
        Call::plain("DELETE FROM servers"),
        Call::new(
            "UPDATE tokens SET counter = greatest(counter, $1, (SELECT coalesce(max(token), 0) FROM slots))",
            values![tokens_above.0.cast_signed()],
        ),
    ]
}
