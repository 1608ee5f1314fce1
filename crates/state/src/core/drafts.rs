//! Closures that run ahead: while the committer waits for the write lock, which another server has, they run on what this one
//! knows. Under the lock it is only looked whether what they have read is the same at the head (see
//! [`crate::transaction::Draft`]); where it is not, the closure runs again.
//!
//! Invariants: nothing that a closure came to ahead is answered or committed without that look; submissions come back in the
//! order in which they were handed over. A closure that ran over its budget is failed for that alone, here as at the head.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::submission::{Closure, Submission};
use crate::revision::{Attributes, Revision, Timestamp};
use crate::transaction::Transaction;
use crate::working_tree::WorkingTree;

/// So many are waited for before the thread is woken for them: that takes as long as running a few closures under the lock.
const WAKE_AT: usize = if cfg!(test) { 2 } else { 16 };
/// So often nothing runs ahead, after it was in vain once.
const PAUSE: u32 = 64;

/// Whether it is worth while to run closures ahead: not where most of them have to run again, since all of them write the same
/// entity, or ask for what only the head can say.
#[derive(Debug, Default)]
pub(super) struct Worth {
    pause: u32,
}

impl Worth {
    /// Asked whenever closures could run ahead.
    pub(super) fn try_it(&mut self) -> bool {
        let tries = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        tries
    }

    /// How many of those that ran ahead in a round did not have to run again.
    pub(super) fn note(&mut self, ran: usize, held: usize) {
        if held * 2 < ran {
            self.pause = PAUSE;
        }
    }
}

/// What runs ahead in one round.
pub(super) struct Drafts {
    terms: Terms,
    progress: Mutex<Progress>,
    at_rest: Notify,
}

/// What is the same for all that run ahead in a round.
pub(super) struct Terms {
    /// Likely ones: whoever asks for them is run again.
    pub(super) revision: Revision,
    pub(super) now: Timestamp,
    pub(super) budget: Duration,
}

struct Progress {
    /// None while a closure works on it, and once one has left it amid a change.
    tree: Option<WorkingTree>,
    queue: VecDeque<Submission>,
    running: Option<(Submission, Instant)>,
    done: VecDeque<Submission>,
    /// How many of these have run.
    ran: usize,
    thread: Thread,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thread {
    /// It is to be woken for what is queued.
    Asleep,
    AtWork,
    /// It is to come to rest after the closure that it runs, if any.
    Stopping,
    /// It is left behind.
    Abandoned,
}

/// How it stands when the committer wants its submissions back.
pub(super) enum Look {
    /// All of them, in order.
    Back(VecDeque<Submission>),
    /// A closure is running, and is within its budget for so much longer.
    Running(Duration),
    /// One ran over its budget. The others in order, and how long it took.
    Abandoned { others: VecDeque<Submission>, late: Box<Submission>, taken: Duration },
}

impl Drafts {
    pub(super) fn new(tree: WorkingTree, terms: Terms) -> Arc<Drafts> {
        let progress = Progress {
            tree: Some(tree),
            queue: VecDeque::new(),
            running: None,
            done: VecDeque::new(),
            ran: 0,
            thread: Thread::Asleep,
        };
        Arc::new(Drafts { terms, progress: Mutex::new(progress), at_rest: Notify::new() })
    }

    /// Takes over what has come. Says whether the thread is to be woken for it, now that there are enough, or for any number.
    pub(super) fn push(&self, submissions: impl IntoIterator<Item = Submission>, any: bool) -> bool {
        let mut progress = self.progress.lock();
        for mut submission in submissions {
            // Of an earlier round: what it has put is not in this one's tree.
            submission.draft = None;
            progress.queue.push_back(submission);
        }
        let enough = if any { 1 } else { WAKE_AT };
        let are_enough =
            || progress.queue.iter().filter(|submission| runs_ahead(submission)).take(enough).count() == enough;
        let wakes = progress.thread == Thread::Asleep && progress.tree.is_some() && are_enough();
        if wakes {
            progress.thread = Thread::AtWork;
        }
        wakes
    }

    /// The thread could not be woken: nothing runs.
    pub(super) fn not_woken(&self) {
        self.progress.lock().thread = Thread::Asleep;
    }

