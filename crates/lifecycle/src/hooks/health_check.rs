//! `health-check`: asks an HTTP endpoint about a region while a new version bakes there.
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `url` | what to GET: `http://app.{region}.example/health?store={store}`; `{region}`, `{store}`, `{version}`, `{push}` are filled in percent-encoded | none: the hook does nothing |
//! | `bake` | how long after the region's swap it has to stay healthy | `10m` |
//! | `interval` | how often to check | `1m` |
//! | `timeout` | how long one check may take | `5s` |
//! | `bad_max`, `bad_outcome` | so many bad checks in a row mean this | `3`, `rollback` |
//! | `unreachable_max`, `unreachable_outcome` | the same for checks that got no answer at all; not set, they count as bad | none, `abort` |
//! | `no_data_max`, `no_data_outcome` | the same for answers that say nothing; not set, they are waited out | none, `abort` |
//! | `no_data_status` | status codes that say nothing: `404, 425` | none |
//! | `may_answer` | who may answer where an outcome is `hold`, as a list of roles or users | any operator |
//!
//! Outcomes are `rollback`, `abort` and `hold` (Wait, with a pause for a person). A status of 2xx is healthy; redirects
//! are not followed and are bad, as every other status is. A healthy check resets every count; one kind of trouble
//! neither fills nor resets another's. It proceeds with the first healthy check at or after the end of the bake time, so
//! never without one. While a pause is open it goes on checking and shows what it finds; that decides nothing.
//!
//! Counts travel in the memo, so they survive servers. Endpoints are asked directly, without a proxy. Whoever may set a
//! store's overrides can thereby have servers GET any URL that they can reach; the answer's body is never read.

mod check;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tidegate_state::Timestamp;

use crate::context::{Context, RegionPushStatus};
use crate::contract::{HookError, StoreLifecycleHooks, ValidationContext};
use crate::function::Function;
use crate::outcome::{
    Answer, PauseRequest, StoreLifecycleEventOutcome as Two, StoreVersionLifecycleEventOutcome as Four, Verdict,
};
use crate::registry::{HookDescriptor, HookKey};
use crate::setting::{SettingError, Settings};
use crate::wording;
use check::Finding;

/// How many findings a reason quotes.
const FINDINGS_QUOTED: usize = 3;

const KEYS: &[HookKey] = &[
    HookKey { key: "url", meaning: "what to GET; {region}, {store}, {version} and {push} are filled in" },
    HookKey { key: "bake", meaning: "how long after its swap a region has to stay healthy (default 10m)" },
    HookKey { key: "interval", meaning: "how often to check (default 1m)" },
    HookKey { key: "timeout", meaning: "how long one check may take (default 5s)" },
    HookKey { key: "bad_max", meaning: "bad checks in a row that mean bad_outcome (default 3)" },
    HookKey { key: "bad_outcome", meaning: "rollback (default), abort or hold" },
    HookKey { key: "unreachable_max", meaning: "checks without an answer that mean unreachable_outcome" },
    HookKey { key: "unreachable_outcome", meaning: "abort (default), rollback or hold" },
    HookKey { key: "no_data_max", meaning: "answers that say nothing that mean no_data_outcome" },
    HookKey { key: "no_data_outcome", meaning: "abort (default), rollback or hold" },
    HookKey { key: "no_data_status", meaning: "status codes that say nothing: 404, 425" },
    HookKey { key: "may_answer", meaning: "who may answer where an outcome is hold (default any operator)" },
];

pub(crate) fn descriptor() -> HookDescriptor {
    HookDescriptor {
        name: "health-check".to_owned(),
        keys: Some(KEYS),
        acts: |function, settings| {
            function == Function::PostStoreVersionSwap && Settings(settings).text("url").is_some()
        },
        factory: Arc::new(|_| Ok(Arc::new(HealthCheck { client: check::client()? }))),
    }
}

/// The hook.
#[derive(Debug)]
pub struct HealthCheck {
    client: reqwest::Client,
}

/// What too many checks of a kind mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TooMany {
    Rollback,
    Abort,
    Hold,
}

const TOO_MANY: &[(&str, TooMany)] =
    &[("rollback", TooMany::Rollback), ("abort", TooMany::Abort), ("hold", TooMany::Hold)];

/// How many checks of one kind in a row are too many, and what then. No limit means: wait it out.
#[derive(Debug, Clone, Copy)]
struct Budget {
    max: Option<u64>,
    outcome: TooMany,
}

