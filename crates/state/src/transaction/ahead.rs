//! A transaction that runs ahead of the write lock: on what its server knows, while another server commits. What it has read is
//! written down, and what it comes to counts only if all of that is the same at the head of the log.
//!
//! Invariant: a draft that holds does on the head's tree what its closure would do there. So whatever else a closure asks for
//! (the time, its revision, listings, records) makes its transaction one that can only be run at the head.

use parking_lot::Mutex;

use super::{Effect, Transaction};
use crate::document::Document;
use crate::path::Path;
use crate::revision::Revision;
use crate::tree::Node;
use crate::working_tree::WorkingTree;

/// What depends on more reads than this is run at the head.
const READS_MAX: usize = 1_024;

/// What a transaction that runs ahead depends on: so many reads, or what only the head can say.
pub(super) struct Ahead(Mutex<Option<Vec<Read>>>);

/// What a closure has found, apart from its own doing.
enum Read {
    Content(Path, Option<Document>),
    Existence(Path, bool),
}

impl Ahead {
    fn note(&self, read: impl FnOnce() -> Read) {
        let mut noted = self.0.lock();
        match &mut *noted {
            Some(reads) if reads.len() < READS_MAX => reads.push(read()),
            Some(_) => *noted = None,
            None => {}
        }
    }
}

/// What a closure that has run ahead came to.
pub(crate) struct Draft {
    reads: Vec<Read>,
    ending: Ending,
}

enum Ending {
    /// It returned a value, and has put these entities, in the order in which hooks see them.
    Puts(Vec<Document>),
    /// It returned an error.
    Rejected,
}

impl Draft {
    /// How many look-ups it is about as much as to carry it out.
    pub(crate) fn size(&self) -> usize {
        let puts = match &self.ending {
            Ending::Puts(puts) => puts.len(),
            Ending::Rejected => 0,
        };
        self.reads.len() + 4 * puts
    }

    /// Whether all that the closure has read is the same in this tree.
    pub(crate) fn holds(&self, tree: &WorkingTree) -> bool {
        self.reads.iter().all(|read| match read {
            Read::Content(path, was) => match (was, tree.get(path)) {
                (Some(was), Some(node)) => was.same(&node.document),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            },
            Read::Existence(path, was) => tree.contains(path) == *was,
        })
    }

    /// What the closure does to a tree on which the draft holds, in the transaction of this revision. Gives the tree back where
    /// it returned an error.
    pub(crate) fn carry_out(self, mut tree: WorkingTree, revision: Revision) -> Result<Effect, WorkingTree> {
        let puts = match self.ending {
            Ending::Puts(puts) => puts,
            Ending::Rejected => return Err(tree),
        };
        let mut changes = Vec::with_capacity(puts.len());
        for document in puts {
            let before = tree.get(document.path()).map(|node| node.document.clone());
            let after = document.written(revision);
            tree.insert(after.clone());
            changes.push((after.path().clone(), before, Some(after)));
        }
        Ok(Effect { tree, changes, entries: Vec::new(), records: Vec::new() })
    }
}

impl Transaction {
    /// The same, but ahead, on a tree of its own. Its revision and its time are likely ones, and what asks for them is run again.
    pub(crate) fn ahead(mut self) -> Transaction {
        self.ahead = Some(Ahead(Mutex::new(Some(Vec::new()))));
        self
    }

    /// What stands under a path. What a closure finds there that it has not put there is noted where it runs ahead.
    pub(super) fn look(&self, path: &Path) -> Option<&Node> {
        let node = self.tree.get(path);
        if let Some(ahead) = &self.ahead
            && !self.touched.contains_key(path)
        {
            ahead.note(|| Read::Content(path.clone(), node.map(|node| node.document.clone())));
        }
        node
    }

    /// Whether anything stands under a path, noted in the same way.
    pub(super) fn exists(&self, path: &Path) -> bool {
        let exists = self.tree.contains(path);
        if let Some(ahead) = &self.ahead
            && !self.touched.contains_key(path)
        {
            ahead.note(|| Read::Existence(path.clone(), exists));
        }
        exists
    }

    /// The closure depends on what only the head can say.
    pub(super) fn depends_on_head(&self) {
        if let Some(Ahead(reads)) = &self.ahead {
            *reads.lock() = None;
        }
    }

