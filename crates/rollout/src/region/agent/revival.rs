//! Tasks of an agent that die by a panic: each is started again after a pause, and until it works again the agent says what
//! it died of. An agent that is dead and says nothing would hold its region up for ever.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use parking_lot::Mutex;

use super::store::Shared;

/// The longest text of a panic that is passed on, in characters.
const TEXT_CHARS_MAX: usize = 200;

/// What tasks died of, by the task, until they work again.
#[derive(Debug, Default)]
pub(super) struct Deaths(Mutex<BTreeMap<&'static str, String>>);

impl Deaths {
    /// The task has done what it is there for.
    pub(super) fn works(&self, task: &'static str) {
        self.0.lock().remove(task);
    }

    fn died(&self, task: &'static str, of: String) {
        self.0.lock().insert(task, of);
    }

    /// What is dead now, for people.
    pub(super) fn text(&self) -> Option<String> {
        let dead = self.0.lock();
        let texts: Vec<String> =
            dead.iter().map(|(task, of)| format!("what {task} panicked ({of}) and is started again")).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

/// Runs a round of a task. Whether it ended by itself; if not it has died, and it is time for the next round.
pub(super) async fn outlive(
    shared: &Shared,
    task: &'static str,
    deaths: &mut u32,
    round: impl Future<Output = ()>,
) -> bool {
    let Err(panic) = AssertUnwindSafe(round).catch_unwind().await else {
        return true;
    };
    *deaths = deaths.saturating_add(1);
    let of = text_of(&*panic);
    shared.deaths.died(task, of.clone());
    tracing::error!(region = %shared.options.region, task, of, deaths, "a task of the region's agent panicked and is started again");
    let clock = &shared.options.clock;
    let pause = shared.options.limits.pause(*deaths, false, (shared.options.jitter)());
    tokio::select! {
        biased;
        () = shared.shutdown.cancelled() => {}
        () = clock.sleep_until(clock.now().after(pause)) => {}
    }
    shared.shutdown.is_cancelled()
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no text").chars().take(TEXT_CHARS_MAX).collect()
}
