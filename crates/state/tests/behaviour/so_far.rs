//! What a transaction says of itself before it is committed, to whoever writes down what it does.

use serde::{Deserialize, Serialize};
use tidegate_state::testing::{Cluster, StoreKind};
use tidegate_state::{Entity, IndexKey, Record, Ref, Root, Transaction, TransactionError};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Item {
    n: i64,
}
impl Entity for Item {
    const COLLECTION: &'static str = "items";
    type Parent = Root;
    type Id = u64;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Below {
    n: i64,
}
impl Entity for Below {
    const COLLECTION: &'static str = "below";
    type Parent = Item;
    type Id = u64;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note(String);
impl Record for Note {
    const KIND: &'static str = "note";
    const INDEXES: &'static [&'static str] = &["all"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new()]
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Other(u64);
impl Record for Other {
    const KIND: &'static str = "other";
    const INDEXES: &'static [&'static str] = &["all"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new()]
    }
}

fn item(id: u64) -> Ref<Item> {
    Ref::root(id).unwrap()
}

/// What was touched of a type: its id, before and after.
fn touched(transaction: &Transaction) -> Result<Vec<(u64, Option<i64>, Option<i64>)>, TransactionError> {
    let touched = transaction.touched::<Item>()?.into_iter();
    Ok(touched.map(|item| (item.entity.id(), item.before.map(|it| it.n), item.after.map(|it| it.n))).collect())
}

#[tokio::test]
async fn a_transaction_tells_what_it_has_made_changed_and_deleted_so_far_and_nothing_else() {
    let cluster = Cluster::builder()
        .servers(1)
        .configure(|_, options| options.record::<Note>().record::<Other>())
        .open(&StoreKind::Memory)
        .await;
    let state = cluster.server(0).clone();
    let prepare = |transaction: &mut Transaction| {
        for id in [1, 2, 3, 4] {
            transaction.put(&item(id), Item { n: 0 })?;
        }
        Ok::<_, TransactionError>(())
    };
    state.write(prepare).await.unwrap();
    let work = |transaction: &mut Transaction| {
        assert!(touched(transaction)?.is_empty());
        transaction.put(&item(10), Item { n: 10 })?;
        transaction.put(&item(2), Item { n: 2 })?;
        transaction.delete(&item(3))?;
        // What is as it was before, and what was only there for a moment, is not touched.
        transaction.put(&item(4), Item { n: 4 })?;
        transaction.put(&item(4), Item { n: 0 })?;
        transaction.put(&item(9), Item { n: 9 })?;
        transaction.delete(&item(9))?;
        transaction.put(&item(1).child::<Below>(7_u64)?, Below { n: 7 })?;
        assert_eq!(touched(transaction)?, [(2, Some(0), Some(2)), (3, Some(0), None), (10, None, Some(10))]);
        let below = transaction.touched::<Below>()?;
        assert_eq!(below.len(), 1);
        assert_eq!(below[0].entity.parent::<Item>().id(), 1);

        assert!(transaction.appended::<Note>()?.is_empty());
        for text in ["one", "two"] {
            transaction.append(&Note(text.to_owned()))?;
            transaction.append(&Other(1))?;
        }
        assert_eq!(transaction.appended::<Note>()?, [Note("one".to_owned()), Note("two".to_owned())]);
        Ok::<_, TransactionError>(())
    };
    state.write(work).await.unwrap();
    cluster.finish().await;
}
