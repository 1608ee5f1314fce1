//! The cluster as the API shows it.

use std::collections::BTreeMap;

use tidegate_api::{ClusterHookView, ClusterView, ServerHookView, ServerStatus, ServerView};
use tidegate_state::{QueueEntry, RequestState, Revision, ServerId, Timestamp};

use super::ms;

/// How many unfinished requests are counted at most; where there are more, the counts say less than there is.
pub(crate) const COUNTED_MAX: usize = 100_000;

/// The cluster, as the server that answers sees it; by its id, since another may have its name.
pub(crate) fn cluster(
    driver: &str,
    (revision, now): (Revision, Timestamp),
    answering: Option<ServerId>,
    members: &tidegate_state::ClusterView,
    queue: &[QueueEntry],
) -> ClusterView {
    let servers = members.servers.iter().map(|server| server_view(revision, answering, members, server)).collect();
    ClusterView {
        driver: driver.to_owned(),
        revision: revision.0,
        now: Some(ms(now)),
        servers,
        hooks: hooks(members, queue),
    }
}

fn server_view(
    revision: Revision,
    answering: Option<ServerId>,
    members: &tidegate_state::ClusterView,
    server: &tidegate_state::ServerView,
) -> ServerView {
    let status = match (server.lives, server.draining) {
        (false, _) => ServerStatus::Gone,
        (true, true) => ServerStatus::Draining,
        (true, false) => ServerStatus::Up,
    };
    let own = members.slots.iter().filter(|slot| !slot.is_permit && slot.owner_id == Some(server.id));
    ServerView {
        name: server.name.to_string(),
        id: server.id.0.to_string(),
        answering: answering == Some(server.id),
        status,
        lease_until: ms(server.lease_until),
        applied: server.applied.0,
        behind: revision.0.saturating_sub(server.applied.0),
        slots: own.count() as u64,
        hooks: server
            .hooks
            .iter()
            .map(|(hook, version, room)| ServerHookView { hook: hook.clone(), version: *version, room: *room })
            .collect(),
    }
}

fn hooks(members: &tidegate_state::ClusterView, queue: &[QueueEntry]) -> Vec<ClusterHookView> {
    let mut hooks: BTreeMap<String, ClusterHookView> = BTreeMap::new();
    for slot in members.slots.iter().filter(|slot| !slot.is_permit) {
        let view = hooks.entry(slot.hook.clone()).or_default();
        view.slots += 1;
        view.free_slots += u64::from(slot.owner.is_none());
    }
    for entry in queue {
        let view = hooks.entry(entry.hook.to_string()).or_default();
        match entry.state {
            RequestState::Waiting | RequestState::Running | RequestState::RetryAt(_) | RequestState::BackingOff(_) => {
                view.open += 1
            }
            RequestState::Dead => view.dead += 1,
            RequestState::PausedBehind(_) => view.paused += 1,
            RequestState::NoServer => view.no_server += 1,
        }
        let since = ms(entry.since);
        view.oldest = Some(view.oldest.map_or(since, |oldest| oldest.min(since)));
    }
    let named = |(hook, view)| ClusterHookView { hook, ..view };
    hooks.into_iter().map(named).collect()
}
