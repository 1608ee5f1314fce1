//! The story itself: a store and four pushes, each followed to its end and compared with what is told of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_api::{OverridesUpdate, PushStatus, PushView, StoreCreate};
use tidegate_client::Client;

use super::application::STORE;
use super::data::{Inputs, KEY};
use super::facts::{Facts, PushFacts, Told, deviations};
use super::reading::Reading;
use crate::commands::follow_push;
use crate::failure::Failure;
use crate::output::{Output, Paint, say, tree};

/// Where the story takes place, in the order in which regions swap.
pub(super) const REGIONS: [&str; 3] = ["a", "b", "c"];

/// Regions swap at least this far apart.
const DELAY_MS: u64 = 2_000;

/// How long a region may take, after a push has ended, until it serves something.
const SETTLE_LIMIT: Duration = Duration::from_secs(15);

/// How long each region is watched after its swap.
const BAKE: &str = "1500ms";

/// One chapter: what is pushed, what is said about it beforehand, and how it is to end.
struct Chapter<'a> {
    input: &'a Path,
    says: &'static str,
    told: Told,
}

pub(super) struct Story {
    client: Client,
    reading: Reading,
    work: PathBuf,
    output: Output,
}

impl Story {
    pub(super) fn new(client: Client, reading: Reading, work: PathBuf, output: Output) -> Self {
        Story { client, reading, work, output }
    }

    /// Tells all of it.
    pub(super) async fn tell(&self, inputs: &Inputs) -> Result<Facts, Failure> {
        self.say("A store for airports, in three regions. Its hooks: region-order, data-quality, health-check.");
        let create =
            StoreCreate { name: STORE.to_owned(), key_columns: vec![KEY.to_owned()], ..StoreCreate::default() };
        self.client.create_store(&create).await?;
        self.client.set_overrides(STORE, &OverridesUpdate { set: self.hook_settings(), unset: Vec::new() }).await?;

        let chapters = [
            Chapter {
                input: &inputs.sound,
                says: "Push 1 is good: it reaches the regions one after the other.",
                told: Told { status: PushStatus::Completed, serving: 1, reason_names: &[], apart_ms: Some(DELAY_MS) },
            },
            Chapter {
                input: &inputs.damaged,
                says: "Push 2 lost a tenth of its rows and many of its time zones: data-quality stops it before anything is copied.",
                told: Told {
                    status: PushStatus::Aborted,
                    serving: 1,
                    reason_names: &["data-quality", "tz", "limit"],
                    apart_ms: None,
                },
            },
            Chapter {
                input: &inputs.shifted,
                says: "Push 3 has the right counts and the wrong positions: only an application that reads it can tell.",
                told: Told {
                    status: PushStatus::RolledBack,
                    serving: 1,
                    reason_names: &["health-check"],
                    apart_ms: None,
                },
            },
            Chapter {
                input: &inputs.corrected,
                says: "Push 4 is good again.",
                told: Told { status: PushStatus::Completed, serving: 4, reason_names: &[], apart_ms: Some(DELAY_MS) },
            },
        ];
        let mut facts = Facts { as_told: true, deviations: Vec::new(), pushes: Vec::new() };
        for (place, chapter) in chapters.into_iter().enumerate() {
            self.say(chapter.says);
            let push = self.push(&format!("demo-{}", place + 1), chapter.input).await?;
            facts.deviations.extend(deviations(&push, &chapter.told));
            facts.pushes.push(push);
            if place == 0 {
                // From here on there is something to read, and no read may fail any more.
                self.reading.begin().await?;
            }
        }
        facts.as_told = facts.deviations.is_empty();
        Ok(facts)
    }

    async fn push(&self, id: &str, input: &Path) -> Result<PushFacts, Failure> {
        let before = self.reading.reads().await?;
        let view = follow_push(&self.client, STORE, id, vec![input.to_owned()], &self.work, self.output).await?;
        if !self.output.is_json() {
            say(&tree::push(&view, self.output.error_style));
        }
        let view = self.settled(view).await?;
        let calls = self.client.push_calls(id).await?;
        Ok(PushFacts::new(&view, calls, self.reading.reads().await?.since(before)))
    }

    /// The push once every region serves something. One whose node has died a moment ago serves nothing, by enough of its
    /// nodes, until that is back.
    async fn settled(&self, mut view: PushView) -> Result<PushView, Failure> {
        let deadline = tokio::time::Instant::now() + SETTLE_LIMIT;
        while view.regions.iter().any(|region| region.serving.is_none()) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200)).await;
            view = self.client.push(&view.state.push).await?;
        }
        Ok(view)
    }

    fn hook_settings(&self) -> BTreeMap<String, String> {
        let url = self.reading.health_url();
        [
            ("region-order.order", REGIONS.join(", ").as_str()),
            ("region-order.delay", &format!("{DELAY_MS}ms")),
            ("data-quality.null_increase_max", "5"),
            ("health-check.url", &url),
            ("health-check.bake", BAKE),
            ("health-check.interval", "250ms"),
            ("health-check.bad_max", "3"),
            ("health-check.bad_outcome", "rollback"),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }

    fn say(&self, text: &str) {
        if !self.output.is_json() {
            say(&format!("\n{}", self.output.error_style.paint(Paint::Strong, text)));
        }
    }
}
