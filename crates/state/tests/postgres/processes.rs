//! Servers as processes of their own, to be stopped and killed by signals: this binary, started again with a store in its
//! environment. Orders come line by line; what it says in answer begins with `@`.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tidegate_state::driver::postgres::PostgresStore;
use tidegate_state::testing::points::{Hold, Points, name as point};
use tidegate_state::{Entity, Ref, Root, State, StateOptions, Transaction, TransactionError};
use tokio::sync::{Mutex, mpsc};

use super::support::*;

const URL: &str = "TIDEGATE_POSTGRES_CHILD_URL";
const SCHEMA: &str = "TIDEGATE_POSTGRES_CHILD_SCHEMA";

/// The points at which a process can be held.
const POINTS: [&str; 5] = [
    point::COMMIT_BEFORE_LOCK,
    point::COMMIT_LOCKED,
    point::COMMIT_BEFORE_COMMIT,
    point::TAIL_BEFORE_APPLY,
    point::UPKEEP_BEFORE_ENTITIES,
];

/// An entity as large as its case needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Large {
    pub(crate) text: String,
}
impl Entity for Large {
    const COLLECTION: &'static str = "large";
    type Parent = Root;
    type Id = String;
}

/// Puts a large entity.
pub(crate) async fn put_large(state: &State, id: &str, bytes: usize) -> Written<()> {
    let target: Ref<Large> = Ref::root(id).unwrap();
    state.write(move |tx: &mut Transaction| tx.put(&target, Large { text: "x".repeat(bytes) })).await
}

/// Raises two counters in one transaction, by one each: whoever sees them apart sees half of it.
pub(crate) async fn raise_pair(state: &State) -> Written<i64> {
    let (left, right) = (counter("left"), counter("right"));
    let write = state.write(move |tx: &mut Transaction| {
        let n = tx.get(&left)?.map_or(0, |counter| counter.n) + 1;
        tx.put(&left, Counter { n })?;
        tx.put(&right, Counter { n })?;
        Ok(n)
    });
    write.await
}

/// The initial state of a store that one of them opens first.
pub(crate) fn initial(tx: &mut Transaction) -> Result<(), TransactionError> {
    tx.put(&counter("initial"), Counter { n: 1 })
}

/// A server's process. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    orders: ChildStdin,
    said: mpsc::UnboundedReceiver<String>,
}

impl Process {
    /// Starts one; it opens the store at once.
    pub(crate) fn start(url: &str, schema: &str) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::serves_as_a_process", "--nocapture"])
            .env(URL, url)
            .env(SCHEMA, schema)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, said) = mpsc::unbounded_channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The harness's own lines are not the server's.
                if let Some((_, said)) = line.split_once('@') {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        let orders = child.stdin.take().unwrap();
        Process { child, orders, said }
    }

    /// Starts one and waits until it serves.
    pub(crate) async fn open(url: &str, schema: &str) -> Process {
        let mut process = Process::start(url, schema);
        process.says("opened").await;
        process
    }

    /// Gives an order.
    pub(crate) fn order(&mut self, order: &str) {
        // Where it has died, the answer does not come.
        let _ = writeln!(self.orders, "{order}");
    }

    /// Waits for what it says next that begins with this; gives the rest of the line.
    pub(crate) async fn says(&mut self, answer: &str) -> String {
        let next = async {
            while let Some(said) = self.said.recv().await {
                if let Some(rest) = said.strip_prefix(answer) {
                    return rest.trim().to_owned();
                }
                assert!(!said.starts_with("failed"), "the process said {said:?}, and not {answer:?}");
            }
            panic!("the process ended and did not say {answer:?}");
        };
        tokio::time::timeout(LIMIT, next).await.unwrap_or_else(|_| panic!("{answer:?} was not said within {LIMIT:?}"))
    }

    /// Gives an order and waits until it is carried out.
    pub(crate) async fn does(&mut self, order: &str) {
        self.order(order);
        self.says(&format!("done {order}")).await;
    }

    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// kill -9, and waits for its end.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more when the test has ended.
    let _ = writeln!(out, "@{what}");
    let _ = out.flush();
}

fn point_of(name: &str) -> &'static str {
    POINTS.into_iter().find(|point| *point == name).unwrap()
}

struct Serving {
    state: State,
    points: Points,
    holds: Mutex<HashMap<&'static str, Hold>>,
}

impl Serving {
    async fn carry_out(self: Arc<Self>, order: String) {
        let words: Vec<&str> = order.split(' ').collect();
        match words.as_slice() {
            ["hold", name] => {
                let name = point_of(name);
                self.holds.lock().await.insert(name, self.points.hold(name));
                say(&format!("done {order}"));
            }
            ["reached", name] => {
                self.points.reached(point_of(name)).await;
                say(&format!("done {order}"));
            }
            ["release", name] => {
                drop(self.holds.lock().await.remove(point_of(name)));
                say(&format!("done {order}"));
            }
            ["increment", id] => match increment(&self.state, id).await {
                Ok(written) => say(&format!("written {}", written.value)),
                Err(error) => say(&format!("failed {error}")),
            },
            ["large", id, bytes] => match put_large(&self.state, id, bytes.parse().unwrap()).await {
                Ok(written) => say(&format!("written {}", written.revision)),
                Err(error) => say(&format!("failed {error}")),
            },
            other => panic!("no such order: {other:?}"),
        }
    }
}

/// Not a test by itself: what the tests start as a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serves_as_a_process() {
    let (Ok(url), Ok(schema)) = (std::env::var(URL), std::env::var(SCHEMA)) else { return };
    let points = Points::new("process");
    let mut options = StateOptions::new("process").initialise(initial);
    options.lease = LEASE;
    options.poll = POLL;
    options.write_limit = LIMIT;
    // It may be stopped amid a closure, too.
    options.transaction_budget = LIMIT;
    options.entities_behind = std::time::Duration::from_millis(100);
    options.points = points.clone();
    let store = PostgresStore::new(&url, super::support::options(&schema)).unwrap();
    let state = State::open(store.driver(), options).await.unwrap();
    let serving = Arc::new(Serving { state, points, holds: Mutex::default() });
    say("opened");
    let (sender, mut orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    // Ends when whoever gives orders has.
    while let Some(order) = orders.recv().await {
        tokio::spawn(serving.clone().carry_out(order));
    }
}
