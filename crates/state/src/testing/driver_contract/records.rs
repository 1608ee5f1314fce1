//! Records: storing, paging, retention.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Subject, append, declaration, record};
use crate::clock::Clock;
use crate::driver::{
    Batch, CommitError, DriverError, IndexPage, IndexStep, IndexWork, RecordId, RecordRow, RecordWrite,
};
use crate::record::{IndexDeclaration, IndexKey, RecordQuery, Retention};
use crate::revision::{Revision, Timestamp};

fn query(index: &str, prefix: IndexKey) -> RecordQuery {
    RecordQuery { kind: "run".into(), index: index.to_owned(), prefix, cursor: None, backwards: false, limit: 1_000 }
}

/// All pages of a query, each of `limit`.
async fn pages(subject: &Subject, mut query: RecordQuery, limit: usize) -> Vec<RecordRow> {
    query.limit = limit;
    let mut found = Vec::new();
    loop {
        let page = subject.driver.query_records(&query).await.unwrap();
        assert!(page.rows.len() <= limit);
        found.extend(page.rows);
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return found,
        }
    }
}

fn retention(before: Option<Timestamp>, per_key: Option<u64>) -> Retention {
    Retention { kind: "run".into(), before, per_key }
}

async fn update(subject: &Subject, row: RecordRow) -> Result<Revision, CommitError> {
    subject
        .commit(move |head, now| {
            let mut batch = append(head, now, &[], 0);
            batch.records.push(RecordWrite::Update(row));
            batch
        })
        .await
}

/// Given records of a transaction, an update changes content and index entries of an open one and keeps its time; a
/// closed one, and one that is not there, are refused.
pub async fn r01_records_are_stored_with_their_transaction_and_updated_until_closed(subject: Subject) {
    subject.driver.open(&[declaration(None)]).await.unwrap();
    let revision = subject.commit(|head, now| append(head, now, &["a", "b"], 1)).await.unwrap();
    let found = pages(&subject, query("by-number", IndexKey::new()), 10).await;
    let id = |sequence| RecordId { revision, sequence };
    let now = subject.clock.now();
    assert_eq!(found, [record(id(0), now, "a", 1), record(id(1), now, "b", 2)]);

    subject.clock.advance(Duration::from_secs(5));
    let mut changed = record(id(0), subject.clock.now(), "c", 9);
    changed.closed = true;
    update(&subject, changed.clone()).await.unwrap();
    changed.at = now;
    assert_eq!(pages(&subject, query("by-owner", IndexKey::new().text("c")), 10).await, [changed.clone()]);
    assert_eq!(pages(&subject, query("by-owner", IndexKey::new().text("a")), 10).await, []);
    let refused = update(&subject, changed).await;
    assert!(matches!(refused, Err(CommitError::NotCommitted(DriverError::RecordClosed(_)))), "{refused:?}");

    // One that is appended and updated in one transaction ends as updated.
    subject
        .commit(|head, now| {
            let mut batch = append(head, now, &["x"], 50);
            let id = RecordId { revision: head.next(), sequence: 0 };
            batch.records.push(RecordWrite::Update(record(id, now, "y", 51)));
            batch
        })
        .await
        .unwrap();
    let owners = pages(&subject, query("by-owner", IndexKey::new().text("y")), 10).await;
    assert_eq!(owners.len(), 1);
    assert_eq!(pages(&subject, query("by-owner", IndexKey::new().text("x")), 10).await, []);
}

