//! Which slots of a hook a server should lease or give up: a pure function of what the cluster looks like, the same on
//! every server.
//!
//! Invariants:
//! - The shares of the willing servers add up to the number of slots, even but for one, so that each slot has a home.
//! - A server that holds its share moves nothing: equal views lead to rest, and unequal ones only to fewer leases for a
//!   moment, never to two of one slot (leases are given by the driver).
//! - A server whose keys have waited for room for over a second gives slots to those that have room, and does not ask for
//!   them back before it has had room for a while: no slot goes to and fro. One that had none lately, and has room now,
//!   takes slots of such a server where nobody else can, so that none idles while keys of another wait.

use std::collections::HashMap;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::driver::{HookNumber, ServerId, ServerRow, SlotId, SlotRow};
use crate::revision::Timestamp;

/// Keys that wait for room longer than this make their server give slots away.
pub(crate) const OVERLOADED_AFTER: Duration = Duration::from_secs(1);
/// For so long after keys last waited for room a server does not ask for its even share.
pub(crate) const CONSTRAINED_FOR: Duration = Duration::from_secs(30);

/// So long after a server gave a slot away it gives none of its even share: who has taken that has to be seen to have room
/// still.
pub(crate) const RELIEF_PAUSE: Duration = Duration::from_secs(1);

/// What one willing server's part in a hook is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// It has room.
    Room,
    /// It has room, had none lately, and keeps what it has.
    Relieved,
    /// Keys have waited for room for a moment: it keeps what it has up to its share.
    Constrained,
    /// Keys wait for room: one slot goes, if someone has room.
    Overloaded,
}

/// What a server should do about one hook's slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Slots to lease, most wanted first; at most so many as the share leaves.
    pub(crate) take: Vec<SlotId>,
    /// How many of its slots are to be given up.
    pub(crate) give_up: usize,
    /// They are of its even share, and go since keys wait for room.
    pub(crate) is_relief: bool,
}

/// What the cluster looks like for one kind of slots of one hook.
pub(crate) struct View<'a> {
    pub(crate) hook: HookNumber,
    /// The definition version that the registration has.
    pub(crate) version: u32,
    /// All slots that are to be leased.
    pub(crate) slots: &'a [SlotId],
    pub(crate) rows: &'a HashMap<SlotId, SlotRow>,
    pub(crate) servers: &'a [ServerRow],
    /// The servers among which the slots spread; none for all willing ones.
    pub(crate) among: Option<&'a [ServerId]>,
    pub(crate) now: Timestamp,
}

/// Whether a server may lease slots of a hook.
pub(crate) fn is_willing(server: &ServerRow, hook: HookNumber, version: u32, now: Timestamp) -> bool {
    !server.draining
        && server.lease_until > now
        && server.hooks.iter().any(|declared| declared.hook == hook && declared.version >= version && declared.room > 0)
}

