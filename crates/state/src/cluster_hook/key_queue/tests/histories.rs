//! Random histories, held against a naive reader of the log.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// One step of a random history. What was sent last may become durable first, since batches overtake each other; what is
/// committed together with writes may be refused.
#[derive(Debug, Clone)]
enum Step {
    Request { key: u8 },
    Start,
    End { which: usize, how: u8 },
    Store { most: usize },
    StoreLast,
    Commit { which: usize, refused: bool },
    Park,
    Wake,
    Reread,
    Act { target: u64, action: u8 },
    Bound { to: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_u8..6).prop_map(|key| Step::Request { key }),
        5 => Just(Step::Start),
        4 => (any::<usize>(), 0_u8..8).prop_map(|(which, how)| Step::End { which, how }),
        4 => (0_usize..6).prop_map(|most| Step::Store { most }),
        2 => Just(Step::StoreLast),
        2 => (any::<usize>(), proptest::bool::weighted(0.2)).prop_map(|(which, refused)| Step::Commit { which, refused }),
        2 => Just(Step::Park),
        1 => Just(Step::Wake),
        2 => Just(Step::Reread),
        1 => (1_u64..200, 0_u8..3).prop_map(|(target, action)| Step::Act { target, action }),
        1 => (1_usize..20).prop_map(|to| Step::Bound { to }),
    ];
    proptest::collection::vec(step, 1..250)
}

/// The log, and what is durable of it: all that a naive reader needs.
#[derive(Default)]
struct Model {
    log: BTreeMap<RequestId, String>,
    receipts: BTreeMap<RequestId, ReceiptOutcome>,
    exceptions: BTreeSet<RequestId>,
    let_go: BTreeSet<RequestId>,
    interrupted: BTreeSet<RequestId>,
    started: BTreeMap<String, Vec<RequestId>>,
    running: Vec<(Started<u64>, Revision)>,
    committing: Vec<Committing>,
    seen: BTreeMap<String, Revision>,
}

/// A run's end on its way together with its writes.
struct Committing {
    run: Started<u64>,
    snapshot: Revision,
    sent: Vec<RequestId>,
    retry_at: Option<Timestamp>,
}

impl Model {
    fn has_seen(&mut self, key: &str, snapshot: Revision) {
        let seen = self.seen.entry(key.to_owned()).or_default();
        *seen = (*seen).max(snapshot);
    }

    /// An item becomes durable.
    fn store(&mut self, item: &Item<u64>) -> Result<(), TestCaseError> {
        match item {
            Item::Receipt { request, outcome } => {
                let twice = self.receipts.insert(*request, *outcome);
                prop_assert!(twice.is_none(), "two receipts of {}", request);
                self.exceptions.remove(request);
            }
            // A receipt that is there already wins.
            Item::Exception { request, state, .. } => {
                let finished = self.receipts.contains_key(request);
                prop_assert!(!finished || *state == ExceptionState::Parked, "{} is finished", request);
                if !finished {
                    self.exceptions.insert(*request);
                }
            }
        }
        Ok(())
    }

    /// A run's end becomes durable together with its writes: what was sent, whatever has come up since.
    fn commit(&mut self, committing: &Committing) -> Result<(), TestCaseError> {
        let Committing { run, snapshot, sent, retry_at } = committing;
        let held = sent.last().filter(|_| retry_at.is_some());
        for request in sent.iter().filter(|request| Some(*request) != held) {
            let done = *request == run.request;
            let outcome = if done { ReceiptOutcome::Done } else { ReceiptOutcome::Coalesced };
            self.store(&Item::Receipt { request: *request, outcome })?;
        }
        if let Some(held) = held {
            self.exceptions.insert(*held);
        } else {
            self.has_seen(&run.name, *snapshot);
        }
        Ok(())
    }
}