/// Given records with equal and awkward keys, pages of every size give index order, ties in order of commit, and the
/// reverse backwards; a prefix gives what begins with it.
pub async fn r06_pages_go_forwards_and_back_in_index_order(subject: Subject) {
    subject.driver.open(&[declaration(None)]).await.unwrap();
    let owners = ["b", "A", "a", "é", "Z", "_", "a\0b", "", "aa", "a"];
    for first in [5, 5, -3, i64::MAX - 20, i64::MIN] {
        subject.commit(|head, now| append(head, now, &owners, first)).await.unwrap();
    }
    for (index, number) in [("by-owner", 0), ("by-number", 1)] {
        let mut expected = pages(&subject, query("by-number", IndexKey::new()), 1_000).await;
        assert_eq!(expected.len(), 50);
        expected.sort_by(|left, right| (&left.keys[number], left.id).cmp(&(&right.keys[number], right.id)));
        for limit in [1, 3, 7, 50, 1_000] {
            assert_eq!(pages(&subject, query(index, IndexKey::new()), limit).await, expected, "{index} by {limit}");
            let backwards = RecordQuery { backwards: true, ..query(index, IndexKey::new()) };
            let mut found = pages(&subject, backwards, limit).await;
            found.reverse();
            assert_eq!(found, expected, "{index} by {limit}, backwards");
        }
    }
    for owner in owners {
        let prefix = IndexKey::new().text(owner);
        let bytes = prefix.clone().into_bytes();
        for backwards in [false, true] {
            let found = pages(&subject, RecordQuery { backwards, ..query("by-owner", prefix.clone()) }, 2).await;
            assert!(found.iter().all(|row| row.keys[0].starts_with(&bytes)));
            assert_eq!(found.len(), 5 * owners.iter().filter(|other| **other == owner).count(), "{owner:?}");
        }
    }
    assert!(pages(&subject, query("by-owner", IndexKey::new().text("nobody")), 5).await.is_empty());
}

/// Given pages that are read while others append before, at and after the cursor and retention removes, each record that
/// was there throughout is seen exactly once.
pub async fn r06_paging_sees_each_record_once_while_others_append_and_prune(subject: Subject) {
    subject.driver.open(&[declaration(None)]).await.unwrap();
    subject.clock.set(Timestamp(1_000));
    subject.commit(|head, now| append(head, now, &["old"; 40], 100)).await.unwrap();
    subject.clock.set(Timestamp(2_000));
    subject.commit(|head, now| append(head, now, &["kept"; 200], 60)).await.unwrap();
    subject.clock.set(Timestamp(3_000));
    for backwards in [false, true] {
        let mut query = RecordQuery { limit: 9, backwards, ..query("by-number", IndexKey::new()) };
        let mut seen: Vec<RecordId> = Vec::new();
        for step in 0i64.. {
            let page = subject.driver.query_records(&query).await.unwrap();
            seen.extend(page.rows.iter().filter(|row| row.at == Timestamp(2_000)).map(|row| row.id));
            let numbers = 60 + step * 9;
            subject.commit(|head, now| append(head, now, &["new", "new", "new"], numbers)).await.unwrap();
            subject.driver.prune_records(&retention(Some(Timestamp(2_000)), None), 3).await.unwrap();
            match page.next {
                Some(next) => query.cursor = Some(next),
                None => break,
            }
        }
        let distinct: BTreeSet<RecordId> = seen.iter().copied().collect();
        assert_eq!((seen.len(), distinct.len()), (200, 200), "backwards: {backwards}");
    }
}

/// Given a query by an index that is not declared, or of a kind that is not, the error names what there is.
pub async fn r06_a_query_without_index_is_refused_naming_those_there_are(subject: Subject) {
    subject.driver.open(&[declaration(None)]).await.unwrap();
    let error = subject.driver.query_records(&query("by-colour", IndexKey::new())).await.unwrap_err();
    match error {
        DriverError::NoIndex { kind, indexes } => {
            assert_eq!((kind.as_str(), indexes), ("run", vec!["by-owner".to_owned(), "by-number".to_owned()]));
        }
        other => panic!("{other:?}"),
    }
    let unknown = RecordQuery { kind: "walk".into(), ..query("by-owner", IndexKey::new()) };
    let error = subject.driver.query_records(&unknown).await.unwrap_err();
    assert!(matches!(error, DriverError::NoIndex { .. }), "{error:?}");
    let undeclared = subject
        .commit(|head, now| {
            let id = RecordId { revision: head.next(), sequence: 0 };
            let row = RecordRow { kind: "walk".into(), ..record(id, now, "a", 1) };
            Batch { records: vec![RecordWrite::Append(row)], ..append(head, now, &[], 0) }
        })
        .await;
    assert!(matches!(undeclared, Err(CommitError::NotCommitted(DriverError::Configuration(_)))), "{undeclared:?}");
}