impl View<'_> {
    fn owner(&self, slot: SlotId) -> Option<ServerId> {
        let owner = self.rows.get(&slot)?.owner?;
        let lives = self.servers.iter().any(|server| server.id == owner && server.lease_until > self.now);
        lives.then_some(owner)
    }

    fn load(&self, server: &ServerRow) -> Load {
        let Some(load) = server.load.waiting.iter().find(|load| load.hook == self.hook) else { return Load::Room };
        let since = self.now.since(load.since);
        if load.keys > 0 && since > OVERLOADED_AFTER {
            Load::Overloaded
        } else if load.keys > 0 {
            Load::Constrained
        } else if since > CONSTRAINED_FOR {
            Load::Room
        } else {
            Load::Relieved
        }
    }

    /// How many slots each willing server should have. They add up to the number of slots, if anyone is willing.
    fn shares(&self) -> HashMap<ServerId, usize> {
        let mut owned: HashMap<ServerId, usize> = HashMap::new();
        for slot in self.slots {
            if let Some(owner) = self.owner(*slot) {
                *owned.entry(owner).or_default() += 1;
            }
        }
        let mut willing: Vec<(ServerId, usize, Load)> = self
            .willing()
            .map(|server| (server.id, owned.get(&server.id).copied().unwrap_or(0), self.load(server)))
            .collect();
        // Who has more keeps more; among equals each hook has its own order, so that small hooks spread too.
        willing.sort_by_key(|(id, owned, _)| (std::cmp::Reverse(*owned), rank(self.hook, *id), *id));
        let everyone = willing.len();
        let has = |wanted: Load| willing.iter().any(|(_, _, load)| *load == wanted);
        let takers = match (has(Load::Room), has(Load::Relieved)) {
            (true, _) => Load::Room,
            (false, true) => Load::Relieved,
            (false, false) => return self.shares_without_room(&willing),
        };
        let mut left = self.slots.len();
        let mut shares = HashMap::with_capacity(everyone);
        for (place, (id, owned, load)) in willing.iter().enumerate() {
            let even = even(self.slots.len(), everyone, place);
            let share = match load {
                load if *load == takers => continue,
                Load::Room | Load::Relieved | Load::Constrained => even.min(*owned),
                Load::Overloaded => even.min(owned.saturating_sub(1).max(1)),
            };
            left -= share;
            shares.insert(*id, share);
        }
        willing.retain(|(_, _, load)| *load == takers);
        let servers = willing.len();
        // Who is relieved gives nothing back: what the others leave comes on top.
        let kept = |owned: usize| if takers == Load::Relieved { owned } else { 0 };
        let left = left.saturating_sub(willing.iter().map(|(_, owned, _)| kept(*owned)).sum());
        for (place, (id, owned, _)) in willing.into_iter().enumerate() {
            shares.insert(id, kept(owned) + even(left, servers, place));
        }
        shares
    }

    /// Nobody has room, so nobody is better off with more than the others. But who has taken slots of one whose keys wait,
    /// and whose own have only begun to, keeps them: they would come back as soon as it has room again.
    fn shares_without_room(&self, willing: &[(ServerId, usize, Load)]) -> HashMap<ServerId, usize> {
        let mut left = self.slots.len();
        let mut shares = HashMap::with_capacity(willing.len());
        for (place, (id, owned, load)) in willing.iter().enumerate() {
            if *load == Load::Constrained && *owned > even(self.slots.len(), willing.len(), place) {
                left = left.saturating_sub(*owned);
                shares.insert(*id, *owned);
            }
        }
        let others: Vec<ServerId> = willing.iter().map(|(id, ..)| *id).filter(|id| !shares.contains_key(id)).collect();
        for (place, id) in others.iter().enumerate() {
            shares.insert(*id, even(left, others.len(), place));
        }
        shares
    }

    /// Those among which the slots spread.
    fn willing(&self) -> impl Iterator<Item = &ServerRow> {
        let willing = self.servers.iter().filter(|server| is_willing(server, self.hook, self.version, self.now));
        willing.filter(|server| self.among.is_none_or(|among| among.contains(&server.id)))
    }

    /// A server's part where all are alike, at most.
    fn even_share(&self) -> usize {
        self.slots.len().div_ceil(self.willing().count().max(1))
    }
}

/// The servers among which the slots and the permits of a hook with a cap spread: no more than there are permits, since a
/// server without one could run nothing. Who has some already comes first.
pub(crate) fn chosen(
    hook: HookNumber,
    version: u32,
    rows: &HashMap<SlotId, SlotRow>,
    servers: &[ServerRow],
    most: usize,
    now: Timestamp,
) -> Vec<ServerId> {
    let owned = |id: ServerId| rows.values().filter(|row| row.slot.hook == hook && row.owner == Some(id)).count();
    let mut willing: Vec<(std::cmp::Reverse<usize>, u64, ServerId)> = servers
        .iter()
        .filter(|server| is_willing(server, hook, version, now))
        .map(|server| (std::cmp::Reverse(owned(server.id)), rank(hook, server.id), server.id))
        .collect();
    willing.sort_unstable();
    willing.truncate(most.max(1));
    willing.into_iter().map(|(_, _, id)| id).collect()
}

