//! Pushes that a later release wrote, in a state that this one does not know: they are shown as unknown, and left alone.

use serde_json::Value;
use tidegate_api::{PushPhase, PushState, PushStatus, PushView};
use tidegate_rollout::entities::{Push, Store};
use tidegate_state::Ref;

use super::{Scene, ms};

impl Scene<'_> {
    /// What can be said of a push that is there and can't be read; none if it can be, or is not there.
    ///
    /// Only what every release writes in the same way is taken from the document.
    pub(crate) fn later_push(&self, reference: &Ref<Push>) -> Option<PushView> {
        if self.snapshot.get(reference).is_ok() {
            return None;
        }
        let document: Value = serde_json::from_str(self.snapshot.document(reference.path())?.json()).ok()?;
        let number = |field: &str| document[field].as_u64();
        Some(PushView {
            state: PushState {
                push: reference.id(),
                store: reference.parent::<Store>().id(),
                version: number("version"),
                status: PushStatus::Unknown,
                phase: PushPhase::Unknown,
                ended_by: None,
                reason: Some(
                    "A later release has written how it stands, and this server can't read that; ask a server of that \
                     release."
                        .to_owned(),
                ),
            },
            pushed_by: document["pushed_by"].as_str().unwrap_or_default().to_owned(),
            attributes: Default::default(),
            now: ms(self.now),
            created_at: number("created_at").unwrap_or_default(),
            completed_at: number("completed_at"),
            ended_at: None,
            client: None,
            artifact: None,
            version_status: None,
            gates: Vec::new(),
            regions: Vec::new(),
            holds: Vec::new(),
        })
    }
}