/// Given records beyond the retention by age and by number, they go oldest first, at most as many at once as asked for,
/// nothing within it goes, and the log takes no part.
pub async fn r07_retention_by_age_and_by_number_lets_go_in_small_batches(subject: Subject) {
    subject.driver.open(&[declaration(Some(5))]).await.unwrap();
    for (at, owners) in [(1_000, ["a", "b", "a"]), (2_000, ["a", "b", "a"]), (3_000, ["a", "a", "a"])] {
        subject.clock.set(Timestamp(at));
        subject.commit(|head, now| append(head, now, &owners, at)).await.unwrap();
    }
    let head = subject.head().await;
    let numbers = || async {
        let found = pages(&subject, query("by-number", IndexKey::new()), 1_000).await;
        found.iter().map(|row| (row.at.0, row.id.sequence)).collect::<Vec<_>>()
    };
    assert_eq!(subject.driver.prune_records(&retention(None, Some(7)), 10).await.unwrap(), 0);
    // Seven of a: the two oldest go, one at a time.
    for _ in 0..2 {
        assert_eq!(subject.driver.prune_records(&retention(None, Some(5)), 1).await.unwrap(), 1);
    }
    assert_eq!(subject.driver.prune_records(&retention(None, Some(5)), 1).await.unwrap(), 0);
    let left = [(1_000, 1), (2_000, 0), (2_000, 1), (2_000, 2), (3_000, 0), (3_000, 1), (3_000, 2)];
    assert_eq!(numbers().await, left);
    // By age: what was appended before, not at, the limit.
    assert_eq!(subject.driver.prune_records(&retention(Some(Timestamp(1_000)), None), 10).await.unwrap(), 0);
    assert_eq!(subject.driver.prune_records(&retention(Some(Timestamp(3_000)), None), 2).await.unwrap(), 2);
    assert_eq!(subject.driver.prune_records(&retention(Some(Timestamp(3_000)), Some(3)), 10).await.unwrap(), 2);
    assert_eq!(numbers().await, [(3_000, 0), (3_000, 1), (3_000, 2)]);
    assert_eq!(subject.head().await, head);
    let stored = subject.driver.stored().await.unwrap();
    assert_eq!((stored.records.len(), stored.index_entries.len()), (3, 6));
    // What was counted by group is counted still.
    assert_eq!(subject.driver.prune_records(&retention(None, Some(1)), 10).await.unwrap(), 2);
}

/// Given values of megabytes and 10 000 records of one transaction, they read back, and a page ends before it is too large.
pub async fn r08_large_records_are_read_in_bounded_pages(subject: Subject) {
    subject.driver.open(&[declaration(None)]).await.unwrap();
    subject
        .commit(|head, now| {
            let mut batch = append(head, now, &["large"; 6], 0);
            for write in &mut batch.records {
                let RecordWrite::Append(row) = write else { continue };
                row.document = super::document(&"z".repeat(6 << 20));
            }
            batch
        })
        .await
        .unwrap();
    let first = subject.driver.query_records(&query("by-owner", IndexKey::new())).await.unwrap();
    assert!(first.rows.len() < 6 && first.next.is_some());
    let all = pages(&subject, query("by-owner", IndexKey::new()), 1_000).await;
    assert_eq!(all.len(), 6);
    assert!(all.iter().all(|row| row.document == super::document(&"z".repeat(6 << 20))));
    let owners = vec!["small"; 10_000];
    subject.commit(|head, now| append(head, now, &owners, 0)).await.unwrap();
    assert_eq!(pages(&subject, query("by-owner", IndexKey::new().text("small")), 1_000).await.len(), 10_000);
}

