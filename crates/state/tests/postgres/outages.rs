//! The database away, and errors of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tidegate_state::WriteError;
use tidegate_state::testing::postgres::{PostgresServer, Stop};

use super::support::*;

/// D12: under load the database is stopped, twice, once as in a crash: reads go on, writes fail within their limit as
/// retryable, and all resumes by itself, also on a server on which nobody writes or flushes.
async fn d12_the_database_goes_away_under_load() {
    let server = PostgresServer::start(&[]).unwrap();
    let store = store(&server.url(), "away");
    let write_limit = Duration::from_millis(500);
    let limited = |mut options: tidegate_state::StateOptions| {
        options.write_limit = write_limit;
        options
    };
    let (busy, _) = open_with(&store, "busy", limited).await;
    let (idle, _) = open_with(&store, "idle", limited).await;
    let first = put(&busy, "n", 0).await.unwrap().revision;
    arrives(&idle, first).await;
    let (stop, failed, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (state, stop) = (busy.clone(), stop.clone());
            let (failed, acknowledged): (Arc<AtomicUsize>, Arc<AtomicUsize>) =
                (Arc::clone(&failed), Arc::clone(&acknowledged));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    match increment(&state, "n").await {
                        Ok(_) => acknowledged.fetch_add(1, Ordering::SeqCst),
                        // It may have been committed: then it was answered as unknown, never as failed.
                        Err(WriteError::Unknown { .. }) => 0,
                        Err(error) => {
                            assert!(error.is_retryable(), "{error}");
                            failed.fetch_add(1, Ordering::SeqCst)
                        }
                    };
                }
            })
        })
        .collect();
    for how in [Stop::Fast, Stop::Immediate] {
        let before = failed.load(Ordering::SeqCst);
        tokio::task::block_in_place(|| server.stop(how));
        eventually("writes fail", async || failed.load(Ordering::SeqCst) >= before + 8).await;
        assert!(value(&busy, "n").is_some() && value(&idle, "n").is_some(), "reads go on");
        tokio::task::block_in_place(|| server.resume()).unwrap();
        let after = acknowledged.load(Ordering::SeqCst);
        eventually("writes are taken again", async || acknowledged.load(Ordering::SeqCst) > after).await;
        let seen = busy.snapshot().revision();
        arrives(&idle, seen).await;
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    let acknowledged = i64::try_from(acknowledged.load(Ordering::SeqCst)).unwrap();
    assert!(value(&busy, "n").unwrap() >= acknowledged, "no acknowledged write is lost");
    agree_and_close(&store, vec![busy, idle]).await;
}

/// D20: a serialization failure, a deadlock, a statement's and a lock's time limit, and a session that is ended in
/// mid-commit, one each: the write is tried again and takes effect once.
async fn d20_errors_of_the_database_are_tried_again() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let (state, _) = open(&store, "server").await;
    put(&state, "n", 0).await.unwrap();
    let raise = |code: &str| format!("RAISE EXCEPTION 'injected' USING ERRCODE = '{code}'");
    let faults = [
        raise("40001"),
        raise("40P01"),
        raise("57014"),
        raise("55P03"),
        raise("53200"),
        "PERFORM pg_terminate_backend(pg_backend_pid())".to_owned(),
    ];
    for (place, fault) in faults.iter().enumerate() {
        // The sequence is not rolled back with the transaction: the fault happens once.
        let trap = format!(
            "CREATE SEQUENCE {schema}.trap{place};
             CREATE FUNCTION {schema}.trap{place}() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF nextval('{schema}.trap{place}') = 1 THEN {fault}; END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER trap{place} AFTER INSERT ON {schema}.changes FOR EACH ROW
             EXECUTE FUNCTION {schema}.trap{place}();"
        );
        sql(&store, &trap).await;
        let n = i64::try_from(place).unwrap() + 1;
        assert_eq!(increment(&state, "n").await.unwrap().value, n, "{fault}");
        assert_eq!(value(&state, "n"), Some(n), "{fault}");
    }
    agree_and_close(&store, vec![state]).await;
}

/// D21: what was begun on a connection that broke fails for its caller; the connection made since is used on.
async fn d21_an_error_of_the_old_connection_is_not_held_against_the_new_one() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let driver = store.driver();
    let meta = driver.open(&[]).await.unwrap();
    let end = |role: &str| {
        format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tidegate-{role} {schema}'"
        )
    };
    let begun = driver.begin(meta.epoch, meta.head, 10).await.unwrap();
    sql(&store, &end("commit")).await;
    // The session is of the old connection, and a new one is made for the next.
    let old = begun.session.commit(tidegate_state::driver::Batch::default()).await;
    assert!(old.is_err(), "its caller is told");
    let backends = async || {
        let begun = driver.begin(meta.epoch, meta.head, 10).await.unwrap();
        drop(begun);
        driver.meta().await.unwrap()
    };
    for _ in 0..3 {
        assert_eq!(backends().await.epoch, meta.epoch);
    }
    store.drop_schema().await.unwrap();
}

super::with_postgres! {
    d12_the_database_goes_away_under_load,
    d20_errors_of_the_database_are_tried_again,
    d21_an_error_of_the_old_connection_is_not_held_against_the_new_one,
}
