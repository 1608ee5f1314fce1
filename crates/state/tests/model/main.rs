//! A model of the slot protocol, checked exhaustively for small sizes: every order in which its steps can happen, with
//! crashes, lapsed leases, moved slots, failing runs and lost answers at every place.
//!
//! **Modelled**: leases by life and token, heartbeats and the end of a lease on either side, taking over and then reading
//! what is pending, the tail and its buffer, order per key, coalescing (`LatestState`), receipts with and without writes,
//! exceptions, requests copied out of the log, low watermarks, giving a slot up with and without interrupting its run,
//! messages that arrive late or again or from the dead, and a log that is compacted past a server.
//!
//! **Left out**: time (what may end, ends at any moment; a wait is over at any moment), the balance of slots (a free slot is
//! taken by anyone), operators' actions, attempts and start marks, layouts, permits, bounded memory and rereads, definition
//! versions, epochs, catch-up of new hooks, writes in mid-run. A change of the log asks for one run of one hook. An
//! exception that is sent again never arrives after a later one.
//!
//! `docs/slot-protocol.md` says how to run it and read what it finds, and which code each step stands for.
#![allow(clippy::unwrap_used)]

mod map;
mod protocol;
mod requests;
mod rules;
mod server;
mod size;
mod store;
mod variants;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use crate::protocol::SlotProtocol;
use crate::rules::DONE;
use crate::size::Size;
use crate::variants::Variant;

/// Checks every state of this size: the protocol keeps every rule, and a broken variant breaks its own.
fn check(size: Size, variant: Variant) {
    let model = SlotProtocol { size, variant };
    let Some(rule) = variant.breaks() else {
        return expect_sound(&model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join());
    };
    let checker = model.checker().finish_when(HasDiscoveries::AllOf(BTreeSet::from([rule]))).spawn_bfs().join();
    let path =
        checker.discovery(rule).unwrap_or_else(|| panic!("{variant:?} is not caught: nothing breaks \"{rule}\""));
    println!("{variant:?}: \"{rule}\" is broken by");
    path.into_actions().iter().for_each(|action| println!("    {action:?}"));
}

fn expect_sound(checker: &impl Checker<SlotProtocol>) {
    println!("{} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    let mut found = checker.discoveries();
    assert!(found.remove(DONE).is_some(), "no way leads to the end");
    let broken: Vec<_> = found.into_iter().map(|(rule, path)| (rule, path.into_actions())).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

macro_rules! checks {
    ($($name:ident: $variant:ident at $size:ident;)*) => {
        $(
            #[test]
            fn $name() {
                check(Size::$size(), Variant::$variant);
            }
        )*
    };
}

checks! {
    // The protocol keeps every rule.
    k44_slots_that_move: Sound at moving;
    k44_slots_of_two_owners: Sound at two_slots;
    k45_receipts_against_take_overs: Sound at zombies;
    k46_servers_that_crash: Sound at crashing;
    k47_watermarks_over_waits_and_dead_letters: Sound at waiting;
    k47_servers_that_skip_rows: Sound at lagging;
    k48_owners_that_both_believe: Sound at lapsing;
    k15_changes_that_are_coalesced: Sound at coalescing;
    k15_changes_that_are_coalesced_over_crashes: Sound at coalescing_over_faults;

    // What each broken variant breaks is found.
    k44_caught_pending_is_read_before_taking_over: ReadsBeforeTaking at moving;
    k44_caught_a_release_before_runs_have_ended: ReleasesWithRunsGoing at moving;
    k45_caught_effects_without_a_fence: EffectsAreNotFenced at zombies;
    k45_caught_receipts_without_the_token: ReceiptsWithoutToken at zombies;
    k45_caught_a_start_before_the_receipt: StartsBeforeReceipt at zombies;
    k45_caught_a_completion_sent_anew: CompletionSentAnew at zombies;
    k46_caught_a_recovery_that_ignores_receipts: RecoveryIgnoresReceipts at moving;
    k47_caught_a_watermark_too_high: WatermarkTooHigh at waiting;
    k47_caught_a_dead_letter_without_exception: DeadLetterWithoutException at waiting;
    k47_caught_a_run_that_overtakes_its_exception: StartsWhileParking at waiting;
    k47_caught_a_watermark_over_skipped_rows: RaisesPastSkippedRows at lagging;
    k48_caught_a_lapsed_lease_that_is_renewed: RenewsLapsedLease at lapsing;
    k48_caught_a_token_given_again: TokenIsNotRaised at lapsing;
    k15_caught_an_acknowledged_change_that_came_after: AcknowledgesWhatCameAfter at coalescing;
    k15_caught_a_change_that_joins_a_commit_under_way: CoversWhileCommitting at coalescing;
}

/// Larger sizes, for a machine of its own. Depth first, since only that fits in memory; the way to a state that breaks a rule
/// is then a long one. Does nothing unless `STATE_MODEL=long`.
#[test]
fn k44_larger_sizes_when_asked_for() {
    if std::env::var_os("STATE_MODEL").is_some_and(|asked| asked == "long") {
        for size in Size::larger() {
            println!("{size:?}");
            let model = SlotProtocol { size, variant: Variant::Sound };
            expect_sound(&model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join());
        }
    }
}
