//! The region's nodes come and go.
//!
//! A task knows a node by its place, in the view and in the steps that run. When one is let go of, those behind it move up,
//! everywhere at once; what still runs of it ends unheard.

use std::sync::Arc;

use super::{Job, Reached, StoreTask};
use crate::region::agent::RegionNode;
use crate::region::plan::VersionTask;

/// Where a node that was at `place` is once the one at `gone` has left; `None` for that one itself.
pub(super) fn place_after(place: usize, gone: usize) -> Option<usize> {
    match place.cmp(&gone) {
        std::cmp::Ordering::Less => Some(place),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(place - 1),
    }
}

impl StoreTask {
    /// Lets go of the nodes that have left, and takes in those that have joined.
    pub(super) fn take_nodes(&mut self) {
        let nodes = Arc::clone(&self.shared.nodes.borrow());
        let is_still_there = |node: &RegionNode| nodes.iter().any(|there| there.is(node));
        let left: Vec<usize> = (0..self.nodes.len()).rev().filter(|at| !is_still_there(&self.nodes[*at])).collect();
        for place in &left {
            self.let_node_go(*place);
        }
        for node in nodes.iter().skip(self.nodes.len() - left.len()) {
            let first = self.first_view(&node.name);
            self.view.nodes.push(first);
            // Whatever it holds, it has not lost it here.
            self.reached.push(Reached::default());
            self.ended.push(0);
        }
        self.nodes = nodes;
    }

    fn let_node_go(&mut self, gone: usize) {
        self.view.nodes.remove(gone);
        self.reached.remove(gone);
        self.ended.remove(gone);
        // Should one of this name join later, it is another, of which nothing is known.
        self.unsaved |= self.file.sound.remove(&self.nodes[gone].name).is_some();
        let progress = std::mem::take(&mut self.load_progress).into_iter();
        self.load_progress =
            progress.filter_map(|((place, number), of)| Some(((place_after(place, gone)?, number), of))).collect();
        let versions = &mut self.view.versions;
        self.running.retain(|_, running| {
            let goes_on = match &mut running.job {
                Job::Node(place, _, _) => match place_after(*place, gone) {
                    Some(after) => {
                        *place = after;
                        true
                    }
                    None => false,
                },
                // It names nodes by their places before: it begins anew.
                Job::Version(number, task @ VersionTask::CheckCapacity) => {
                    if let Some(version) = versions.get_mut(&*number) {
                        version.running.remove(&*task);
                    }
                    false
                }
                _ => true,
            };
            if !goes_on {
                running.cancelled.cancel();
            }
            goes_on
        });
        self.not_asked_any_more(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::place_after;

    #[test]
    fn those_behind_a_node_that_leaves_move_up() {
        let after: Vec<_> = (0..4).map(|place| place_after(place, 1)).collect();
        assert_eq!(after, [Some(0), None, Some(1), Some(2)]);
    }
}
