//! Keeps what is compacted and pruned away in the course of a run: the database itself puts it aside as it is deleted, and
//! when the run is over it is put back, so that the whole log is there to judge by.

use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::{IndexDeclaration, Record};
use tokio_postgres::{Client, NoTls};

use super::workload::{Effect, Trace};

/// What compaction deletes from.
const TABLES: [&str; 2] = ["changes", "receipt_blocks"];

/// The kinds of records of a run, as servers declare them.
pub(crate) fn declarations() -> [IndexDeclaration; 2] {
    [declaration::<Effect>(), declaration::<Trace>()]
}

fn declaration<R: Record>() -> IndexDeclaration {
    IndexDeclaration {
        kind: R::KIND.into(),
        indexes: R::INDEXES.iter().map(|index| (*index).to_owned()).collect(),
        retain: R::RETENTION,
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    // It ends with the client.
    tokio::spawn(connection);
    client
}

/// Makes the store, and what keeps its rows. Before any server starts.
pub(crate) async fn begin(url: &str, schema: &str) {
    let store = PostgresStore::new(url, PostgresOptions::in_schema(schema)).unwrap();
    store.driver().open(&declarations()).await.unwrap();
    let mut statements = String::new();
    for table in TABLES {
        statements += &format!(
            "CREATE TABLE {schema}.gone_{table} (LIKE {schema}.{table});
             CREATE FUNCTION {schema}.keep_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN INSERT INTO {schema}.gone_{table} SELECT * FROM gone; RETURN NULL; END $$;
             CREATE TRIGGER keep AFTER DELETE ON {schema}.{table} REFERENCING OLD TABLE AS gone
                 FOR EACH STATEMENT EXECUTE FUNCTION {schema}.keep_{table}();"
        );
    }
    connect(url).await.batch_execute(&statements).await.unwrap();
}

/// Puts back what is gone. After all servers have left.
pub(crate) async fn put_back(url: &str, schema: &str) {
    let mut statements = format!("UPDATE {schema}.meta SET compacted = 0;");
    for table in TABLES {
        // With the numbers that rows had, which tell the first of two receipts.
        statements +=
            &format!("INSERT INTO {schema}.{table} OVERRIDING SYSTEM VALUE SELECT * FROM {schema}.gone_{table};");
    }
    connect(url).await.batch_execute(&statements).await.unwrap();
}
