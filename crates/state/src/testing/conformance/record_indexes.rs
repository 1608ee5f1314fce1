//! R10: indexes that are added to kinds of records which have records already.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::records::all;
use super::{Case, LIMIT, Variant, within};
use crate::driver::{Call, DriverError, IndexWork, RecordId};
use crate::error::QueryError;
use crate::record::{IndexKey, Record};
use crate::record_search::{PAGE_MAX, RecordPageOf, RecordSearch, Stored};
use crate::state::State;
use crate::testing::Cluster;
use crate::testing::points::name as point;
use crate::transaction::{Transaction, TransactionError};

/// A job, as an older build knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OldJob {
    name: String,
    seconds: String,
}
impl Record for OldJob {
    const KIND: &'static str = "job";
    const INDEXES: &'static [&'static str] = &["by-name"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().text(&self.name)]
    }
}

/// The current build's, with a field beside the one that it takes the place of, and an index by it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Job {
    name: String,
    seconds: String,
    length: i64,
}
impl Record for Job {
    const KIND: &'static str = "job";
    const FORMAT: u32 = 2;
    const INDEXES: &'static [&'static str] = &["by-name", "by-length"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().text(&self.name), IndexKey::new().number(self.length)]
    }
    fn upgrade(document: &mut Map<String, Value>, _from: u32) -> Result<(), String> {
        let seconds = document.get("seconds").and_then(Value::as_str).ok_or("it has no seconds")?;
        let length: i64 = seconds.parse().map_err(|_| format!("{seconds:?} is no number of seconds"))?;
        document.insert("length".to_owned(), length.into());
        Ok(())
    }
}

/// A kind that only the older build has.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Gone {
    name: String,
}
impl Record for Gone {
    const KIND: &'static str = "gone";
    const INDEXES: &'static [&'static str] = &["by-name"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().text(&self.name)]
    }
}

fn old_job(number: i64) -> OldJob {
    OldJob { name: format!("job {number}"), seconds: ((number * 7_919) % 100_003).to_string() }
}

/// Appends so many of an older build's jobs, some thousand to a transaction.
async fn append_old(state: &State, numbers: std::ops::Range<i64>) {
    let mut from = numbers.start;
    while from < numbers.end {
        let until = numbers.end.min(from + 5_000);
        let write = state.write(move |tx: &mut Transaction| {
            (from..until).try_for_each(|number| tx.append(&old_job(number)).map(|_| ()))
        });
        within("the older build's write", write).await.unwrap();
        from = until;
    }
}

async fn append_new(state: &State, name: &str, length: i64) -> RecordId {
    let job = Job { name: name.to_owned(), seconds: length.to_string(), length };
    within("the write", state.write(move |tx: &mut Transaction| tx.append(&job))).await.unwrap().value
}

/// The first server is of the older build, all others of the current one.
async fn mixed(case: &Case) -> Cluster {
    let builder = case.configured(|index, options| match index {
        0 => options.record::<OldJob>().record::<Gone>(),
        _ => options.record::<Job>(),
    });
    // Whoever waits for the entities to be written builds nothing meanwhile.
    case.upkept().open(builder.servers(1)).await
}

/// Where the building stands: none once it is complete.
async fn standing(state: &State) -> Option<RecordId> {
    match state.driver().records_to_index("job", 2, 1).await.unwrap() {
        IndexWork::Complete => None,
        IndexWork::Page(page) => Some(page.from),
    }
}

async fn by_length(state: &State) -> Result<RecordPageOf<Job>, QueryError> {
    state.records(RecordSearch::by("by-length").limit(PAGE_MAX)).await
}