/// Given a declaration again, a longer one, a shorter one and another order: the last is refused; a new index of a kind
/// with records serves no query before it is complete, and says so.
pub async fn r10_declarations_may_grow_at_the_end_only(subject: Subject) {
    let with = |indexes: &[&str]| IndexDeclaration {
        indexes: indexes.iter().map(ToString::to_string).collect(),
        ..declaration(None)
    };
    subject.driver.open(&[with(&["by-owner"])]).await.unwrap();
    subject.driver.open(&[with(&["by-owner", "by-number"])]).await.unwrap();
    subject.commit(|head, now| append(head, now, &["a"], 1)).await.unwrap();
    assert_eq!(pages(&subject, query("by-number", IndexKey::new()), 5).await.len(), 1);
    subject.driver.open(&[with(&["by-owner"])]).await.unwrap();
    let refused = subject.driver.open(&[with(&["by-number", "by-owner"])]).await;
    assert!(matches!(refused, Err(DriverError::Configuration(_))), "{refused:?}");
    subject.driver.open(&[with(&["by-owner", "by-number", "by-colour"])]).await.unwrap();
    let incomplete = subject.driver.query_records(&query("by-colour", IndexKey::new())).await;
    let Err(DriverError::IndexIncomplete { index, complete, .. }) = incomplete else { panic!("{incomplete:?}") };
    assert_eq!((index.as_str(), complete), ("by-colour", vec!["by-owner".to_owned(), "by-number".to_owned()]));
    assert_eq!(pages(&subject, query("by-number", IndexKey::new()), 5).await.len(), 1);
}

/// A record's document is its number; the third index is by that, backwards.
fn with_colour(row: &RecordRow) -> Vec<Vec<u8>> {
    let mut keys = row.keys.clone();
    keys.truncate(2);
    let mut colour = keys[1].clone();
    colour.reverse();
    keys.push(colour);
    keys
}

async fn colours(subject: &Subject) -> Result<usize, DriverError> {
    let page = subject.driver.query_records(&query("by-colour", IndexKey::new())).await?;
    Ok(page.rows.len())
}

/// Reads the next page, if there is one.
async fn page_of(subject: &Subject, rows_max: usize) -> Option<Arc<IndexPage>> {
    match subject.driver.records_to_index("run", 3, rows_max).await.unwrap() {
        IndexWork::Complete => None,
        IndexWork::Page(page) => Some(Arc::new(page)),
    }
}

async fn step(subject: &Subject, page: &Arc<IndexPage>) -> IndexStep {
    let keys = page.lacking.iter().map(with_colour).collect();
    subject.driver.index_records(page.clone(), keys).await.unwrap()
}

/// Builds to the end; says in how many steps.
async fn build(subject: &Subject, rows_max: usize) -> usize {
    let mut steps = 0;
    while let Some(page) = page_of(subject, rows_max).await {
        assert!(page.lacking.len() <= rows_max);
        assert_ne!(step(subject, &page).await, IndexStep::Overtaken);
        steps += 1;
    }
    steps
}

async fn with_third_index(subject: &Subject) {
    let declaration = IndexDeclaration {
        indexes: ["by-owner", "by-number", "by-colour"].map(str::to_owned).to_vec(),
        ..declaration(None)
    };
    subject.driver.open(&[declaration]).await.unwrap();
}

async fn lint(subject: &Subject) {
    let found = crate::testing::linter::lint(&subject.driver.stored().await.unwrap(), &[]);
    assert!(found.is_empty(), "{found:#?}");
}