    /// Runs what is queued, on the closure thread.
    pub(super) fn work(&self) {
        while let Some((mut closure, attributes, tree)) = self.next() {
            let Terms { revision, now, budget } = self.terms;
            let mut transaction = Transaction::new(tree, revision, now, attributes, budget).ahead();
            let returned = catch_unwind(AssertUnwindSafe(|| closure.run(&mut transaction)));
            self.settle(closure, &returned, transaction);
        }
        self.at_rest.notify_one();
    }

    /// The next closure that is to run, with its attributes and the tree; none once the thread is to rest.
    fn next(&self) -> Option<(Box<dyn Closure>, Arc<Attributes>, WorkingTree)> {
        let mut progress = self.progress.lock();
        let progress = &mut *progress;
        loop {
            if progress.thread != Thread::AtWork {
                return None;
            }
            let next = if progress.tree.is_some() { progress.queue.pop_front() } else { None };
            let Some(mut submission) = next else {
                progress.thread = Thread::Asleep;
                return None;
            };
            // Whoever has gone is not waited for.
            if !runs_ahead(&submission) || submission.answer.is_closed() {
                progress.done.push_back(submission);
                continue;
            }
            let closure = submission.closure.take().expect("a queued submission has its closure");
            let attributes = submission.attributes.clone();
            progress.running = Some((submission, Instant::now()));
            return Some((closure, attributes, progress.tree.take().expect("it was seen to be there")));
        }
    }

    /// Takes in what a run came to, unless it is too late for that.
    fn settle(
        &self,
        closure: Box<dyn Closure>,
        returned: &Result<bool, Box<dyn Any + Send>>,
        transaction: Transaction,
    ) {
        let (tree, draft) = match returned {
            Ok(is_fine) => {
                let (tree, draft) = transaction.draft(*is_fine);
                (Some(tree), draft)
            }
            // It may be the fault of what it has read, which need not be so at the head. The tree may be amid a change.
            Err(_) => {
                drop(transaction);
                (None, None)
            }
        };
        let mut progress = self.progress.lock();
        if let Some((mut submission, _)) = progress.running.take() {
            submission.closure = Some(closure);
            submission.draft = draft.map(Box::new);
            progress.tree = tree;
            progress.ran += 1;
            progress.done.push_back(submission);
        }
    }

    /// Ends when the thread has come to rest.
    pub(super) async fn at_rest(&self) {
        self.at_rest.notified().await;
    }

    /// Waits until the thread has come to rest, or is at it for longer than one closure may be.
    pub(super) async fn come_to_rest(&self) {
        let rest = async {
            while self.progress.lock().thread == Thread::AtWork {
                self.at_rest().await;
            }
        };
        // Whoever wants the submissions back looks how it stands.
        let _ = tokio::time::timeout(self.terms.budget, rest).await;
    }

    /// How many it holds.
    pub(super) fn len(&self) -> usize {
        let progress = self.progress.lock();
        progress.queue.len() + usize::from(progress.running.is_some()) + progress.done.len()
    }

    /// How many have run.
    pub(super) fn ran(&self) -> usize {
        self.progress.lock().ran
    }

    /// Asks for the submissions back; gives up on a closure that is over its budget. Nothing of the tree is held any more once they
    /// are back, but by a closure that was given up.
    pub(super) fn end(&self) -> Look {
        let mut guard = self.progress.lock();
        let progress = &mut *guard;
        let mut late = None;
        progress.thread = match (progress.thread, progress.running.take()) {
            (Thread::AtWork | Thread::Stopping, Some((submission, started))) => {
                let taken = started.elapsed();
                if taken <= self.terms.budget {
                    progress.running = Some((submission, started));
                    progress.thread = Thread::Stopping;
                    return Look::Running(self.terms.budget - taken);
                }
                late = Some((submission, taken));
                Thread::Abandoned
            }
            // It was woken, and has not come to it, or is about to rest.
            (Thread::AtWork | Thread::Stopping, None) => Thread::Stopping,
            (Thread::Asleep, _) => Thread::Asleep,
            (Thread::Abandoned, _) => Thread::Abandoned,
        };
        let tree = progress.tree.take();
        let mut others = std::mem::take(&mut progress.done);
        others.append(&mut progress.queue);
        drop(guard);
        drop(tree);
        match late {
            Some((late, taken)) => Look::Abandoned { others, late: Box::new(late), taken },
            None => Look::Back(others),
        }
    }

