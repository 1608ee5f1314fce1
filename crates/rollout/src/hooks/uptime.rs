//! Marks that a server is up, so that time in which none was is not taken for anyone's silence.

use async_trait::async_trait;
use tidegate_state::{ClusterHook, Outcome, Ref, Registration, Run, Timestamp};

use super::level_triggered;
use crate::entities::{Uptime, UptimeMark};

pub(super) fn registration() -> Registration {
    // The marks lie below what is watched, so that a mark does not bring the next one forward.
    level_triggered("rollout-uptime", 1).on("/uptime/{installation}").key("all").from_existing().slots(1)
}

pub(super) struct MarkUptime;

#[async_trait]
impl ClusterHook for MarkUptime {
    async fn run(&self, run: Run) -> Outcome {
        Outcome::retry_at_with(next_mark(run.now()), |transaction| {
            let place = Ref::<Uptime>::root(Uptime::ID)?.child::<UptimeMark>(UptimeMark::ID)?;
            let now = transaction.now();
            let mark = match transaction.get(&place)? {
                Some(mark) => mark.marked(now),
                None => UptimeMark { at: now, gaps: Vec::new() },
            };
            transaction.put(&place, mark)
        })
    }
}

fn next_mark(now: Timestamp) -> Timestamp {
    now.after(UptimeMark::EVERY)
}
