//! Overrides of stores, judged by the hooks that they name.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_lifecycle::{
    Answer, HookDescriptor, HookError, HookKey, HooksConfiguration, HooksFile, Lifecycle, LifecycleOptions,
    OverrideUpdate, Refusal, Registry, StoreLifecycleEventOutcome as Two, StoreLifecycleHooks, Surroundings,
    ValidationContext,
};
use tidegate_state::Timestamp;

/// Accepts `good`, refuses `bad` with a reason, fails on `ugly`; remembers what it was asked.
struct Judge {
    name: &'static str,
    asked: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl StoreLifecycleHooks for Judge {
    async fn validate_hook_config(&self, context: &ValidationContext) -> Result<Answer<Two>, HookError> {
        self.asked.lock().push(format!("{}.{}={}", self.name, context.key, context.value));
        match context.value.as_str() {
            "bad" => Ok(Two::Abort { reason: format!("{} = \"bad\": is bad", context.key) }.into()),
            "ugly" => Err(HookError::new("no idea")),
            "worse" => panic!("boom"),
            _ => Ok(Two::Proceed.into()),
        }
    }
}

struct World {
    lifecycle: Lifecycle,
    published: HooksConfiguration,
    asked: Arc<Mutex<Vec<String>>>,
}

const A: &[HookKey] = &[HookKey { key: "a", meaning: "for tests" }];
const B: &[HookKey] = &[HookKey { key: "b", meaning: "for tests" }, HookKey { key: "field.*", meaning: "for tests" }];

fn world() -> World {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let mut registry = Registry::empty();
    for (name, keys) in [("x", A), ("y", B)] {
        let asked = Arc::clone(&asked);
        registry = registry.with_descriptor(HookDescriptor {
            name: name.to_owned(),
            keys: Some(keys),
            acts: |_, _| true,
            factory: Arc::new(move |_| Ok(Arc::new(Judge { name, asked: Arc::clone(&asked) }))),
        });
    }
    let published = HooksFile::default_of(&registry).configuration(1, "tests");
    World { lifecycle: Lifecycle::new(registry, LifecycleOptions::default()), published, asked }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl World {
    async fn update(
        &self,
        before: &[(&str, &str)],
        set: &[(&str, &str)],
        unset: &[&str],
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let update = OverrideUpdate { set: map(set), unset: unset.iter().map(|key| (*key).to_owned()).collect() };
        let surroundings = Surroundings { regions: None, now: Timestamp(0) };
        self.lifecycle.validate_overrides(&self.published, "s", &map(before), &update, &surroundings).await
    }

    async fn refusal(&self, set: &[(&str, &str)]) -> Refusal {
        self.update(&[], set, &[]).await.unwrap_err()
    }
}

#[tokio::test]
async fn h18_only_the_named_hook_is_asked_and_only_about_its_keys() {
    let world = world();
    assert_eq!(world.update(&[], &[("x.a", "good")], &[]).await.unwrap(), map(&[("x.a", "good")]));
    assert_eq!(*world.asked.lock(), ["x.a=good"]);
    let refusal = world.refusal(&[("x.a", "bad")]).await;
    assert!(refusal.why.contains("a = \"bad\": is bad"), "{refusal}");
    let refusal = world.refusal(&[("x.b", "1")]).await;
    assert!(refusal.why.contains("there is no such key; there are a, mode, on_failure"), "{refusal}");
    let refusal = world.refusal(&[("z.a", "1")]).await;
    assert!(refusal.why.contains("there is no hook \"z\"; there are x, y"), "{refusal}");
    for key in ["a", ".a", "x."] {
        let refusal = world.refusal(&[(key, "1")]).await;
        assert!(refusal.countermeasures.contains("<hook>.<key>"), "{refusal}");
    }
    assert!(world.refusal(&[("x.a", "good"), ("y.b", "bad")]).await.why.contains("is bad"));
    assert_eq!(world.update(&[], &[("y.field.price", "1")], &[]).await.unwrap().len(), 1);
    assert!(world.refusal(&[("y.field.", "1")]).await.why.contains("field.<name>"));
}

#[tokio::test]
async fn h19_what_is_there_already_is_never_judged_again() {
    let world = world();
    let old = [("gone.key", "1"), ("x.a", "bad")];
    let after = world.update(&old, &[("y.b", "good")], &[]).await.unwrap();
    assert_eq!(after, map(&[("gone.key", "1"), ("x.a", "bad"), ("y.b", "good")]));
    assert_eq!(*world.asked.lock(), ["y.b=good"]);
    assert_eq!(world.update(&old, &[], &["gone.key", "x.a", "never.there"]).await.unwrap(), BTreeMap::new());
}

#[tokio::test]
async fn h35_modes_are_words_and_a_hook_that_is_off_still_judges() {
    let world = world();
    for (key, value) in [("x.mode", "observe"), ("x.mode", "off"), ("x.on_failure", "proceed")] {
        assert!(world.update(&[], &[(key, value)], &[]).await.is_ok());
    }
    assert!(world.asked.lock().is_empty(), "those are the framework's");
    assert!(world.refusal(&[("x.mode", "sometimes")]).await.why.contains("none of enforce, observe, off"));
    assert!(world.refusal(&[("x.on_failure", "cry")]).await.why.contains("none of wait, abort, proceed"));
    let off = [("x.mode", "off")];
    assert!(world.update(&off, &[("x.a", "bad")], &[]).await.is_err());
}

#[tokio::test]
async fn h04_validation_that_fails_is_tried_again_a_bounded_number_of_times_and_refuses() {
    let world = world();
    for (value, text) in [("ugly", "no idea"), ("worse", "boom")] {
        world.asked.lock().clear();
        let refusal = world.refusal(&[("x.a", value)]).await;
        assert!(refusal.why.contains("could not be judged") && refusal.why.contains(text), "{refusal}");
        assert_eq!(world.asked.lock().len(), 4);
    }
    let lenient = [("x.on_failure", "proceed")];
    assert!(world.update(&lenient, &[("x.a", "ugly")], &[]).await.is_ok());
    let text = world.lifecycle.metrics().to_text();
    let failures = r#"lifecycle_hook_failures_total{hook="x",function="validate_hook_config"}"#;
    assert!(text.contains(failures), "{text}");
}

#[tokio::test]
async fn c20_a_hook_that_this_server_lacks_can_not_be_asked_here_and_it_says_so() {
    let mut world = world();
    world.published.enabled.push("mine".into());
    let refusal = world.refusal(&[("mine.a", "1")]).await;
    assert!(refusal.why.contains("this server was not built with it"), "{refusal}");
}

#[tokio::test]
async fn overrides_are_bounded() {
    let world = world();
    let long = "x".repeat(5_000);
    assert!(world.refusal(&[("x.a", &long)]).await.why.contains("limit 4096"));
    let names: Vec<String> = (0..201).map(|n| format!("y.field.f{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    assert!(world.refusal(&many).await.why.contains("limit 200"));
}