#[derive(Debug)]
struct Plan {
    url: String,
    bake: Duration,
    interval: Duration,
    timeout: Duration,
    bad: Budget,
    unreachable: Budget,
    no_data: Budget,
    no_data_status: Vec<u16>,
    may_answer: Vec<String>,
}

impl Plan {
    fn read(config: &BTreeMap<String, String>) -> Result<Option<Plan>, SettingError> {
        let settings = Settings(config);
        let budget = |kind: &str, max: Option<u64>, outcome: TooMany| {
            let max_key = format!("{kind}_max");
            let max = settings.whole(&max_key)?.or(max);
            if max == Some(0) {
                let reason = "is no budget: it has to be at least 1; leave it out to set none".to_owned();
                return Err(SettingError { key: max_key, value: "0".to_owned(), reason });
            }
            let outcome = settings.word(&format!("{kind}_outcome"), TOO_MANY)?.unwrap_or(outcome);
            Ok(Budget { max, outcome })
        };
        let at_least = |key: &str, least: Duration, default: Duration| match settings.duration(key)? {
            Some(value) if value < least => Err(SettingError {
                key: key.to_owned(),
                value: config[key].clone(),
                reason: format!("is shorter than {}", wording::duration(least)),
            }),
            value => Ok(value.unwrap_or(default)),
        };
        let mut no_data_status = Vec::new();
        for status in settings.list("no_data_status")?.unwrap_or_default() {
            let code = status.parse().ok().filter(|code| (100..600).contains(code)).ok_or_else(|| SettingError {
                key: "no_data_status".to_owned(),
                value: status.clone(),
                reason: "is no HTTP status code".to_owned(),
            })?;
            no_data_status.push(code);
        }
        let plan = Plan {
            url: settings.text("url").unwrap_or_default().to_owned(),
            bake: settings.duration("bake")?.unwrap_or(Duration::from_secs(600)),
            interval: at_least("interval", Duration::from_millis(100), Duration::from_secs(60))?,
            timeout: at_least("timeout", Duration::from_millis(1), Duration::from_secs(5))?,
            bad: budget("bad", Some(3), TooMany::Rollback)?,
            unreachable: budget("unreachable", None, TooMany::Abort)?,
            no_data: budget("no_data", None, TooMany::Abort)?,
            no_data_status,
            may_answer: settings.list("may_answer")?.unwrap_or_default(),
        };
        if plan.url.is_empty() {
            return Ok(None);
        }
        check::fill(&plan.url, &Context::new(Function::PostStoreVersionSwap, "store"))
            .map_err(|reason| SettingError { key: "url".to_owned(), value: plan.url.clone(), reason })?;
        Ok(Some(plan))
    }
}

/// What the memo holds between checks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    bad: u64,
    unreachable: u64,
    no_data: u64,
    /// When the last check was made.
    checked_at: Option<Timestamp>,
    /// Where the context does not say when the region swapped: when the hook was first asked.
    since: Option<Timestamp>,
    /// What the last checks found, oldest first.
    findings: Vec<String>,
}

impl Counts {
    /// Takes a finding in; says which budget it has used up, if any.
    fn take(&mut self, plan: &Plan, finding: &Finding, at: Timestamp) -> Option<(&'static str, u64, u64, TooMany)> {
        self.checked_at = Some(at);
        self.findings.push(finding.text().to_owned());
        let surplus = self.findings.len().saturating_sub(FINDINGS_QUOTED);
        self.findings.drain(..surplus);
        let (kind, count, budget) = match finding {
            Finding::Healthy(_) => {
                *self = Counts { checked_at: self.checked_at, since: self.since, ..Counts::default() };
                return None;
            }
            Finding::Unreachable(_) if plan.unreachable.max.is_some() => {
                ("unreachable", &mut self.unreachable, plan.unreachable)
            }
            Finding::Unreachable(_) | Finding::Bad(_) => ("bad", &mut self.bad, plan.bad),
            Finding::NoData(_) => ("no data", &mut self.no_data, plan.no_data),
        };
        *count += 1;
        budget.max.filter(|max| *count >= *max).map(|max| (kind, *count, max, budget.outcome))
    }