/// What `server`, which leases `held` of the slots, should do.
pub(crate) fn plan(view: &View<'_>, server: ServerId, held: usize) -> Plan {
    let own_share = view.shares().get(&server).copied();
    let share = own_share.unwrap_or(0);
    if held > share {
        let own = view.servers.iter().find(|row| row.id == server);
        let is_overloaded = own.is_some_and(|row| view.load(row) == Load::Overloaded);
        // Who has no part in the hook gives everything up, whatever waits in it.
        let is_relief = own_share.is_some() && is_overloaded && held <= view.even_share();
        return Plan { take: Vec::new(), give_up: held - share, is_relief };
    }
    let mut free: Vec<SlotId> = view.slots.iter().copied().filter(|slot| view.owner(*slot).is_none()).collect();
    // Servers that look at the same moment begin at different places, so that few ask for the same slot.
    if !free.is_empty() {
        let length = free.len() as u64;
        let start = usize::try_from(rank(view.hook, server) % length).expect("below the length of a vector");
        free.rotate_left(start);
    }
    free.truncate(share - held);
    Plan { take: free, give_up: 0, is_relief: false }
}

/// An even part of so many slots, for the server at a place.
fn even(slots: usize, servers: usize, place: usize) -> usize {
    slots / servers + usize::from(place < slots % servers)
}

