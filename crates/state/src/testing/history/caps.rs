//! How many runs went at once: in the cluster, and on a server.

use std::collections::HashMap;

use super::checker::{Checker, Rule, RunLine};

impl Checker<'_> {
    /// Whether a run takes a place of its hook's cap at a line: its token holds, and so does its server's lease as far as
    /// that shows. With a lease all tokens end, also those of slots that nobody has taken over yet.
    fn counts_at(&self, run: &RunLine, line: usize) -> bool {
        let outlived = || {
            let owner = self.owners.get(&(run.slot, run.slot_token))?;
            self.outlived.get(owner)
        };
        self.held_at(run.slot, run.slot_token, line) && outlived().is_none_or(|at| line < *at)
    }

    /// Runs at once, under tokens that hold.
    pub(super) fn caps(&mut self) {
        let mut going: Vec<usize> = Vec::new();
        let ends: HashMap<usize, usize> =
            self.runs.iter().enumerate().filter_map(|(at, run)| Some((run.ended?.0, at))).collect();
        let starts: HashMap<usize, usize> = self.runs.iter().enumerate().map(|(at, run)| (run.line, at)).collect();
        for place in 0..self.lines.len() {
            if let Some(at) = ends.get(&place) {
                going.retain(|other| other != at);
            }
            let Some(at) = starts.get(&place).copied() else { continue };
            going.push(at);
            let hook = self.runs[at].request.hook;
            let server = self.runs[at].server.clone();
            let holding: Vec<usize> = going
                .iter()
                .copied()
                .filter(|other| {
                    let run = &self.runs[*other];
                    run.request.hook == hook && self.counts_at(run, place)
                })
                .collect();
            if let Some(cap) = self.cap(hook)
                && holding.len() > cap
            {
                let lines: Vec<usize> = holding.iter().map(|other| self.runs[*other].line).collect();
                let what = format!("{} runs of hook {} at once, and {cap} are allowed", holding.len(), hook.0);
                self.violation(Rule::CapExceeded, &lines, what);
            }
            let mut here: Vec<usize> = holding.into_iter().filter(|other| self.runs[*other].server == server).collect();
            let named = self.expectation.rooms.get(&(server.clone(), hook)).copied();
            let room = named.or_else(|| {
                // What an earlier life of the server ran died with it.
                let life = |run: &RunLine| self.owners.get(&(run.slot, run.slot_token)).copied();
                let this = life(&self.runs[at]);
                here.retain(|other| life(&self.runs[*other]) == this);
                let (_, room) = self.told(&server, hook, place)?;
                usize::try_from(room).ok()
            });
            if let Some(room) = room.filter(|room| here.len() > *room) {
                let lines: Vec<usize> = here.iter().map(|other| self.runs[*other].line).collect();
                let what =
                    format!("{} runs of hook {} at once on {server}, which has room for {room}", here.len(), hook.0);
                self.violation(Rule::CapExceeded, &lines, what);
            }
        }
    }
}
