//! A database that is too old: a stand-in that speaks as much of PostgreSQL's protocol as it takes to be asked for its version.

use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;
use tidegate_state::driver::DriverError;
use tidegate_state::driver::postgres::PostgresStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::support::options;

const VERSION_ASKED: &str = "SHOW server_version_num";

/// PostgreSQL's number for the type `text`.
const TEXT: i32 = 25;

/// Answers every statement with its version, and remembers what it was asked. Dropping it ends it.
struct StandIn {
    port: u16,
    /// The statements, and the type byte of everything else that came after a connection was made.
    asked: Arc<Mutex<Vec<String>>>,
    accepting: JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl StandIn {
    async fn start(version: &'static str) -> StandIn {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = asked.clone();
        let accepting = tokio::spawn(async move {
            let mut sessions = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let heard = heard.clone();
                sessions.spawn(async move {
                    // A client that has gone ends its session, and nothing else.
                    let _ = serve(stream, version, &heard).await;
                });
            }
        });
        StandIn { port, asked, accepting }
    }
}

/// Lets whoever comes in without a password, and answers until it says goodbye.
async fn serve(mut stream: TcpStream, version: &str, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    // The one message without a type: who wants to be let in.
    read_body(&mut stream).await?;
    let mut welcome = Vec::new();
    put_message(&mut welcome, b'R', &0_i32.to_be_bytes());
    put_message(&mut welcome, b'Z', b"I");
    stream.write_all(&welcome).await?;
    loop {
        let kind = stream.read_u8().await?;
        let body = read_body(&mut stream).await?;
        match kind {
            b'X' => return Ok(()),
            b'Q' => {
                let statement = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned();
                asked.lock().push(statement);
                stream.write_all(&version_answer(version)).await?;
            }
            other => {
                asked.lock().push(char::from(other).to_string());
                return Ok(());
            }
        }
    }
}

async fn read_body(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    // The length counts itself.
    let length = usize::try_from(stream.read_i32().await?).unwrap() - 4;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

fn put_message(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.push(kind);
    out.extend(i32::try_from(body.len() + 4).unwrap().to_be_bytes());
    out.extend(body);
}

/// One row of one column.
fn version_answer(version: &str) -> Vec<u8> {
    let one = 1_i16.to_be_bytes();
    let mut column = one.to_vec();
    column.extend(b"server_version_num\0");
    // Of no table, and no column of it.
    column.extend(0_i32.to_be_bytes());
    column.extend(0_i16.to_be_bytes());
    column.extend(TEXT.to_be_bytes());
    // Of any length, without a modifier, as text.
    column.extend((-1_i16).to_be_bytes());
    column.extend((-1_i32).to_be_bytes());
    column.extend(0_i16.to_be_bytes());
    let mut row = one.to_vec();
    row.extend(i32::try_from(version.len()).unwrap().to_be_bytes());
    row.extend(version.as_bytes());
    let mut answer = Vec::new();
    put_message(&mut answer, b'T', &column);
    put_message(&mut answer, b'D', &row);
    put_message(&mut answer, b'C', b"SHOW\0");
    put_message(&mut answer, b'Z', b"I");
    answer
}

/// D11: a database older than what is used here is refused: what it is, why that is not enough, what to do; nothing was asked of
/// it but its version, and no secret is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d11_a_database_that_is_too_old_is_refused_with_what_to_do() {
    for (version, told) in [("140005", "is PostgreSQL 14,"), ("90624", "is PostgreSQL 9,")] {
        let stand_in = StandIn::start(version).await;
        let url = format!("postgres://u:hunter2@127.0.0.1:{}/d?sslmode=disable", stand_in.port);
        let store = PostgresStore::new(&url, options("x")).unwrap();
        let refused = store.driver().open(&[]).await.unwrap_err();
        assert!(!refused.is_retryable(), "waiting makes it no newer: {refused}");
        let DriverError::Configuration(text) = &refused else { panic!("{refused:?}") };
        assert!(text.contains(&format!("127.0.0.1:{}", stand_in.port)), "which database: {text}");
        assert!(text.contains(told) && text.contains("15 or later is needed"), "why: {text}");
        assert!(text.contains("Upgrade the database"), "what to do: {text}");
        for shown in [refused.to_string(), format!("{refused:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let asked = stand_in.asked.lock().clone();
        assert!(
            !asked.is_empty() && asked.iter().all(|asked| asked == VERSION_ASKED),
            "nothing was written: {asked:?}"
        );
    }
    // One that is new enough is not refused for its age: the stand-in knows nothing of what comes next.
    let stand_in = StandIn::start("150000").await;
    let url = format!("postgres://u:hunter2@127.0.0.1:{}/d?sslmode=disable", stand_in.port);
    let store = PostgresStore::new(&url, options("x")).unwrap();
    let failed = store.driver().open(&[]).await.unwrap_err();
    assert!(!failed.to_string().contains("is needed") && !failed.to_string().contains("hunter2"), "{failed}");
    assert!(stand_in.asked.lock().len() > 1, "it was asked further: {failed}");
}
