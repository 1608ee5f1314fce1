//! What users can do, on a real state tree with the controller's cluster hook at work.
//!
//! | file | has |
//! |---|---|
//! | this one | what every region serves at first, and a hook that waits at one gate |
//! | `pushes` | starting a push, beside others, and killing it |
//! | `hook_calls` | what hooks are asked and told on the way of a push |
//! | `schemas` | schemas that come with a push, and without one |
//! | `gates` | opening a gate by hand |
//! | `rollbacks` | rolling back by hand, and releasing an earlier version's data |
//! | `removal` | stores that are deleted, and data that nothing refers to |
//! | `freshness` | how old what regions serve is |

mod freshness;
mod gates;
mod hook_calls;
mod pushes;
mod removal;
mod rollbacks;
mod schemas;

use tidegate_lifecycle::{Context, Function, Verdict};

const THREE: [Option<u64>; 3] = [Some(1), Some(1), Some(1)];

fn waits_at(function: Function, region: &'static str) -> impl Fn(&Context) -> Verdict {
    move |context| {
        let held = context.function == function && context.region.as_deref() == Some(region);
        if held { Verdict::Wait } else { Verdict::Proceed }
    }
}