fn rank(hook: HookNumber, server: ServerId) -> u64 {
    let mut bytes = [0; 20];
    bytes[..16].copy_from_slice(server.0.as_bytes());
    bytes[16..].copy_from_slice(&hook.0.to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::driver::{HookLoad, ServerHook, ServerLoad, SlotToken};
    use crate::revision::Revision;

    const HOOK: HookNumber = HookNumber(1);
    const NOW: Timestamp = Timestamp(1_000_000);

    fn server(number: u128) -> ServerRow {
        ServerRow {
            id: ServerId(Uuid::from_u128(number)),
            name: format!("server-{number}").into(),
            lease_until: NOW.after(Duration::from_secs(10)),
            draining: false,
            hooks: vec![ServerHook { hook: HOOK, version: 2, room: 4 }],
            load: ServerLoad::default(),
            applied: Revision(0),
        }
    }

    fn waiting(mut server: ServerRow, keys: u64, seconds: u64) -> ServerRow {
        let since = Timestamp(NOW.0 - i64::try_from(seconds).unwrap() * 1_000);
        server.load.waiting = vec![HookLoad { hook: HOOK, keys, since, running: 4 }];
        server
    }

    struct World {
        slots: Vec<SlotId>,
        rows: HashMap<SlotId, SlotRow>,
        servers: Vec<ServerRow>,
        servers_max: Option<usize>,
        moves: usize,
    }

    impl World {
        fn new(slots: u32, servers: Vec<ServerRow>) -> World {
            let slots = (0..slots).map(|slot| SlotId { hook: HOOK, slot }).collect();
            World { slots, rows: HashMap::new(), servers, servers_max: None, moves: 0 }
        }

        fn held(&self, id: ServerId) -> usize {
            self.rows.values().filter(|row| row.owner == Some(id)).count()
        }

        fn counts(&self) -> Vec<usize> {
            self.servers.iter().map(|server| self.held(server.id)).collect()
        }

        /// One server looks and acts.
        fn step(&mut self, at: usize) {
            let id = self.servers[at].id;
            let among = self.servers_max.map(|most| chosen(HOOK, 2, &self.rows, &self.servers, most, NOW));
            let view = View {
                hook: HOOK,
                version: 2,
                slots: &self.slots,
                rows: &self.rows,
                servers: &self.servers,
                among: among.as_deref(),
                now: NOW,
            };
            let plan = plan(&view, id, self.held(id));
            for slot in plan.take {
                let row = SlotRow { slot, owner: Some(id), token: SlotToken(1), watermark: Revision(0) };
                self.rows.insert(slot, row);
            }
            let given: Vec<SlotId> = self
                .slots
                .iter()
                .copied()
                .filter(|slot| self.rows.get(slot).and_then(|row| row.owner) == Some(id))
                .collect();
            for slot in given.into_iter().take(plan.give_up) {
                self.rows.get_mut(&slot).unwrap().owner = None;
                self.moves += 1;
            }
        }

        fn rest(&mut self) {
            for _ in 0..200 {
                for at in 0..self.servers.len() {
                    self.step(at);
                }
            }
        }
    }

    #[test]
    fn g8_shares_are_even_but_for_one_and_then_rest() {
        let mut world = World::new(32, (0..3).map(server).collect());
        world.rest();
        let mut counts = world.counts();
        counts.sort_unstable();
        assert_eq!(counts, [10, 11, 11]);
        world.moves = 0;
        world.rest();
        assert_eq!(world.moves, 0);
    }

    #[test]
    fn g8_a_newcomer_gets_its_share_and_only_that_moves() {
        let mut world = World::new(32, vec![server(1), server(2)]);
        world.rest();
        world.servers.push(server(3));
        world.moves = 0;
        world.rest();
        assert_eq!(world.moves, 10);
        assert!(world.counts().iter().all(|count| (10..=11).contains(count)));
    }

    #[test]
    fn g10_servers_that_lack_the_hook_or_drain_or_have_lapsed_or_an_older_build_get_nothing() {
        let mut older = server(2);
        older.hooks[0].version = 1;
        let mut draining = server(3);
        draining.draining = true;
        let mut lapsed = server(4);
        lapsed.lease_until = NOW;
        let mut without = server(5);
        without.hooks.clear();
        let mut no_room = server(6);
        no_room.hooks[0].room = 0;
        let mut newer = server(7);
        newer.hooks[0].version = 3;
        let mut world = World::new(8, vec![server(1), older, draining, lapsed, without, no_room, newer]);
        world.rest();
        assert_eq!(world.counts(), [4, 0, 0, 0, 0, 0, 4]);
    }

    #[test]
    fn a_lapsed_owner_s_slots_are_free() {
        let mut world = World::new(8, vec![server(1), server(2)]);
        world.rest();
        world.servers[0].lease_until = NOW;
        world.step(1);
        assert_eq!(world.held(ServerId(Uuid::from_u128(2))), 8);
    }

    #[test]
    fn k29_slots_leave_an_overloaded_server_one_by_one_for_one_that_has_room() {
        let mut world = World::new(8, vec![waiting(server(1), 5, 2), server(2)]);
        world.rest();
        assert_eq!(world.counts(), [1, 7], "one stays, since its keys run there already");
        world.servers[0] = waiting(server(1), 0, 5);
        world.moves = 0;
        world.rest();
        assert_eq!((world.counts(), world.moves), (vec![1, 7], 0), "not back at once");
        world.servers[0] = waiting(server(1), 0, 60);
        world.rest();
        assert_eq!(world.counts(), [4, 4], "back once it has had room for a while");
    }

    #[test]
    fn k29_where_nobody_has_room_nothing_moves() {
        let mut world = World::new(8, vec![server(1), server(2)]);
        world.rest();
        world.servers = vec![waiting(server(1), 5, 2), waiting(server(2), 5, 2)];
        world.moves = 0;
        world.rest();
        assert_eq!(world.moves, 0);
    }

    #[test]
    fn x14_who_had_no_room_lately_takes_what_waits_elsewhere_and_gives_nothing_back_for_a_while() {
        let mut world = World::new(8, vec![server(1), server(2)]);
        world.rest();
        world.servers = vec![waiting(server(1), 0, 5), waiting(server(2), 5, 2)];
        world.rest();
        assert_eq!(world.counts(), [7, 1], "it has room now");
        world.servers[1] = waiting(server(2), 0, 1);
        world.moves = 0;
        world.rest();
        assert_eq!((world.counts(), world.moves), (vec![7, 1], 0), "not back at once");
        world.servers = vec![server(1), server(2)];
        world.rest();
        assert_eq!(world.counts(), [4, 4]);
    }

    #[test]
    fn x14_what_was_taken_of_a_busy_server_does_not_go_to_and_fro() {
        let mut world = World::new(8, vec![server(1), server(2)]);
        world.rest();
        let busy = waiting(server(1), 5, 2);
        world.servers = vec![busy.clone(), waiting(server(2), 0, 1)];
        world.rest();
        let counts = world.counts();
        world.moves = 0;
        world.servers = vec![busy, waiting(server(2), 1, 0)];
        world.rest();
        assert_eq!((world.counts(), world.moves), (counts, 0), "its keys have only begun to wait");
    }

    #[test]
    fn x14_one_whose_keys_have_begun_to_wait_has_no_room_and_keeps_its_share() {
        let mut world = World::new(8, vec![server(1), server(2)]);
        world.rest();
        world.servers = vec![waiting(server(1), 5, 2), waiting(server(2), 1, 0)];
        world.moves = 0;
        world.rest();
        assert_eq!((world.counts(), world.moves), (vec![4, 4], 0));
    }

    #[test]
    fn x14_only_what_goes_of_an_even_share_is_relief() {
        let world = |owned: u32, servers: Vec<ServerRow>| {
            let mut world = World::new(8, servers);
            for slot in 0..owned {
                let slot = SlotId { hook: HOOK, slot };
                let owner = Some(ServerId(Uuid::from_u128(1)));
                world.rows.insert(slot, SlotRow { slot, owner, token: SlotToken(1), watermark: Revision(0) });
            }
            world
        };
        let plan_of_first = |world: &World| {
            let (hook, slots, rows) = (HOOK, &world.slots[..], &world.rows);
            let view = View { hook, version: 2, slots, rows, servers: &world.servers, among: None, now: NOW };
            plan(&view, ServerId(Uuid::from_u128(1)), world.held(ServerId(Uuid::from_u128(1))))
        };
        let joined = plan_of_first(&world(8, vec![waiting(server(1), 5, 2), server(2)]));
        assert_eq!((joined.give_up, joined.is_relief), (4, false));
        let relief = plan_of_first(&world(4, vec![waiting(server(1), 5, 2), server(2)]));
        assert_eq!((relief.give_up, relief.is_relief), (1, true));
        // The slots of a hook with a cap go to who has the permits, and what waits for one is no reason to keep them.
        let world = world(4, vec![waiting(server(1), 5, 2), server(2)]);
        let among = [ServerId(Uuid::from_u128(2))];
        let view = View {
            hook: HOOK,
            version: 2,
            slots: &world.slots,
            rows: &world.rows,
            servers: &world.servers,
            among: Some(&among),
            now: NOW,
        };
        let excluded = plan(&view, ServerId(Uuid::from_u128(1)), 4);
        assert_eq!((excluded.give_up, excluded.is_relief), (4, false));
    }

    #[test]
    fn k39_no_more_servers_get_slots_than_there_are_permits() {
        let mut world = World::new(32, (0..4).map(server).collect());
        world.servers_max = Some(3);
        world.rest();
        let mut counts = world.counts();
        counts.sort_unstable();
        assert_eq!(counts, [0, 10, 11, 11]);
    }

    proptest! {
        #[test]
        fn g8_whatever_happened_before_slots_come_to_rest_with_even_shares(
            slots in 1_u32..70,
            servers in 1_u128..8,
            steps in proptest::collection::vec((0_usize..8, any::<bool>()), 0..60),
        ) {
            let mut world = World::new(slots, (0..servers).map(server).collect());
            for (at, drains) in steps {
                let at = at % world.servers.len();
                world.servers[at].draining = drains;
                world.step(at);
            }
            for server in &mut world.servers {
                server.draining = false;
            }
            world.rest();
            let counts = world.counts();
            prop_assert_eq!(counts.iter().sum::<usize>(), slots as usize);
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{:?}", counts);
            world.moves = 0;
            world.rest();
            prop_assert_eq!(world.moves, 0);
        }
    }
}
