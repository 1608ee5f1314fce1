//! Which server this is among those that share a database.
//!
//! Operators know servers by their names, so no two that live have the same. A server that was killed and comes back finds
//! itself: its earlier life is in the cluster until its lease runs out. It knows that life by its id, which lies in the data
//! folder; the folder's lock says that it is over. Of any other server of its name a server can't know whether it lives, so
//! it waits until that one renews its lease, and does not start then, or until the lease has run out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_state::{ServerId, ServerView, State, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::data_folder::write_private;
use crate::server::StartError;

/// The id of the server's last life, in its data folder.
const FILE: &str = "server.id";

/// How often the cluster is looked at while it is uncertain whether another server lives.
const LOOK: Duration = Duration::from_millis(200);

/// How long one that leaves may take, with all that it has to hand back.
const LEAVE_LIMIT: Duration = Duration::from_secs(60);

/// What is known of a server of the same name.
#[derive(Debug, PartialEq, Eq)]
enum Other {
    /// There is none.
    Gone,
    /// It may live: its lease has neither run out nor been renewed.
    Uncertain(String),
    /// It lives.
    Lives(String),
}

/// Makes sure that no server that lives has this server's name. Bounded by the lease of the one that has it.
///
/// # Errors
/// [`StartError::NameTaken`]; [`StartError::Database`]: the cluster can't be looked at.
pub(crate) async fn claim_name(state: &State, data: &Path) -> Result<(), StartError> {
    let name = state.server();
    let own = last_life(data).await;
    let mut seen = BTreeMap::new();
    let mut is_first = true;
    let began = tokio::time::Instant::now();
    loop {
        let servers = state.cluster().await?.servers;
        let others = servers.iter().filter(|server| server.lives && server.name == *name && Some(server.id) != own);
        match look(&mut seen, is_first, began.elapsed(), others) {
            Other::Gone => return Ok(()),
            Other::Lives(id) => return Err(StartError::NameTaken { name: name.to_string(), id }),
            Other::Uncertain(id) if is_first => {
                tracing::warn!(%name, id, "a server of this name was on the database a moment ago; waiting until its lease has run out, or it turns out to live");
            }
            Other::Uncertain(_) => {}
        }
        is_first = false;
        tokio::time::sleep(LOOK).await;
    }
}

/// What another look at those of the same name says of them. Pure.
fn look<'a>(
    seen: &mut BTreeMap<ServerId, Timestamp>,
    is_first: bool,
    waited: Duration,
    others: impl Iterator<Item = &'a ServerView>,
) -> Other {
    let mut uncertain = Other::Gone;
    for other in others {
        let id = other.id.0.to_string();
        let before = match seen.get(&other.id) {
            Some(before) => *before,
            None if is_first => *seen.entry(other.id).or_insert(other.lease_until),
            // It has joined since.
            None => return Other::Lives(id),
        };
        // One that leaves renews its lease until it has.
        let leaves = other.draining && waited < LEAVE_LIMIT;
        if other.lease_until > before && !leaves {
            return Other::Lives(id);
        }
        uncertain = Other::Uncertain(id);
    }
    uncertain
}

/// Keeps the id of this life in the data folder, and says so if another server has come by the same name at the same time.
pub(crate) async fn remember(state: State, data: PathBuf, closing: CancellationToken) {
    let mut member = state.member();
    // Its own life before this one goes with its lease, and is nothing to warn of.
    let mut known = last_life(&data).await;
    loop {
        let id = *member.borrow_and_update();
        if let Some(id) = id {
            let path = data.join(FILE);
            let written = tokio::task::spawn_blocking(move || write_private(&path, &id.0.to_string())).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, "this server's id could not be kept in its data folder; should it be killed, its next start waits for its lease");
            }
            warn_of_others(&state, [Some(id), known]).await;
            known = Some(id);
        }
        tokio::select! {
            () = closing.cancelled() => return,
            changed = member.changed() => if changed.is_err() { return },
        }
    }
}

async fn warn_of_others(state: &State, own: [Option<ServerId>; 2]) {
    let Ok(cluster) = state.cluster().await else { return };
    let name = state.server();
    let is_other = |server: &&ServerView| server.lives && server.name == *name && !own.contains(&Some(server.id));
    for other in cluster.servers.iter().filter(is_other) {
        tracing::warn!(%name, other = %other.id.0, "another server of this name is on the database: give each a name of its own");
    }
}

/// The id that this data folder's server last had.
async fn last_life(data: &Path) -> Option<ServerId> {
    let text = tokio::fs::read_to_string(data.join(FILE)).await.ok()?;
    text.trim().parse().ok().map(ServerId)
}

#[cfg(test)]
mod tests {
    use tidegate_state::Revision;
    use uuid::Uuid;

    use super::*;

    fn other(id: u128, until: i64, draining: bool) -> ServerView {
        ServerView {
            id: ServerId(Uuid::from_u128(id)),
            name: "x".into(),
            lives: true,
            lease_until: Timestamp(until),
            draining,
            applied: Revision(1),
            hooks: Vec::new(),
        }
    }

    #[test]
    fn a_server_of_the_same_name_lives_if_it_renews_its_lease_or_joins() {
        let id = |id| Uuid::from_u128(id).to_string();
        let (soon, late) = (Duration::from_secs(1), LEAVE_LIMIT);
        for (what, first, waited, second, expected) in [
            ("it has gone", vec![other(1, 10, false)], soon, vec![], Other::Gone),
            ("nothing is heard", vec![other(1, 10, false)], soon, vec![other(1, 10, false)], Other::Uncertain(id(1))),
            ("it renews", vec![other(1, 10, false)], soon, vec![other(1, 11, false)], Other::Lives(id(1))),
            ("one joins", vec![other(1, 10, false)], soon, vec![other(2, 11, false)], Other::Lives(id(2))),
            ("it leaves", vec![other(1, 10, true)], soon, vec![other(1, 11, true)], Other::Uncertain(id(1))),
            ("it leaves for ever", vec![other(1, 10, true)], late, vec![other(1, 11, true)], Other::Lives(id(1))),
        ] {
            let mut seen = BTreeMap::new();
            assert!(matches!(look(&mut seen, true, Duration::ZERO, first.iter()), Other::Uncertain(_)), "{what}");
            assert_eq!(look(&mut seen, false, waited, second.iter()), expected, "{what}");
        }
        assert_eq!(look(&mut BTreeMap::new(), true, Duration::ZERO, [].iter()), Other::Gone);
    }

    #[tokio::test]
    async fn a_life_is_known_by_what_lies_in_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(last_life(folder.path()).await, None);
        let id = ServerId(Uuid::from_u128(7));
        write_private(&folder.path().join(FILE), &id.0.to_string()).unwrap();
        assert_eq!(last_life(folder.path()).await, Some(id));
        std::fs::write(folder.path().join(FILE), "torn").unwrap();
        assert_eq!(last_life(folder.path()).await, None);
    }
}
