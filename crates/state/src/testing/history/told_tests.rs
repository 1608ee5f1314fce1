//! X1: faults that show only against what servers declared, what registrations bound, and how slots were spread.

use std::time::Duration;

use super::*;
use crate::cluster_hook::registration::{Decision, Registration, RegistrationEntity, decide};

/// How long a story is calm before its slots are looked at, in lines.
const CALM: u64 = 10;

impl Story {
    /// A story that is judged by its own lines and log alone.
    fn told() -> Story {
        Story { expectation: Expectation::default(), ..Story::new() }
    }

    fn declare(&mut self, server: usize, version: u32, room: u32) {
        self.say(server, HistoryEvent::Declared { hook: HOOK, version, room });
    }

    fn join(&mut self, server: usize) {
        self.declare(server, 1, 64);
        self.say(server, HistoryEvent::Joined { id: server_id(server) });
    }

    /// The hook's registration in this version.
    fn register(&mut self, before: Option<&RegistrationEntity>, wanted: &Registration) -> RegistrationEntity {
        let revision = Revision(self.log.len() as u64 + 1);
        let Ok(Decision::Put(entity)) = decide(before, wanted, HOOK, revision) else { panic!("nothing to write") };
        self.change("registration");
        let json = serde_json::to_string(&entity).unwrap();
        let entry = LogEntry::Change {
            path: Path::parse("/cluster-hooks/hook").unwrap(),
            before: None,
            after: Some(StoredDocument { format: 1, json: json.into() }),
            hooks: Vec::new(),
        };
        let last = self.log.last_mut().unwrap();
        *last = Arc::new(LogRow { entries: vec![entry], ..(**last).clone() });
        *entity
    }

    /// Slots from this one on for each server, so many.
    fn lease_all(&mut self, counts: [u32; 3]) {
        let mut slot = 0;
        for (server, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                self.lease(server, slot);
                slot += 1;
            }
        }
    }

    fn three_servers(counts: [u32; 3]) -> Story {
        let mut story = Story::told();
        story.expectation.spread_within = Some(Duration::from_nanos(CALM));
        (0..3).for_each(|server| story.join(server));
        story.lease_all(counts);
        story
    }

    /// Time in which nothing happens to slots.
    fn calm(&mut self) {
        let request = RequestId { revision: Revision(1), sequence: 0, hook: HookNumber(2) };
        for _ in 0..=CALM {
            self.say(7, HistoryEvent::Acted { request });
        }
    }
}

fn registration(version: u32) -> Registration {
    Registration::new("hook", version).on("/stores/{store}").key("{store}").attempts(2).runs_in_cluster(2)
}

#[test]
fn x01_what_servers_declared_and_registrations_bound_passes() {
    let mut story = Story::told();
    let first = story.register(None, &registration(1));
    story.join(0);
    let fence = story.lease(0, 0);
    story.whole(0, fence, "a");
    story.register(Some(&first), &registration(2));
    story.declare(0, 2, 8);
    story.whole(0, fence, "b");
    assert_eq!(story.rules(), []);
}

#[test]
fn x01_a_server_that_has_not_declared_the_hook_owns_no_slot_and_runs_nothing() {
    let mut story = Story::told();
    story.join(0);
    let fence = story.lease(1, 0);
    story.whole(1, fence, "a");
    assert_eq!(story.rules(), [Rule::SlotOfUnknownHook, Rule::UnknownHookRun]);
}

#[test]
fn x01_code_of_a_lower_version_runs_no_request_of_a_higher_one() {
    let mut story = Story::told();
    let first = story.register(None, &registration(1));
    story.join(0);
    let fence = story.lease(0, 0);
    let earlier = story.change("a");
    story.register(Some(&first), &registration(2));
    // What was asked for before that it may run still.
    let token = story.start(0, fence, "a", earlier);
    story.end(0, "a", earlier, token);
    story.receipt(0, fence, earlier);
    story.whole(0, fence, "b");
    assert_eq!(story.rules(), [Rule::UnknownHookRun]);
}

