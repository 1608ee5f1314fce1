//! A hook of one's own, as a build with `tidegate::run(registry)` would have it: the last region waits for quiet hours,
//! counts how often it had to, and tells other systems when it gives up.
//!
//! `cargo run --release -p tidegate-lifecycle --example own_hook`

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tidegate_lifecycle::{
    Answer, Context, Function, HookDescriptor, HookError, HookKey, Registry, Settings,
    StoreLifecycleEventOutcome as Two, StoreLifecycleHooks, StoreVersionLifecycleEventOutcome as Four,
    ValidationContext,
};

/// Asks whoever knows how busy a region is.
#[async_trait]
trait Load: Send + Sync {
    async fn requests_per_second(&self, region: &str) -> Result<u64, HookError>;
}

struct QuietHours {
    load: Arc<dyn Load>,
}

const KEYS: &[HookKey] = &[
    HookKey { key: "limit", meaning: "requests per second that are quiet enough for a swap (default 1000)" },
    HookKey { key: "tries", meaning: "how often to look before giving up (default 60)" },
];

#[async_trait]
impl StoreLifecycleHooks for QuietHours {
    async fn validate_hook_config(&self, context: &ValidationContext) -> Result<Answer<Two>, HookError> {
        let settings = Settings(&context.config);
        Ok(match settings.whole("limit").and(settings.whole("tries")) {
            Ok(_) => Two::Proceed.into(),
            Err(error) => Two::Abort { reason: error.to_string() }.into(),
        })
    }

    async fn pre_store_version_swap(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        // The context's configuration has the store's overrides in it; what the factory got has not.
        let settings = Settings(&context.config);
        let limit = settings.whole("limit")?.unwrap_or(1_000);
        let tries = settings.whole("tries")?.unwrap_or(60);
        let region = context.region.as_deref().unwrap_or_default();
        let load = self.load.requests_per_second(region).await?;
        if load <= limit {
            return Ok(Four::Proceed.into());
        }
        let reason = format!("{region}: {load} requests per second (limit {limit})");
        // The memo comes back on the next attempt, also on another server.
        let looked: u64 = context.memo.as_deref().and_then(|memo| memo.parse().ok()).unwrap_or(0) + 1;
        if looked >= tries {
            let event = serde_json::json!({"region": region, "load": load, "tries": looked});
            let reason = format!("{reason}, {looked} times in a row (limit {tries})");
            return Ok(Answer::from(Four::Abort { reason }).event("quiet-hours.gave-up", event));
        }
        Ok(Answer::from(Four::Wait { reason, ask_again_at: None }).memo(looked.to_string()))
    }
}

fn registry(load: Arc<dyn Load>) -> Registry {
    Registry::shipped().with_descriptor(HookDescriptor {
        name: "quiet-hours".to_owned(),
        keys: Some(KEYS),
        // Saying where a hook does nothing saves the call there.
        acts: |function, _| function == Function::PreStoreVersionSwap,
        factory: Arc::new(move |_| Ok(Arc::new(QuietHours { load: Arc::clone(&load) }))),
    })
}

struct AlwaysBusy;

#[async_trait]
impl Load for AlwaysBusy {
    async fn requests_per_second(&self, _region: &str) -> Result<u64, HookError> {
        Ok(4_200)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), HookError> {
    let registry = registry(Arc::new(AlwaysBusy));
    println!("hooks of this build: {}", registry.names().collect::<Vec<_>>().join(", "));
    let descriptor = registry.get("quiet-hours").ok_or_else(|| HookError::new("it was just added"))?;
    let hook = (descriptor.factory)(&BTreeMap::new())?;
    let mut context = Context::new(Function::PreStoreVersionSwap, "airports");
    context.region = Some("eu".to_owned());
    context.config.insert("tries".to_owned(), "3".to_owned());
    for attempt in 1..=3 {
        context.attempt = attempt;
        let answer = hook.pre_store_version_swap(&context).await?;
        println!("attempt {attempt}: {:?}", answer.outcome);
        context.memo = answer.memo;
    }
    Ok(())
}