async fn until_complete(state: &State) {
    let complete = async {
        while state.metrics().record_indexes_building("job") || by_length(state).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = LIMIT * 2;
    assert!(tokio::time::timeout(limit, complete).await.is_ok(), "the index is not complete after {limit:?}");
}

/// What stands in the index by length, which has to be in order: how many can be read, and the ids of those that can't.
async fn look_through(state: &State) -> (usize, Vec<RecordId>) {
    let found: Vec<Stored<Job>> = all(state, "by-length").await;
    let lengths: Vec<i64> = found.iter().filter_map(|item| item.value.as_ref().ok()).map(|job| job.length).collect();
    assert!(lengths.is_sorted());
    let unreadable = found.iter().filter(|item| item.value.is_err()).map(|item| item.id).collect();
    (lengths.len(), unreadable)
}

/// R10: an index is added over many records. It is built in small steps, also after a cut and a kill, where it stood; others
/// write meanwhile, an older build among them; it serves no query before it is complete, and says so. A record that can't be
/// read stands in it with its error; a kind that no build knows any more is kept.
pub async fn r10_an_added_index_is_built_beside_everything(case: Case) {
    let mut cluster = mixed(&case).await;
    let old = cluster.server(0).clone();
    let many = case.variant == Variant::Plain && old.driver().name() != "postgres";
    let count: i64 = if many { 100_000 } else { 4_000 };
    append_old(&old, 0..count / 2).await;
    let damaged = OldJob { name: "damaged".to_owned(), seconds: "many".to_owned() };
    let damaged = old.write(move |tx: &mut Transaction| tx.append(&damaged)).await.unwrap().value;
    append_old(&old, count / 2..count).await;
    let gone = |tx: &mut Transaction| tx.append(&Gone { name: "g".to_owned() }).map(|_| ());
    old.write::<_, TransactionError, _>(gone).await.unwrap();

    let new = cluster.join().await;
    let hold = cluster.points(new).hold(point::UPKEEP_INDEXING);
    hold.reached().await;
    let refused = by_length(cluster.server(new)).await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    assert!(matches!(&refused, QueryError::Store(DriverError::IndexIncomplete { index, .. }) if index == "by-length"));
    assert!(refused.to_string().contains("by-length") && refused.to_string().contains("by-name"), "{refused}");
    // Everyone writes and reads on, as far as each knows the fields.
    append_old(&old, count..count + 10).await;
    append_new(cluster.server(new), "of the new", -1).await;
    let named = |name: &str| RecordSearch::by("by-name").prefix(IndexKey::new().text(name));
    let page: RecordPageOf<OldJob> = old.records(named("of the new")).await.unwrap();
    assert_eq!(page.items[0].value.as_ref().unwrap().seconds, "-1");
    let page: RecordPageOf<Job> = cluster.server(new).records(named("job 12")).await.unwrap();
    assert_eq!(page.items[0].value.as_ref().unwrap().length, 12 * 7_919);
    assert!(cluster.server(new).metrics().record_indexes_building("job"));

    // Cut off before a step, and then killed before another.
    hold.cut();
    let hold = cluster.points(new).hold(point::UPKEEP_INDEXING);
    hold.reached().await;
    let stood = standing(cluster.server(new)).await.unwrap();
    cluster.kill(new);
    cluster.restart(new).await;
    assert!(standing(cluster.server(new)).await.unwrap() >= stood, "it goes on where it stood");
    hold.reached().await;
    hold.release();
    append_old(&old, count + 10..count + 20).await;
    until_complete(cluster.server(new)).await;
    assert_eq!(look_through(cluster.server(new)).await, (usize::try_from(count).unwrap() + 21, vec![damaged]));
    let steps = cluster.faults(new).take_calls().get(&Call::IndexRecords).copied().unwrap_or_default();
    assert!(steps <= u64::try_from(count).unwrap() / 500 + 20, "{steps} steps for {count} records");

    // From now on an older build's record is entered when it is asked for.
    for number in count + 20..count + 25 {
        append_old(&old, number..number + 1).await;
        let OldJob { name, seconds } = old_job(number);
        let length = IndexKey::new().number(seconds.parse().unwrap());
        let search = RecordSearch::by("by-length").prefix(length).limit(PAGE_MAX);
        let page: RecordPageOf<Job> = cluster.server(new).records(search).await.unwrap();
        assert!(page.items.iter().any(|item| item.value.as_ref().is_ok_and(|job| job.name == name)), "{name}");
    }
    let kept = cluster.stored().await.records.iter().filter(|record| &*record.kind == "gone").count();
    assert_eq!(kept, 1);
    drop(old);
    cluster.restart_store().await;
    cluster.restart(new).await;
    assert_eq!(by_length(cluster.server(new)).await.unwrap().items[0].id, damaged);
    let kept = cluster.stored().await.records.iter().filter(|record| &*record.kind == "gone").count();
    assert_eq!(kept, 1);
    cluster.finish().await;
}

/// R10: several servers find the same index incomplete: each record is entered once, by whichever is first, and all of them
/// use it then.
pub async fn r10_servers_build_an_index_together_and_enter_nothing_twice(case: Case) {
    let mut cluster = mixed(&case).await;
    let count = 3_000;
    append_old(&cluster.server(0).clone(), 0..count).await;
    let new = [cluster.join().await, cluster.join().await, cluster.join().await];
    let mut entered = 0;
    for server in new {
        until_complete(cluster.server(server)).await;
        assert_eq!(look_through(cluster.server(server)).await, (usize::try_from(count).unwrap(), Vec::new()));
    }
    for server in new {
        entered += cluster.server(server).metrics().records_indexed("job").0;
    }
    assert_eq!(entered, u64::try_from(count).unwrap());
    cluster.finish().await;
}