/// Given an index that is added to a kind with records, it is built page by page while others append and retention removes,
/// serves queries from the last step on and not before, and is not built again by another declaration.
pub async fn r10_an_added_index_is_built_page_by_page(subject: Subject) {
    subject.driver.open(&[declaration(None)]).await.unwrap();
    subject.commit(|head, now| append(head, now, &["a"; 25], 0)).await.unwrap();
    with_third_index(&subject).await;
    lint(&subject).await;
    let mut steps = 0;
    while let Some(page) = page_of(&subject, 10).await {
        assert!(matches!(colours(&subject).await, Err(DriverError::IndexIncomplete { .. })));
        assert!(page.lacking.len() <= 10);
        if steps == 1 {
            // With a key for each index, and one without, both behind the page.
            let id = |head: Revision| RecordId { revision: head.next(), sequence: 0 };
            let full = |head, now| {
                let row = record(id(head), now, "full", 70);
                let keys = with_colour(&row);
                let row = RecordRow { keys, ..row };
                Batch { records: vec![RecordWrite::Append(row)], ..append(head, now, &[], 0) }
            };
            subject.commit(full).await.unwrap();
            subject.commit(|head, now| append(head, now, &["older"], 80)).await.unwrap();
        }
        assert_ne!(step(&subject, &page).await, IndexStep::Overtaken);
        lint(&subject).await;
        // The same page again does nothing: as another server does that has read it, too.
        assert_eq!(step(&subject, &page).await, IndexStep::Overtaken);
        steps += 1;
    }
    assert!((3..=4).contains(&steps), "{steps} steps");
    let found = pages(&subject, query("by-colour", IndexKey::new()), 4).await;
    assert_eq!(found.len(), 27);
    assert!(found.is_sorted_by_key(|row| (row.keys[2].clone(), row.id)));
    with_third_index(&subject).await;
    assert_eq!(colours(&subject).await.unwrap(), 27);
    assert_eq!(build(&subject, 10).await, 0);
    lint(&subject).await;
}

/// Given a complete index, records that an older build appends or updates make it incomplete in the commit itself; building
/// goes on at the first of them, not at the beginning. An update amid the building is not passed over.
pub async fn r10_an_older_build_never_leaves_a_hole(subject: Subject) {
    with_third_index(&subject).await;
    subject.commit(|head, now| append(head, now, &["a"; 30], 0)).await.unwrap();
    assert!(matches!(colours(&subject).await, Err(DriverError::IndexIncomplete { .. })));
    assert_eq!(build(&subject, 10).await, 3);
    assert_eq!(colours(&subject).await.unwrap(), 30);

    // Appended.
    let revision = subject.commit(|head, now| append(head, now, &["b", "b"], 100)).await.unwrap();
    assert!(matches!(colours(&subject).await, Err(DriverError::IndexIncomplete { .. })));
    lint(&subject).await;
    let page = page_of(&subject, 10).await.unwrap();
    assert_eq!((page.from, page.lacking.len()), (RecordId { revision, sequence: 0 }, 2), "not from the beginning");
    assert_eq!(step(&subject, &page).await, IndexStep::Complete);

    // Updated: the entry under the old content goes with it.
    let first = RecordId { revision: Revision(1), sequence: 3 };
    let now = subject.clock.now();
    update(&subject, record(first, now, "c", 7)).await.unwrap();
    assert!(matches!(colours(&subject).await, Err(DriverError::IndexIncomplete { .. })));
    lint(&subject).await;
    let page = page_of(&subject, 10).await.unwrap();
    assert_eq!((page.from, page.lacking[0].id), (first, first));
    // And again between the reading of the page and the step, first one of the page, then one before it.
    update(&subject, record(first, now, "d", 8)).await.unwrap();
    assert_eq!(step(&subject, &page).await, IndexStep::Overtaken);
    let page = page_of(&subject, 10).await.unwrap();
    update(&subject, record(RecordId { sequence: 1, ..first }, now, "e", 9)).await.unwrap();
    assert_eq!(step(&subject, &page).await, IndexStep::Overtaken);
    let page = page_of(&subject, 10).await.unwrap();
    // One of the page that had its entry when the page was read.
    update(&subject, record(RecordId { sequence: 5, ..first }, now, "f", 6)).await.unwrap();
    assert_eq!(step(&subject, &page).await, IndexStep::Overtaken);
    build(&subject, 10).await;
    assert_eq!(colours(&subject).await.unwrap(), 32);
    lint(&subject).await;
}
