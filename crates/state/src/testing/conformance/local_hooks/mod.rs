//! N: local hooks.
//!
//! | file | has |
//! |---|---|
//! | this one | [`Calls`]: a hook that hands its calls to the test |
//! | `registering` | what a hook finds when it registers, and how it ends |
//! | `changes` | which changes call a hook, and what a call says of its change |
//! | `order` | the order of calls, and the snapshot that each one has |
//! | `trouble` | hooks that are slow, fail or panic |
//! | `writing` | hooks that write and wait themselves |

mod changes;
mod order;
mod registering;
mod trouble;
mod writing;

pub use changes::*;
pub use order::*;
pub use registering::*;
pub use trouble::*;
pub use writing::*;

use std::sync::Arc;

use tokio::sync::mpsc;

use super::entities::*;
use super::within;
use crate::entity::Ref;
use crate::local_hook::{BoxError, LocalCall, LocalHookHandle, Scope};
use crate::state::State;
use crate::transaction::Transaction;

/// What a test's hook was called with.
struct Calls {
    received: mpsc::UnboundedReceiver<LocalCall>,
    _handle: LocalHookHandle,
}

impl Calls {
    async fn of(state: &State, name: &str, scope: Scope) -> Calls {
        let (sender, received) = mpsc::unbounded_channel();
        let hook = move |call: LocalCall| {
            let sent = sender.send(call);
            // The test may have ended.
            async move { sent.map_err(|_| BoxError::from("nobody listens")) }
        };
        Calls { received, _handle: state.local_hook(name, scope, hook).await.unwrap() }
    }

    async fn next(&mut self) -> LocalCall {
        within("the next call", self.received.recv()).await.unwrap()
    }

    async fn take(&mut self, count: usize) -> Vec<LocalCall> {
        let mut calls = Vec::new();
        for _ in 0..count {
            calls.push(self.next().await);
        }
        calls
    }

    /// No call is there, nor comes before what a marker that is written now calls for.
    async fn nothing_before_marker(&mut self, state: &State, marker: &Ref<Counter>) {
        let target = marker.clone();
        let n = i64::try_from(state.snapshot().revision().0).unwrap() + 1_000;
        state.write(move |tx: &mut Transaction| tx.put(&target, Counter { n })).await.unwrap();
        let call = self.next().await;
        assert_eq!(call.change.path, *marker.path(), "a call that was not to come");
    }
}

/// A counter's number before and after.
type Numbers = (Option<i64>, Option<i64>);

fn describe(call: &LocalCall) -> Numbers {
    let n = |counter: Option<Arc<Counter>>| counter.map(|counter| counter.n);
    (n(call.change.before().unwrap()), n(call.change.after().unwrap()))
}