fn history(delivery: Delivery, bound: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut bench = Bench::bounded(delivery, bound);
    let mut highest_bound = bound;
    let mut model = Model::default();
    let mut revision = 0_u64;
    let mut waiting: VecDeque<(Item<u64>, Ticket)> = VecDeque::new();
    let mut rereading: Option<Vec<(RequestId, String)>> = None;
    let settle_some =
        |bench: &mut Bench, model: &mut Model, waiting: &mut VecDeque<(Item<u64>, Ticket)>, most: usize| {
            for _ in 0..most {
                let Some((item, ticket)) = waiting.pop_front() else { break };
                model.store(&item)?;
                bench.queue.settled(ticket, &mut bench.out);
            }
            Ok::<(), TestCaseError>(())
        };
    for step in steps {
        match step {
            Step::Request { key } => {
                revision += 1;
                let name = format!("k{key}");
                model.log.insert(id(revision), name.clone());
                bench.request(revision, &name);
            }
            Step::Start => {
                if let Some(run) = bench.start_at(Revision(revision)) {
                    let name = run.name.to_string();
                    let others = model.running.iter().any(|(going, _)| *going.name == *name)
                        || model.committing.iter().any(|committing| *committing.run.name == *name);
                    prop_assert!(!others, "two runs of {}", name);
                    prop_assert!(!model.receipts.contains_key(&run.request), "{} ran again", run.request);
                    let before = model.started.entry(name.clone()).or_default();
                    // A run may only fall back behind one that was interrupted, and then let go of or left in the log.
                    let fine =
                        before.last().is_none_or(|last| *last <= run.request || model.interrupted.contains(last));
                    prop_assert!(fine, "{} fell back", name);
                    if delivery == Delivery::EveryChange {
                        // Everything of the key before it is finished. What an operator let go of may be on its way to be.
                        let on_its_way = |id: &RequestId| {
                            let receipt = |item: &Item<u64>| match item {
                                Item::Receipt { request, .. } => request == id,
                                Item::Exception { .. } => false,
                            };
                            model.let_go.contains(id) && waiting.iter().any(|(item, _)| receipt(item))
                        };
                        let unfinished = model.log.iter().find(|(id, key)| {
                            let before = **key == name && **id < run.request;
                            before && !model.receipts.contains_key(id) && !on_its_way(id)
                        });
                        prop_assert!(unfinished.is_none(), "{} overtook {:?}", run.request, unfinished);
                    }
                    before.push(run.request);
                    model.running.push((run, Revision(revision)));
                }
            }
            Step::End { which, how } => {
                if !model.running.is_empty() {
                    let (run, snapshot) = model.running.remove(which % model.running.len());
                    let end = match how {
                        0 => failed(),
                        1 => RunEnd::RetryAt(bench.now.after(Duration::from_secs(5))),
                        2 => RunEnd::Interrupted,
                        _ => RunEnd::Done,
                    };
                    if end == RunEnd::Interrupted {
                        model.interrupted.insert(run.request);
                    }
                    let retry_at = (how == 4).then(|| bench.now.after(Duration::from_secs(5)));
                    let with_writes = matches!(how, 3 | 4);
                    if with_writes && let Some(sent) = bench.queue.commit_begins(run.key, run.run) {
                        model.committing.push(Committing { run, snapshot, sent, retry_at });
                    } else {
                        if end == RunEnd::Done {
                            model.has_seen(&run.name, snapshot);
                        }
                        bench.end(&run, end);
                    }
                }
            }
            Step::Store { most } => settle_some(&mut bench, &mut model, &mut waiting, most)?,
            Step::StoreLast => {
                if let Some(last) = waiting.pop_back() {
                    waiting.push_front(last);
                    settle_some(&mut bench, &mut model, &mut waiting, 1)?;
                }
            }
            Step::Commit { which, refused } => {
                if !model.committing.is_empty() {
                    let committing = model.committing.remove(which % model.committing.len());
                    if refused {
                        bench.end(&committing.run, failed());
                    } else {
                        model.commit(&committing)?;
                        let (key, run) = (committing.run.key, committing.run.run);
                        bench.queue.committed(key, run, committing.retry_at, &mut bench.out);
                    }
                }
            }
            Step::Park => bench.queue.park(Revision(revision), 3, &mut bench.out),
            Step::Bound { to } => {
                bench.queue.set_bound(to);
                highest_bound = highest_bound.max(to);
            }
            Step::Wake => {
                bench.now = bench.now.after(Duration::from_secs(10));
                bench.queue.wake(bench.now);
            }
            Step::Act { target, action } => {
                revision += 1;
                let action = match action {
                    0 => RequestAction::Retry,
                    1 => RequestAction::Discard,
                    _ => RequestAction::Cancel,
                };
                if bench.queue.has(id(target)) {
                    if action != RequestAction::Retry {
                        model.let_go.insert(id(target));
                    }
                    bench.queue.act(id(revision), id(target), action, &mut bench.out);
                }
                bench.queue.passed(Revision(revision));
            }
            Step::Reread => match rereading.take() {
                None => {
                    if let Some(after) = bench.queue.wants_reread() {
                        bench.queue.reread_begins();
                        // The page as it is read now, handed in later.
                        let page = model.log.range(id(after.0 + 1)..).map(|(id, key)| (*id, key.clone())).collect();
                        rereading = Some(page);
                    }
                }
                Some(page) => {
                    let finished: HashSet<RequestId> = model.receipts.keys().copied().collect();
                    let read_to = page.last().map_or(Revision(revision), |(id, _)| id.revision);
                    for (id, key) in page {
                        bench.queue.reread(id, &key, id.revision.0, &finished, &mut bench.out);
                    }
                    bench.queue.reread_ends(read_to);
                }
            },
        }
        for command in std::mem::take(&mut bench.out) {
            if let Command::Cancel { key, run } = &command {
                // An operator has let go of something that the run covers: however it ends, the rest is to be run again.
                let running = model.running.iter().map(|(run, _)| run);
                let going = running.chain(model.committing.iter().map(|committing| &committing.run));
                let cancelled = going.filter(|going| (&going.key, &going.run) == (key, run));
                model.interrupted.extend(cancelled.map(|going| going.request));
            }
            if let Command::Settle { item, ticket } = command {
                // One exception of a request may land after another that was sent later.
                let of = |item: &Item<u64>| match item {
                    Item::Exception { request, .. } => Some(*request),
                    Item::Receipt { .. } => None,
                };
                let twice = of(&item).is_some() && waiting.iter().any(|(other, _)| of(other) == of(&item));
                prop_assert!(!twice, "two exceptions of {:?} are on their way", of(&item));
                waiting.push_back((item, ticket));
            }
        }
        let watermark = bench.queue.watermark();
        let below = model
            .log
            .range(..id(watermark.0 + 1))
            .find(|(id, _)| !model.receipts.contains_key(id) && !model.exceptions.contains(id));
        prop_assert!(below.is_none(), "the watermark {} is above {:?}", watermark, below);
        prop_assert!(bench.queue.len() <= highest_bound, "{} in memory", bench.queue.len());
    }
    // Whatever is left comes to its end in time.
    for _ in 0..10_000 {
        for command in std::mem::take(&mut bench.out) {
            if let Command::Settle { item, ticket } = command {
                waiting.push_back((item, ticket));
            }
        }
        settle_some(&mut bench, &mut model, &mut waiting, usize::MAX)?;
        for committing in std::mem::take(&mut model.committing) {
            model.commit(&committing)?;
            let (key, run) = (committing.run.key, committing.run.run);
            bench.queue.committed(key, run, committing.retry_at, &mut bench.out);
        }
        for (run, snapshot) in std::mem::take(&mut model.running) {
            model.has_seen(&run.name, snapshot);
            bench.end(&run, RunEnd::Done);
        }
        if let Some(page) = rereading.take() {
            let finished: HashSet<RequestId> = model.receipts.keys().copied().collect();
            let read_to = page.last().map_or(Revision(revision), |(id, _)| id.revision);
            for (id, key) in page {
                bench.queue.reread(id, &key, id.revision.0, &finished, &mut bench.out);
            }
            bench.queue.reread_ends(read_to);
        } else if let Some(after) = bench.queue.wants_reread() {
            bench.queue.reread_begins();
            rereading = Some(model.log.range(id(after.0 + 1)..).map(|(id, key)| (*id, key.clone())).collect());
        }
        bench.now = bench.now.after(Duration::from_secs(100));
        bench.queue.wake(bench.now);
        while let Some(run) = bench.start_at(Revision(revision)) {
            model.running.push((run, Revision(revision)));
        }
        if model.running.is_empty() && bench.out.is_empty() && waiting.is_empty() && rereading.is_none() {
            break;
        }
    }
    let dead: BTreeSet<&String> = model.exceptions.iter().filter_map(|id| model.log.get(id)).collect();
    for (request, key) in &model.log {
        let paused = dead.contains(key);
        prop_assert!(model.receipts.contains_key(request) || paused, "{} of {} was lost", request, key);
        if model.receipts.get(request) == Some(&ReceiptOutcome::Coalesced) && !paused {
            let covered = model.seen.get(key).is_some_and(|seen| *seen >= request.revision);
            let later_let_go = model.let_go.iter().any(|gone| gone > request && model.log.get(gone) == Some(key));
            prop_assert!(covered || later_let_go, "{} of {} was coalesced into nothing", request, key);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn k13_whatever_happens_every_change_runs_in_order_and_none_is_lost(steps in steps()) {
        history(Delivery::EveryChange, 10_000, steps)?;
    }

    #[test]
    fn k15_whatever_happens_latest_state_sees_the_last_change_of_every_key(steps in steps()) {
        history(Delivery::LatestState, 10_000, steps)?;
    }

    #[test]
    fn k50_with_little_memory_nothing_is_lost_and_nothing_out_of_order(
        steps in steps(),
        bound in 1_usize..12,
        latest in any::<bool>(),
    ) {
        let delivery = if latest { Delivery::LatestState } else { Delivery::EveryChange };
        history(delivery, bound, steps)?;
    }
}
