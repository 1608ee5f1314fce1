//! Who pushes: one version after the other, each with values that say which generation they are of, by the command as a
//! process of its own. What is to become of a push is drawn from the seed and is in its id, where the gates read it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidegate_client::Client;
use tokio::process::Child;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::evidence::{Intent, Pushed, STORE};
use super::fleet::Fleet;
use super::process::{PATIENCE, POLL, tidegate};

/// How many records a version has.
pub(crate) const KEYS: usize = 2_000;

/// Exit codes of a client that has seen its push end.
const ENDED: [i32; 5] = [0, 10, 11, 12, 13];

/// Pushes, and knows what it has pushed.
pub(crate) struct Pusher {
    fleet: Arc<Fleet>,
    folder: PathBuf,
    clients: Vec<Client>,
    random: StdRng,
    generation: u64,
    pub(crate) pushed: Vec<Pushed>,
    /// How often a client ended without having seen its push end, unkilled.
    pub(crate) given_up: usize,
}

impl Pusher {
    pub(crate) fn new(fleet: Arc<Fleet>, folder: PathBuf, seed: u64) -> Pusher {
        let clients = (0..fleet.server_urls().len()).map(|server| fleet.client(server)).collect();
        // Faults are drawn from the same seed, and by another order.
        let random = StdRng::seed_from_u64(seed ^ 0x7075_7368);
        Pusher { fleet, folder, clients, random, generation: 0, pushed: Vec::new(), given_up: 0 }
    }

    /// Pushes until it is told to stop; the last push ends before this does.
    pub(crate) async fn push_on(&mut self, stop: &CancellationToken) -> Result<(), String> {
        while !stop.is_cancelled() {
            let intent = match self.random.random_range(0..10) {
                0..=4 => Intent::Complete,
                5 | 6 => Intent::RollBack,
                7 => Intent::Abort,
                8 => Intent::Kill,
                _ => Intent::Abandon,
            };
            self.push(intent).await?;
        }
        Ok(())
    }

    /// One push, to its end; gives its id.
    pub(crate) async fn push(&mut self, intent: Intent) -> Result<String, String> {
        self.generation += 1;
        let id = format!("p{}-{}", self.generation, word(intent));
        let input = self.folder.join(format!("{id}.csv"));
        std::fs::write(&input, rows(self.generation)).unwrap();
        let after = Duration::from_millis(self.random.random_range(0..1_500));
        self.pushed.push(Pushed { id: id.clone(), generation: self.generation, intent, exit: None });
        let ended = match intent {
            Intent::Complete | Intent::RollBack | Intent::Abort => self.follow(&id).await,
            Intent::Kill => {
                let clients = self.clients.clone();
                let killed = kill(clients, id.clone(), after);
                let (followed, ()) = tokio::join!(self.follow(&id), killed);
                followed
            }
            Intent::Abandon => self.abandon(&id, after).await.map(|()| None),
        };
        let _ = std::fs::remove_file(&input);
        if let Some(pushed) = self.pushed.last_mut() {
            pushed.exit = ended.map_err(|why| format!("push {id}: {why}"))?;
        }
        Ok(id)
    }

    /// Follows a push to its end with as many clients as it takes; each asks the next server.
    async fn follow(&mut self, id: &str) -> Result<Option<i32>, String> {
        let until = Instant::now() + PATIENCE;
        let mut said = String::new();
        while Instant::now() < until {
            let mut child = self.spawn(id);
            let status = tokio::select! {
                status = child.wait() => status.map_err(|error| error.to_string())?,
                () = self.fleet.kill_client.notified() => {
                    child.kill().await.map_err(|error| error.to_string())?;
                    continue;
                }
                () = tokio::time::sleep_until(until) => break,
            };
            match status.code() {
                Some(code) if ENDED.contains(&code) => return Ok(Some(code)),
                _ => {
                    self.given_up += 1;
                    said = format!("its last client ended with {status}");
                    tokio::time::sleep(POLL * 5).await;
                }
            }
        }
        Err(format!("it had not ended within {PATIENCE:?}; {said}"))
    }

    /// Lets the client die, and waits for what the push comes to without one, if it was heard of.
    async fn abandon(&mut self, id: &str, after: Duration) -> Result<(), String> {
        let mut child = self.spawn(id);
        // It may have seen the end by then.
        let _ = tokio::time::timeout(after, child.wait()).await;
        child.kill().await.map_err(|error| error.to_string())?;
        let until = Instant::now() + PATIENCE;
        let mut server = 0;
        while Instant::now() < until {
            server += 1;
            match self.clients[server % self.clients.len()].push(id).await {
                Ok(push) if push.state.status.is_terminal() => return Ok(()),
                Ok(_) => {}
                // A server that is up says that there is none; it reads behind by no more than it says when it starts.
                Err(error) if error.code() == Some(tidegate_api::code::PUSH_UNKNOWN) => return Ok(()),
                Err(_) => {}
            }
            tokio::time::sleep(POLL * 5).await;
        }
        Err(format!("abandoned, it had not ended within {PATIENCE:?}"))
    }

    fn spawn(&mut self, id: &str) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("push.log")).unwrap();
        let urls = self.fleet.server_urls();
        let url = &urls[self.random.random_range(0..urls.len())];
        let mut command = tidegate();
        command.args(["push", STORE]).arg(self.folder.join(format!("{id}.csv"))).args(["--id", id, "--url", url]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }
}

/// An operator's kill, at whichever server takes it, once the push is known. It may come too late.
async fn kill(clients: Vec<Client>, id: String, after: Duration) {
    tokio::time::sleep(after).await;
    let until = Instant::now() + PATIENCE;
    let mut server = 0;
    while Instant::now() < until {
        server += 1;
        let client = &clients[server % clients.len()];
        match client.push(&id).await {
            Ok(push) if push.state.status.is_terminal() => return,
            Ok(_) if client.kill_push(&id, "as planned").await.is_ok() => return,
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

fn word(intent: Intent) -> &'static str {
    match intent {
        Intent::Complete => "complete",
        Intent::RollBack => "roll-back",
        Intent::Abort => "abort",
        Intent::Kill => "kill",
        Intent::Abandon => "abandon",
    }
}

fn rows(generation: u64) -> String {
    let mut text = String::from("id,generation\n");
    for row in 0..KEYS {
        writeln!(text, "k{row},{generation}").unwrap();
    }
    text
}