    /// What it comes to, if the head can do with that, and the tree as the next one that runs ahead finds it.
    pub(crate) fn draft(mut self, is_fine: bool) -> (WorkingTree, Option<Draft>) {
        let reads = self.ahead.take().and_then(|ahead| ahead.0.into_inner());
        let Some(reads) = reads.filter(|_| self.check_budget().is_ok()) else { return (self.undo(), None) };
        if !is_fine {
            return (self.undo(), Some(Draft { reads, ending: Ending::Rejected }));
        }
        let Effect { tree, changes, .. } = self.finish();
        // Whoever deletes depends on the head.
        let puts = changes.into_iter().filter_map(|(_, _, after)| after).collect();
        (tree, Some(Draft { reads, ending: Ending::Puts(puts) }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::driver::StoredDocument;
    use crate::entity::{Entity, Ref, Root};
    use crate::revision::Timestamp;
    use crate::transaction::TransactionError;
    use crate::tree::Tree;

    const BUDGET: Duration = Duration::from_secs(60);

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Shelf {
        value: u8,
    }
    impl Entity for Shelf {
        const COLLECTION: &'static str = "shelves";
        type Parent = Root;
        type Id = u64;
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Item {
        value: u8,
    }
    impl Entity for Item {
        const COLLECTION: &'static str = "items";
        type Parent = Shelf;
        type Id = u64;
    }

    #[derive(Debug, Clone)]
    enum Step {
        Get(u64),
        GetItem(u64),
        Contains(u64),
        Put(u64, u8),
        PutItem(u64, u8),
        Create(u64, u8),
        Add(u64, u8),
        Expect(u64, Option<u8>),
        /// Goes on whatever comes of it.
        Try(Box<Step>),
        Touched,
        Delete(u64),
        List(u64),
    }

    /// Beside the entities that others of the same steps are about.
    const APART: u64 = 10;

    fn shelf(id: u64) -> Ref<Shelf> {
        Ref::root(id).unwrap()
    }

    fn item(id: u64) -> Ref<Item> {
        shelf(id).child(1_u64).unwrap()
    }

    fn apart(step: Step) -> Step {
        match step {
            Step::Get(id) => Step::Get(id + APART),
            Step::GetItem(id) => Step::GetItem(id + APART),
            Step::Contains(id) => Step::Contains(id + APART),
            Step::Put(id, value) => Step::Put(id + APART, value),
            Step::PutItem(id, value) => Step::PutItem(id + APART, value),
            Step::Create(id, value) => Step::Create(id + APART, value),
            Step::Add(id, value) => Step::Add(id + APART, value),
            Step::Expect(id, value) => Step::Expect(id + APART, value),
            Step::Try(step) => Step::Try(Box::new(apart(*step))),
            Step::Touched => Step::Touched,
            Step::Delete(id) => Step::Delete(id + APART),
            Step::List(id) => Step::List(id + APART),
        }
    }

    /// What a closure of these steps finds; its error ends it.
    fn run(transaction: &mut Transaction, steps: &[Step], found: &mut Vec<String>) -> Result<(), TransactionError> {
        for step in steps {
            match step {
                Step::Get(id) => found.push(format!("{:?}", transaction.get(&shelf(*id))?)),
                Step::GetItem(id) => found.push(format!("{:?}", transaction.get(&item(*id))?)),
                Step::Contains(id) => found.push(format!("{}", transaction.contains(shelf(*id).path()))),
                Step::Put(id, value) => transaction.put(&shelf(*id), Shelf { value: *value })?,
                Step::PutItem(id, value) => transaction.put(&item(*id), Item { value: *value })?,
                Step::Create(id, value) => transaction.create(&shelf(*id), Shelf { value: *value })?,
                Step::Add(id, value) => transaction.update(&shelf(*id), |shelf| shelf.value ^= value)?,
                Step::Expect(id, value) => {
                    transaction.expect(&shelf(*id), value.map(|value| Shelf { value }).as_ref())?;
                }
                Step::Try(step) => {
                    let tried = run(transaction, std::slice::from_ref(&**step), found);
                    found.push(format!("{tried:?}"));
                }
                Step::Touched => found.push(format!("{:?}", transaction.touched::<Shelf>()?)),
                Step::Delete(id) => found.push(format!("{}", transaction.delete(&shelf(*id))?)),
                Step::List(id) => found.push(format!("{:?}", transaction.children::<Item>(&shelf(*id))?.len())),
            }
        }
        Ok(())
    }

    /// On a tree, at the head: whether it returned a value, what it found, and what it comes to.
    fn at_head(tree: WorkingTree, revision: Revision, steps: &[Step]) -> (bool, Vec<String>, Vec<Told>, WorkingTree) {
        let mut transaction = Transaction::new(tree, revision, Timestamp(7), Arc::default(), BUDGET);
        let mut found = Vec::new();
        match run(&mut transaction, steps, &mut found) {
            Ok(()) => {
                let effect = transaction.finish();
                (true, found, told(&effect), effect.tree)
            }
            Err(error) => {
                found.push(error.to_string());
                (false, found, Vec::new(), transaction.undo())
            }
        }
    }

    type Told = (String, Option<(String, Revision)>, Option<(String, Revision)>);

    fn told(effect: &Effect) -> Vec<Told> {
        let text = |document: &Option<Document>| {
            document.as_ref().map(|document| (document.json().to_owned(), document.written_at()))
        };
        effect.changes.iter().map(|(path, before, after)| (path.to_string(), text(before), text(after))).collect()
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![5 => plain_step(), 1 => plain_step().prop_map(|step| Step::Try(Box::new(step)))]
    }

    fn plain_step() -> impl Strategy<Value = Step> {
        let (id, value) = (0..4_u64, 0..3_u8);
        prop_oneof![
            1 => Just(Step::Touched),
            4 => id.clone().prop_map(Step::Get),
            2 => id.clone().prop_map(Step::GetItem),
            2 => id.clone().prop_map(Step::Contains),
            6 => (id.clone(), value.clone()).prop_map(|(id, value)| Step::Put(id, value)),
            3 => (id.clone(), value.clone()).prop_map(|(id, value)| Step::PutItem(id, value)),
            2 => (id.clone(), value.clone()).prop_map(|(id, value)| Step::Create(id, value)),
            3 => (id.clone(), value.clone()).prop_map(|(id, value)| Step::Add(id, value)),
            2 => (id.clone(), prop::option::of(value)).prop_map(|(id, value)| Step::Expect(id, value)),
            1 => id.clone().prop_map(Step::Delete),
            1 => id.prop_map(Step::List),
        ]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(step(), 0..6)
    }

    fn is_only_for_the_head(steps: &[Step]) -> bool {
        steps.iter().any(|step| match step {
            Step::Try(step) => is_only_for_the_head(std::slice::from_ref(&**step)),
            step => matches!(step, Step::Delete(_) | Step::List(_)),
        })
    }

    proptest! {
        /// Closures run ahead one after the other, and others' transactions get between: a draft that holds is what its closure
        /// comes to at the head, in all that it tells its caller and the log; where nothing of what it is about got between, it holds.
        #[test]
        fn a_draft_that_holds_is_what_its_closure_comes_to_at_the_head(
            first in steps(),
            unknown in prop::collection::vec((0..4_u64, 0..3_u8, prop::option::of(0..3_u8)), 0..3),
            between in prop::collection::vec(steps(), 0..3),
            ahead in prop::collection::vec(steps(), 1..5),
            is_apart in any::<bool>(),
        ) {
            let (.., mut head) = at_head(Tree::default().into(), Revision(1), &first);
            for (id, value, more) in unknown {
                // Of a later build, with a field that this one does not know; or one that it can't read.
                let json = match more {
                    Some(more) => format!(r#"{{"value":{value},"more":{more}}}"#),
                    None => format!(r#"{{"value":"{value}"}}"#),
                };
                let stored = StoredDocument { format: 1, json: json.into() };
                head.insert(Document::stored_at(shelf(id).path().clone(), &stored, Revision(1)));
            }
            let mut fork = head.fork();
            let mut drafts = Vec::new();
            for steps in &ahead {
                let mut transaction = Transaction::new(fork, Revision(1), Timestamp(1), Arc::default(), BUDGET).ahead();
                let mut found = Vec::new();
                let returned = run(&mut transaction, steps, &mut found);
                if let Err(error) = &returned {
                    found.push(error.to_string());
                }
                let (tree, draft) = transaction.draft(returned.is_ok());
                fork = tree;
                drafts.push((draft, found));
            }
            drop(fork);
            let mut revision = Revision(20);
            for steps in &between {
                let steps: Vec<Step> =
                    steps.iter().cloned().map(|step| if is_apart { apart(step) } else { step }).collect();
                let (_, _, _, tree) = at_head(head, revision, &steps);
                head = tree;
                revision = revision.next();
            }
            let mut all_held = between.is_empty() || is_apart;
            for (steps, (draft, found)) in ahead.iter().zip(drafts) {
                let (is_fine, expected, changes, after) = at_head(head.clone(), revision, steps);
                let held = draft.filter(|draft| draft.holds(&head));
                prop_assert!(held.is_some() || !all_held || is_only_for_the_head(steps), "nothing got between: {:?}", steps);
                all_held &= held.is_some();
                if let Some(draft) = held {
                    prop_assert_eq!(found, expected);
                    match draft.carry_out(head, revision) {
                        Ok(effect) => {
                            prop_assert!(is_fine);
                            prop_assert_eq!(told(&effect), changes);
                            head = effect.tree;
                        }
                        Err(tree) => {
                            prop_assert!(!is_fine);
                            head = tree;
                        }
                    }
                    let mut after = after;
                    prop_assert_eq!(head.whole().diff(after.whole()).len(), 0);
                } else {
                    head = after;
                }
                revision = revision.next();
            }
        }
    }
}