#[test]
fn x01_the_registration_bounds_runs_at_once_and_attempts() {
    let mut story = Story::told();
    story.register(None, &registration(1));
    story.join(0);
    let fence = story.lease(0, 0);
    let requests = ["a", "b", "c"].map(|key| (key, story.change(key)));
    let tokens = requests.map(|(key, request)| story.start(0, fence, key, request));
    for ((key, request), token) in requests.into_iter().zip(tokens) {
        story.end(0, key, request, token);
        story.receipt(0, fence, request);
    }
    if let Some(HistoryEvent::RunStarted { attempt, .. }) = story
        .lines
        .iter_mut()
        .map(|line| &mut line.event)
        .find(|event| matches!(event, HistoryEvent::RunStarted { .. }))
    {
        *attempt = 3;
    }
    assert_eq!(story.rules(), [Rule::CapExceeded, Rule::TooManyAttempts]);
}

#[test]
fn x01_a_server_runs_no_more_at_once_than_it_declared_whatever_its_earlier_life_ran() {
    let of_two_lives = |room: u32| {
        let mut story = Story::told();
        story.declare(0, 1, room);
        let (before, after) = (story.lease(0, 0), story.lease(0, 1));
        if let Some(HistoryEvent::SlotLeased { id, .. }) = story.lines.last_mut().map(|line| &mut line.event) {
            *id = server_id(5);
        }
        let requests = ["a", "b", "c"].map(|key| story.change(key));
        // What died with the life before it is not counted.
        story.start(0, before, "a", requests[0]);
        for (key, request) in [("b", requests[1]), ("c", requests[2])] {
            story.start(0, after, key, request);
        }
        story.rules().contains(&Rule::CapExceeded)
    };
    assert!(of_two_lives(1) && !of_two_lives(2));
}

#[test]
fn x01_slots_that_stay_unevenly_spread_are_found() {
    let found = |counts: [u32; 3]| {
        let mut story = Story::three_servers(counts);
        let too_soon = looks(&story.lines, CALM);
        story.calm();
        (too_soon, looks(&story.lines, CALM), story.rules())
    };
    assert_eq!(found([3, 3, 2]), (0, 1, vec![]));
    assert_eq!(found([4, 3, 2]), (0, 1, vec![Rule::Uneven]));
    assert_eq!(found([2, 2, 0]), (0, 1, vec![Rule::Uneven]), "one that joined and got none");
}

#[test]
fn x01_who_left_withdrew_or_was_killed_has_no_share_and_keeps_none() {
    let gone = [
        HistoryEvent::Left { id: server_id(2) },
        HistoryEvent::Withdrawn { hook: HOOK },
        HistoryEvent::Halted { server: "server-2".to_owned() },
    ];
    for event in gone {
        let mut even = Story::three_servers([3, 3, 0]);
        even.say(2, event.clone());
        even.calm();
        assert_eq!(even.rules(), [], "{event:?}");
        let mut keeps = Story::three_servers([3, 3, 3]);
        keeps.say(2, event.clone());
        keeps.calm();
        assert_eq!(keeps.rules(), [Rule::Uneven], "{event:?}");
    }
}

#[test]
fn x01_what_overload_explains_is_not_uneven() {
    let mut story = Story::three_servers([5, 1, 1]);
    story.calm();
    story.say(1, HistoryEvent::Crowded { hook: HOOK });
    assert_eq!(looks(&story.lines, CALM), 0);
    assert_eq!(story.rules(), []);
}

#[test]
fn x01_a_server_that_was_there_throughout_and_ran_few_of_many_keys_is_found() {
    let ran = |few: usize| {
        let mut story = Story::three_servers([1, 1, 1]);
        let fences: Vec<_> = (0..3).map(|slot| fence(HOOK.0, slot, u64::from(slot) + 1)).collect();
        for key in 0..300 {
            let server = if key < few { 2 } else { key % 2 };
            story.whole(server, fences[server], &format!("k{key}"));
        }
        story.rules()
    };
    assert_eq!(ran(60), []);
    assert_eq!(ran(40), [Rule::Uneven]);
}

fn looks(lines: &[Line], calm: u64) -> usize {
    super::super::super::looks_at_spread(lines, Duration::from_nanos(calm))
}
