//! What is wanted of the store: taking the control plane's words.

use uuid::Uuid;

use super::super::disk::{Expected, StoreFile};
use super::StoreTask;
use crate::engine::ADOPTED_VERSION;
use crate::region::artifacts::ArtifactName;
use crate::region::pin;
use crate::region::plan::{NodeTask, Wanted};

impl StoreTask {
    pub(super) fn take_word(&mut self) {
        let word = self.words.borrow_and_update().clone();
        self.heard |= word.heard;
        if let Some((time, reported)) = word.reported
            && self.reported_heard != Some(time)
        {
            self.reported_heard = Some(time);
            self.written = reported;
            self.report_trouble = None;
        }
        self.let_go = false;
        let incarnation = word.assignment.as_ref().map(|assignment| assignment.incarnation);
        if let Some(next) = incarnation
            && next != self.file.incarnation
        {
            self.next_incarnation = Some(next);
        } else {
            self.next_incarnation = None;
        }
        if word.assignment != self.file.assignment || word.position != self.file.position {
            self.unsaved |= word.assignment != self.file.assignment;
            self.file.position = word.position;
        }
        if self.next_incarnation.is_some() {
            // Nothing of the other store goes on; what it has left is let go as older.
            for running in self.running.values() {
                running.cancelled.cancel();
            }
            self.file.assignment = word.assignment;
            return;
        }
        if word.assignment != self.file.assignment {
            let wanted =
                |number: &u64| word.assignment.as_ref().is_some_and(|assignment| assignment.hold.contains_key(number));
            for node in &mut self.view.nodes {
                node.trouble.retain(|task, _| match task {
                    NodeTask::Load(number) | NodeTask::Verify(number) => wanted(number),
                    // A swap that failed under the word before is another one under this word.
                    NodeTask::Swap(_) => false,
                    NodeTask::Observe | NodeTask::LetGoOlder | NodeTask::Adopt | NodeTask::Drop(_) => true,
                });
            }
        }
        self.file.assignment = word.assignment;
        self.take_assignment();
    }

    /// Puts what the assignment says into the view.
    pub(super) fn take_assignment(&mut self) {
        // What no artifact was kept of can only be what was live before the first push.
        let pinned = self.file.pins.pin.as_ref().map(|pin| {
            let expected = self.file.expected.get(&pin.version);
            (pin.version, expected.map(|expected| expected.artifact.clone()).unwrap_or_default())
        });
        let Some(assignment) = &self.file.assignment else {
            self.view.wanted = pin::wanted(Wanted::Nothing, pinned);
            for number in self.file.expected.keys() {
                self.view.versions.entry(*number).or_default();
            }
            return;
        };
        for (number, held) in &assignment.hold {
            if *number == ADOPTED_VERSION {
                continue;
            }
            let same = self.file.expected.get(number).is_some_and(|expected| {
                expected.artifact == held.artifact && expected.manifest_sha256 == held.manifest_sha256
            });
            if !same {
                let expected = Expected {
                    artifact: held.artifact.clone(),
                    manifest_sha256: held.manifest_sha256.clone(),
                    content_digest: None,
                };
                self.file.expected.insert(*number, expected);
                self.manifests.remove(number);
                self.view.versions.remove(number);
                self.unsaved = true;
            }
            let name = ArtifactName { id: held.artifact.clone(), manifest_sha256: held.manifest_sha256.clone() };
            self.tools.artifacts.claim(&self.file.store, *number, &name);
        }
        let assigned = Wanted::Assigned {
            hold: assignment.hold.iter().map(|(number, held)| (*number, held.artifact.clone())).collect(),
            serve: assignment.serve,
            enough: assignment.enough,
        };
        self.view.wanted = pin::wanted(assigned, pinned);
        for (number, expected) in &self.file.expected {
            let version = self.view.versions.entry(*number).or_default();
            version.expected_digest.clone_from(&expected.content_digest);
        }
    }

    pub(super) fn change_incarnation(&mut self, next: Uuid) {
        tracing::info!(store = %self.file.store, from = %self.file.incarnation, to = %next, "another store has this name now");
        let assignment = self.file.assignment.take();
        for (number, expected) in std::mem::take(&mut self.file.expected) {
            let name = ArtifactName { id: expected.artifact, manifest_sha256: expected.manifest_sha256 };
            self.tools.artifacts.disown(&self.file.store, number, &name);
        }
        let position = self.file.position;
        let now = self.now();
        let pins = self.file.pins.without(now, "the store was deleted, and another has its name".to_owned());
        self.file = StoreFile::new(&self.file.store, next);
        self.file.pins = pins;
        self.show_pins();
        self.file.assignment = assignment;
        self.file.position = position;
        self.tools.key.incarnation = next;
        self.manifests.clear();
        self.load_progress.clear();
        self.copy_progress.clear();
        self.told = None;
        self.unsaved = true;
        self.next_incarnation = None;
        self.begin_view();
    }
}