    /// The last findings: each once where the same comes again and again, and what was asked once where it was the same.
    fn quoted(&self) -> String {
        let mut quoted = Vec::with_capacity(self.findings.len());
        let mut before = None;
        for same in self.findings.chunk_by(|one, next| one == next) {
            let [finding, ..] = same else { continue };
            let (asked, said) = finding.split_once(' ').unwrap_or(("", finding));
            let said = if before == Some(asked) { said } else { finding };
            quoted.push(match same.len() {
                1 => said.to_owned(),
                times => format!("{said} ({times} times)"),
            });
            before = Some(asked);
        }
        quoted.join("; ")
    }

    fn text(&self) -> String {
        format!("in a row {} bad, {} unreachable, {} no data", self.bad, self.unreachable, self.no_data)
    }
}

/// What follows from a finding. Pure.
fn decide(plan: &Plan, context: &Context, mut counts: Counts, finding: Option<&Finding>) -> Answer<Four> {
    let now = context.now;
    let region = context.region.as_deref().unwrap_or("?");
    let swapped_at = context
        .this_region()
        .and_then(|region| region.reached_at.get(RegionPushStatus::Swapped.name()).copied())
        .or(counts.since)
        .unwrap_or(now);
    counts.since = Some(swapped_at);
    let bake_ends = swapped_at.after(plan.bake);
    let used_up = finding.and_then(|finding| counts.take(plan, finding, now));
    let next_check = counts.checked_at.map_or(now, |at| at.after(plan.interval));
    let ask_again_at = Some(if now < bake_ends { next_check.min(bake_ends) } else { next_check });
    let memo = serde_json::to_string(&counts).unwrap_or_default();
    let hold = |reason: String| {
        let pause = PauseRequest { may_answer: plan.may_answer.clone(), until: None, when_run_out: Verdict::Rollback };
        Answer::from(Four::Wait { reason, ask_again_at }).pause(pause)
    };
    let baked = wording::duration(now.since(swapped_at));
    let bake = wording::duration(plan.bake);
    let answer = if context.pause.is_some() {
        hold(format!("{region} waits for a person; meanwhile: {} ({})", counts.text(), counts.quoted()))
    } else if let Some((kind, count, max, outcome)) = used_up {
        let reason = format!(
            "{region}: {count} checks in a row were {kind} (limit {max}), {baked} after its swap; last: {}",
            counts.quoted()
        );
        match outcome {
            TooMany::Rollback => Four::Rollback { reason }.into(),
            TooMany::Abort => Four::Abort { reason }.into(),
            TooMany::Hold => hold(reason),
        }
    } else if matches!(finding, Some(Finding::Healthy(_))) && now >= bake_ends {
        Four::Proceed.into()
    } else if counts.bad + counts.unreachable + counts.no_data > 0 {
        let reason =
            format!("{region}: {}, {baked} of {bake} after its swap; last: {}", counts.text(), counts.quoted());
        Four::Wait { reason, ask_again_at }.into()
    } else {
        let reason = format!("{region} is healthy, {baked} after its swap (limit {bake})");
        Four::Wait { reason, ask_again_at }.into()
    };
    answer.memo(memo)
}

/// Whether to check now: when the interval is over, and at the end of the bake time whatever the interval.
fn is_due(plan: &Plan, context: &Context, counts: &Counts) -> bool {
    let Some(checked_at) = counts.checked_at else { return true };
    let bake_ends = counts.since.map(|since| since.after(plan.bake));
    context.now >= checked_at.after(plan.interval)
        || bake_ends.is_some_and(|ends| context.now >= ends && checked_at < ends)
}

#[async_trait]
impl StoreLifecycleHooks for HealthCheck {
    async fn validate_hook_config(&self, context: &ValidationContext) -> Result<Answer<Two>, HookError> {
        Ok(match Plan::read(&context.config) {
            Ok(_) => Two::Proceed.into(),
            Err(error) => Two::Abort { reason: error.to_string() }.into(),
        })
    }

    async fn post_store_version_swap(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        let Some(plan) = Plan::read(&context.config)? else { return Ok(Four::Proceed.into()) };
        // A memo that an earlier release wrote otherwise starts the counts anew rather than failing for good.
        let counts: Counts =
            context.memo.as_deref().and_then(|memo| serde_json::from_str(memo).ok()).unwrap_or_default();
        if !is_due(&plan, context, &counts) {
            return Ok(decide(&plan, context, counts, None));
        }
        let url = check::fill(&plan.url, context).map_err(HookError::new)?;
        let finding = check::ask(&self.client, url, plan.timeout, &plan.no_data_status).await;
        Ok(decide(&plan, context, counts, Some(&finding)))
    }
}

#[cfg(test)]
mod tests;