    /// Nobody will ask for the submissions: their callers are told so at once, whatever a closure does.
    pub(super) fn give_up(&self) {
        let dropped = {
            let mut progress = self.progress.lock();
            progress.thread = Thread::Abandoned;
            (std::mem::take(&mut progress.queue), std::mem::take(&mut progress.done), progress.running.take())
        };
        drop(dropped);
    }
}

/// Whether it may run ahead. A run of a hook may be cancelled before the lock is had, which what it writes would not notice.
fn runs_ahead(submission: &Submission) -> bool {
    submission.fenced.is_none()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use tokio::sync::oneshot;

    use super::super::submission::{Answer, Fenced};
    use super::*;
    use crate::driver::{Fence, HookNumber, SlotId, SlotToken};
    use crate::revision::SubmissionId;
    use crate::transaction::TransactionError;
    use crate::tree::Tree;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_ran_ahead_in_vain_is_not_tried_for_a_while() {
        let mut worth = Worth::default();
        let tried = |worth: &mut Worth| (0..PAUSE).filter(|_| worth.try_it()).count();
        for (ran, held) in [(0, 0), (1, 1), (10, 5), (64, 64)] {
            worth.note(ran, held);
            assert_eq!(tried(&mut worth), PAUSE as usize, "{held} of {ran}");
        }
        for (ran, held) in [(1, 0), (10, 4), (64, 31)] {
            worth.note(ran, held);
            assert_eq!(tried(&mut worth), 0, "{held} of {ran}");
            assert!(worth.try_it());
        }
    }

    fn drafts(budget: Duration) -> Arc<Drafts> {
        Drafts::new(Tree::default().into(), Terms { revision: Revision(1), now: Timestamp(1), budget })
    }

    type Caller = oneshot::Receiver<Answer>;

    fn submission(closure: impl Fn() + Send + 'static) -> (Submission, Caller) {
        let closure = move |_: &mut Transaction| {
            closure();
            Ok::<_, TransactionError>(())
        };
        let (answer, caller) = oneshot::channel();
        (Submission::new(SubmissionId::random(), Arc::default(), closure, answer), caller)
    }

    fn submissions(count: usize) -> (Vec<Submission>, Vec<Caller>) {
        (0..count).map(|_| submission(|| {})).unzip()
    }

    fn ids<'a>(submissions: impl IntoIterator<Item = &'a Submission>) -> Vec<SubmissionId> {
        submissions.into_iter().map(|submission| submission.id).collect()
    }

    /// Says that it runs, and goes on once it is told to.
    fn held() -> (impl Fn() + Send + 'static, Receiver<()>, Sender<()>) {
        let ((runs, running), (go_on, waits)) = (mpsc::channel(), mpsc::channel());
        let closure = move || {
            runs.send(()).unwrap();
            // The sender may have gone: then it goes on, too.
            let _ = waits.recv();
        };
        (closure, running, go_on)
    }

    fn at_work(drafts: &Arc<Drafts>) -> std::thread::JoinHandle<()> {
        let drafts = drafts.clone();
        std::thread::spawn(move || drafts.work())
    }

    fn back(look: Look) -> VecDeque<Submission> {
        match look {
            Look::Back(back) => back,
            Look::Running(left) => panic!("a closure runs, and may for {left:?}"),
            Look::Abandoned { taken, .. } => panic!("a closure was given up after {taken:?}"),
        }
    }

    fn ran(back: &VecDeque<Submission>) -> Vec<bool> {
        back.iter().map(|submission| submission.draft.is_some()).collect()
    }

    #[test]
    fn enough_of_them_wake_the_thread_once_and_come_back_in_order() {
        let drafts = drafts(LONG);
        let (mut all, _callers) = submissions(5);
        let expected = ids(&all);
        let rest = all.split_off(2);
        assert!(!drafts.push(all.drain(..1), false), "one is not enough");
        assert!(drafts.push(all, false));
        let mut rest = rest.into_iter();
        assert!(!drafts.push(rest.next(), false), "it is awake");
        drafts.work();
        assert!(!drafts.push(rest.next(), false), "it has come to rest");
        assert!(drafts.push(rest.next(), true), "one is enough where any is");
        drafts.work();
        assert_eq!((drafts.len(), drafts.ran()), (5, 5));
        let back = back(drafts.end());
        assert_eq!((ids(&back), ran(&back)), (expected, vec![true; 5]));
    }

