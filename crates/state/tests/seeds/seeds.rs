//! Runs seeds, several at once, each in a runtime of its own on one thread, so that nothing is shared between them.

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tidegate_state::driver::Fence;
use tidegate_state::testing::StoreKind;
use tidegate_state::testing::history::HistoryEvent;

use super::hooks::{Flaw, PLANNED_PANIC};
use super::plan::Plan;
use super::play::{Evidence, play};
use super::verdict::{Verdict, judge};

/// How many seeds are played at once for each core. On memory they wait most of the time, by the machine's clock, for what is
/// tried again after a while; on SQLite for the disk, where many at once only make each of them slow.
fn at_once_per_core(kind: StoreKind) -> usize {
    match kind {
        StoreKind::Memory => 24,
        StoreKind::Sqlite | StoreKind::Postgres => 4,
    }
}

/// After so many failures no further seed is begun.
const FAILURES_MAX: usize = 5;
/// How many lines of a history a failure prints.
const LINES_MAX: usize = 400;

/// Which seeds are played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seeds {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Seeds {
    /// From the variables that the binary's documentation lists; otherwise the first so many, the same ones in every run.
    pub(crate) fn from_environment(count: u64) -> Seeds {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
        match number("TIDEGATE_SEED") {
            Some(seed) => Seeds { first: seed, count: 1 },
            None => match number("TIDEGATE_SEEDS") {
                Some(count) => {
                    let first = number("TIDEGATE_SEEDS_FROM").unwrap_or_else(|| rand::random::<u32>().into());
                    Seeds { first, count }
                }
                None => Seeds { first: 1, count },
            },
        }
    }
}

/// How many servers there are at most: one process at a time has a SQLite file.
fn servers_max(kind: StoreKind) -> usize {
    match kind {
        StoreKind::Memory | StoreKind::Postgres => 4,
        StoreKind::Sqlite => 1,
    }
}

/// Plays one seed.
pub(crate) fn play_seed(kind: StoreKind, seed: u64, flaw: Flaw) -> Evidence {
    silence_planned_panics();
    let plan = Arc::new(Plan::draw(seed, servers_max(kind)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(play(kind, plan, flaw))
}

/// Plays seeds and judges each; panics with those that failed, and how to repeat them.
pub(crate) fn play_all(kind: StoreKind, seeds: Seeds) -> Verdict {
    println!("{kind:?}: {} seeds from {}", seeds.count, seeds.first);
    let next = AtomicU64::new(0);
    let failed = AtomicUsize::new(0);
    let sum = Mutex::new(Verdict::default());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores * at_once_per_core(kind) {
            scope.spawn(|| {
                while failed.load(Ordering::Relaxed) < FAILURES_MAX {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    if place >= seeds.count {
                        return;
                    }
                    let seed = seeds.first + place;
                    let verdict = judged(kind, seed);
                    if !verdict.violations.is_empty() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    sum.lock().add(&verdict);
                }
            });
        }
    });
    let sum = sum.into_inner();
    println!("{kind:?}: {sum}");
    assert!(sum.violations.is_empty(), "{}", sum.violations.join("\n"));
    sum
}

/// The verdict on a seed; if it failed, its one violation tells everything.
fn judged(kind: StoreKind, seed: u64) -> Verdict {
    let played = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let evidence = play_seed(kind, seed, Flaw::None);
        let verdict = judge(&evidence);
        (evidence, verdict)
    }));
    match played {
        Ok((evidence, mut verdict)) => {
            if !verdict.violations.is_empty() {
                verdict.violations = vec![report(kind, &evidence, &verdict)];
            }
            verdict
        }
        Err(panic) => {
            let what = panic.downcast_ref::<String>().cloned();
            let what = what.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let plan = Plan::draw(seed, servers_max(kind));
            let violation = format!("{}\nit panicked: {}\n{plan}", replay(kind, seed), what.unwrap_or_default());
            Verdict { violations: vec![violation], ..Verdict::default() }
        }
    }
}

fn replay(kind: StoreKind, seed: u64) -> String {
    format!("{kind:?}, seed {seed} failed; TIDEGATE_SEED={seed} plays it again")
}

fn report(kind: StoreKind, evidence: &Evidence, verdict: &Verdict) -> String {
    let mut text = format!("{}\n", replay(kind, evidence.plan.seed));
    for violation in &verdict.violations {
        let _ = writeln!(text, "  {violation}");
    }
    let _ = write!(text, "{}", evidence.plan);
    for submitted in &evidence.submitted {
        let _ = writeln!(text, "  {:?}: {:?}", submitted.operation, submitted.answer);
    }
    for (number, line) in evidence.history.iter().enumerate().take(LINES_MAX) {
        let _ = writeln!(text, "  {number:4} {} {}", line.server, in_short(&line.event));
    }
    text
}

/// A line of a history as a person can read a hundred of them.
fn in_short(event: &HistoryEvent) -> String {
    let slot = |fence: &Fence| format!("{}/{} token {}", fence.slot.hook.0, fence.slot.slot, fence.token.0);
    match event {
        HistoryEvent::RunStarted { hook, version, key, fence, request, attempt, snapshot, .. } => {
            format!("starts {request}: {hook} v{version} {key}, attempt {attempt}, at {snapshot}, slot {}", slot(fence))
        }
        HistoryEvent::RunEnded { hook, key, request, outcome, .. } => {
            format!("ended {request}: {hook} {key} {outcome:?}")
        }
        HistoryEvent::SlotLeased { fence, .. } => format!("leased {}", slot(fence)),
        HistoryEvent::SlotReleased { fence } => format!("released {}", slot(fence)),
        HistoryEvent::SlotLost { fence } => format!("lost {}", slot(fence)),
        HistoryEvent::Receipt { request, fence, outcome, durable } => {
            format!("receipt {request}: {outcome:?}, durable {durable}, slot {}", slot(fence))
        }
        HistoryEvent::Held { request, fence, dead, durable } => {
            format!("held {request}: dead {dead}, durable {durable}, slot {}", slot(fence))
        }
        HistoryEvent::Acted { request } => format!("acted on {request}"),
        HistoryEvent::Fault { what } => format!("fault {what}"),
        HistoryEvent::Joined { .. }
        | HistoryEvent::Left { .. }
        | HistoryEvent::LeaseEnded { .. }
        | HistoryEvent::Declared { .. }
        | HistoryEvent::Withdrawn { .. }
        | HistoryEvent::Crowded { .. }
        | HistoryEvent::Halted { .. }
        | HistoryEvent::Committed { .. } => format!("{event:?}"),
    }
}

/// Hooks panic as their seed wants it, thousands of times: that is no news.
fn silence_planned_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let otherwise = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload_as_str() != Some(PLANNED_PANIC) {
                otherwise(panic);
            }
        }));
    });
}