    #[test]
    fn what_the_thread_has_not_come_to_comes_back_as_it_was() {
        let drafts = drafts(LONG);
        let (all, _callers) = submissions(3);
        let expected = ids(&all);
        assert!(drafts.push(all, false));
        let back = back(drafts.end());
        assert_eq!((ids(&back), ran(&back)), (expected, vec![false; 3]));
        // It finds nothing when it comes.
        drafts.work();
        assert_eq!(drafts.len(), 0);
    }

    #[test]
    fn a_draft_of_an_earlier_round_is_made_anew() {
        let (mut all, _callers) = submissions(2);
        for _ in 0..2 {
            let drafts = drafts(LONG);
            assert!(drafts.push(all, false));
            drafts.work();
            assert_eq!(drafts.ran(), 2);
            all = back(drafts.end()).into();
        }
    }

    #[test]
    fn a_hooks_writes_and_those_of_who_has_gone_do_not_run_ahead() {
        let drafts = drafts(LONG);
        let (mut all, mut callers) = submissions(3);
        let fence = Fence { slot: SlotId { hook: HookNumber(1), slot: 0 }, token: SlotToken(1) };
        all[0].fenced = Some(Box::new(Fenced { fence, receipts: Vec::new(), exceptions: Vec::new() }));
        drop(callers.remove(1));
        let expected = ids(&all);
        assert!(drafts.push(all, false));
        drafts.work();
        let back = back(drafts.end());
        assert_eq!((ids(&back), ran(&back)), (expected, vec![false, false, true]));
    }

    #[test]
    fn after_a_panic_no_other_one_runs_ahead() {
        let drafts = drafts(LONG);
        let (all, _callers) = submissions(2);
        let (panics, _caller) = submission(|| panic!("a mistake in a closure"));
        assert!(drafts.push([panics].into_iter().chain(all), false));
        drafts.work();
        let (more, _more_callers) = submissions(2);
        assert!(!drafts.push(more, true));
        assert_eq!(ran(&back(drafts.end())), [false; 5]);
    }

    #[tokio::test]
    async fn the_closure_that_runs_is_waited_for_and_no_other() {
        let drafts = drafts(LONG);
        let (closure, running, go_on) = held();
        let (first, _caller) = submission(closure);
        let (others, _callers) = submissions(2);
        let expected: Vec<_> = [first.id].into_iter().chain(ids(&others)).collect();
        assert!(drafts.push([first].into_iter().chain(others), false));
        let thread = at_work(&drafts);
        running.recv().unwrap();
        assert!(matches!(drafts.end(), Look::Running(left) if left <= LONG));
        go_on.send(()).unwrap();
        drafts.at_rest().await;
        let back = back(drafts.end());
        assert_eq!((ids(&back), ran(&back)), (expected, vec![true, false, false]));
        thread.join().unwrap();
    }

    #[test]
    fn a_closure_over_its_budget_is_given_up_and_has_no_effect_when_it_returns() {
        let drafts = drafts(Duration::ZERO);
        let (closure, running, go_on) = held();
        let (first, _caller) = submission(closure);
        let (others, _callers) = submissions(2);
        let (late_one, expected) = (first.id, ids(&others));
        assert!(drafts.push([first].into_iter().chain(others), false));
        let thread = at_work(&drafts);
        running.recv().unwrap();
        let Look::Abandoned { others, late, .. } = drafts.end() else { panic!("it is over its budget") };
        assert_eq!((ids(&others), late.id), (expected, late_one));
        go_on.send(()).unwrap();
        thread.join().unwrap();
        assert_eq!((drafts.len(), drafts.ran()), (0, 0));
    }

    #[test]
    fn callers_hear_at_once_that_it_was_given_up_whatever_a_closure_does() {
        let drafts = drafts(LONG);
        let (closure, running, go_on) = held();
        let (first, caller) = submission(closure);
        let (others, mut callers) = submissions(2);
        callers.push(caller);
        assert!(drafts.push([first].into_iter().chain(others), false));
        let thread = at_work(&drafts);
        running.recv().unwrap();
        drafts.give_up();
        for mut caller in callers {
            assert!(matches!(caller.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        }
        drop(go_on);
        thread.join().unwrap();
        assert_eq!(drafts.len(), 0);
    }
}
