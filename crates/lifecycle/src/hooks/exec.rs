//! `exec`: forwards functions to a program on the server.
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `program` | absolute path of a program that is there; in the published configuration only | none: the hook does nothing |
//! | `arguments` | its arguments: a list, or words between blanks; in the published configuration only | none |
//! | `functions` | the functions to forward, by short name: `pre-swap, post-swap` | all of them |
//! | `timeout` | when the program's process group gets TERM; never later than the call's own timeout leaves room for | `20s` |
//! | `grace` | how long after TERM it gets KILL | `5s` |
//!
//! The program gets the whole context as one JSON object on its standard input, and the main parts of it in its
//! environment (`TIDEGATE_FUNCTION`, `TIDEGATE_STORE`, `TIDEGATE_PUSH`, `TIDEGATE_REGION`, `TIDEGATE_VERSION`,
//! `TIDEGATE_PREVIOUS_VERSION`, `TIDEGATE_ATTEMPT`, `TIDEGATE_IDEMPOTENCY_KEY`, `TIDEGATE_FENCING_TOKEN`; of the server's
//! own environment only `PATH`). There is no shell. It prints an answer on its standard output and exits with 0:
//!
//! ```json
//! {"outcome": "wait", "reason": "42 orders open (limit 10)", "ask_again_at": 1772366400000, "memo": "42"}
//! ```
//!
//! `outcome` is `proceed`, `abort`, `wait` or `rollback`; all but `proceed` need a `reason`; `ask_again_at`,
//! `stops_clock`, `memo`, `events` and `pause` may be left out. Functions without outcomes need print nothing. Anything
//! else is a failure, whose text has the exit code or signal and the end of the standard error.
//!
//! A program that has to be killed goes with all that it has started: its process group, and on Linux also what has left
//! the group, found by `TIDEGATE_RUN` in its environment. What has cleared its environment is not found. A program that
//! has exited has answered: what it left behind is ended after half a second where it holds the output open.
//!
//! The program can't be chosen by a store's overrides: who may set those may not therefore run programs on the server.

mod process;
mod stray;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::context::Context;
use crate::contract::{HookError, StoreLifecycleHooks, ValidationContext};
use crate::function::{Function, Outcomes};
use crate::outcome::{
    Answer, AnswerDocument, StoreLifecycleEventOutcome as Two, StoreVersionLifecycleEventOutcome as Four, Verdict,
    shorten,
};
use crate::registry::{HookDescriptor, HookKey};
use crate::setting::{SettingError, Settings};
use process::{Ended, Limits, Program};

/// What a call's own timeout has to leave beyond the program's timeout and grace.
const MARGIN: Duration = Duration::from_millis(500);
/// How much of an output a text quotes, in bytes.
const QUOTED_BYTES_MAX: usize = 300;

const KEYS: &[HookKey] = &[
    HookKey { key: "program", meaning: "absolute path of the program; not as an override" },
    HookKey { key: "arguments", meaning: "its arguments, a list; not as an override" },
    HookKey { key: "functions", meaning: "the functions to forward: pre-swap, post-swap (default all)" },
    HookKey { key: "timeout", meaning: "when the program is told to end (default 20s)" },
    HookKey { key: "grace", meaning: "how long after that it is killed (default 5s)" },
];

pub(crate) fn descriptor() -> HookDescriptor {
    HookDescriptor {
        name: "exec".to_owned(),
        keys: Some(KEYS),
        acts: |function, settings| {
            let settings = Settings(settings);
            // A list that can't be read is one for the call to fail with, not one to pass over.
            let forwarded = settings.list("functions").map_or(true, |names| {
                names.is_none_or(|names| names.iter().any(|name| Function::from_short_name(name) == Some(function)))
            });
            function != Function::ValidateHookConfig && settings.text("program").is_some() && forwarded
        },
        factory: Arc::new(|config| {
            let settings = Settings(config);
            Ok(Arc::new(Exec {
                program: settings.text("program").unwrap_or_default().to_owned(),
                arguments: arguments(&settings)?,
            }))
        }),
    }
}

/// The hook. Program and arguments are those of the published configuration.
#[derive(Debug)]
pub struct Exec {
    program: String,
    arguments: Vec<String>,
}

fn arguments(settings: &Settings<'_>) -> Result<Vec<String>, SettingError> {
    match settings.text("arguments") {
        Some(text) if !text.starts_with('[') => Ok(text.split_whitespace().map(str::to_owned).collect()),
        _ => Ok(settings.list("arguments")?.unwrap_or_default()),
    }
}

#[derive(Debug)]
struct Times {
    timeout: Duration,
    grace: Duration,
}

impl Times {
    fn read(config: &BTreeMap<String, String>) -> Result<Times, SettingError> {
        let settings = Settings(config);
        Ok(Times {
            timeout: settings.duration("timeout")?.unwrap_or(Duration::from_secs(20)),
            grace: settings.duration("grace")?.unwrap_or(Duration::from_secs(5)),
        })
    }

    /// As long as the call's own timeout leaves: the call would otherwise be cut before the group is gone.
    fn within(self, call: Duration) -> Times {
        let room = call.saturating_sub(MARGIN);
        let grace = self.grace.min(room / 2);
        Times { timeout: self.timeout.min(room.saturating_sub(grace)), grace }
    }
}

impl Exec {
    async fn run(&self, context: &Context) -> Result<AnswerDocument, HookError> {
        let times = Times::read(&context.config)?.within(Duration::from_millis(context.timeout_ms));
        let input = serde_json::to_vec(context)
            .map_err(|error| HookError::new(format!("the context could not be written as JSON: {error}")))?;
        let program = Program { path: &self.program, arguments: &self.arguments, environment: environment(context) };
        let limits = Limits { timeout: times.timeout, grace: times.grace, ..Limits::default() };
        let output = process::run(&program, input, &limits).await.map_err(HookError::new)?;
        let stderr = || quoted_end(&output.stderr);
        match output.ended {
            Ended::Exit(0) => {}
            Ended::Exit(code) => {
                return Err(HookError::new(format!("{} exited with {code}{}", self.program, stderr())));
            }
            Ended::Signal(signal) => {
                return Err(HookError::new(format!("{} was killed by signal {signal}{}", self.program, stderr())));
            }
        }
        let outcomes = context.function.outcomes();
        let printed = output.stdout.trim_ascii();
        if printed.is_empty() && outcomes == Outcomes::None {
            return Ok(AnswerDocument::PROCEED);
        }
        if printed.is_empty() {
            return Err(HookError::new(format!("{} exited with 0 and printed no outcome{}", self.program, stderr())));
        }
        let answer: AnswerDocument = serde_json::from_slice(printed).map_err(|error| {
            let printed = quoted_beginning(printed);
            HookError::new(format!("{} printed what is no answer ({error}): {printed}{}", self.program, stderr()))
        })?;
        if !answer.verdict.is_within(outcomes) {
            let function = context.function.name();
            return Err(HookError::new(format!(
                "{} answered {}, which {function} does not have",
                self.program, answer.verdict
            )));
        }
        if answer.verdict != Verdict::Proceed && answer.reason.trim().is_empty() {
            return Err(HookError::new(format!("{} answered {} without a reason", self.program, answer.verdict)));
        }
        Ok(answer)
    }

    async fn two(&self, context: &Context) -> Result<Answer<Two>, HookError> {
        let AnswerDocument { verdict, reason, stops_clock, memo, events, pause, .. } = self.run(context).await?;
        let outcome = match verdict {
            Verdict::Proceed => Two::Proceed,
            Verdict::Abort | Verdict::Wait | Verdict::Rollback => Two::Abort { reason },
        };
        Ok(Answer { outcome, stops_clock, memo, events, pause })
    }

    async fn four(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        let AnswerDocument { verdict, reason, ask_again_at, stops_clock, memo, events, pause } =
            self.run(context).await?;
        let outcome = match verdict {
            Verdict::Proceed => Four::Proceed,
            Verdict::Abort => Four::Abort { reason },
            Verdict::Wait => Four::Wait { reason, ask_again_at },
            Verdict::Rollback => Four::Rollback { reason },
        };
        Ok(Answer { outcome, stops_clock, memo, events, pause })
    }

    async fn nothing(&self, context: &Context) -> Result<(), HookError> {
        self.run(context).await.map(|_| ())
    }
}

/// Why the program can't be run on this server, as far as that can be told without running it.
async fn why_not_run(program: &str) -> Option<String> {
    match tokio::fs::metadata(program).await {
        Err(error) => return Some(format!("can't be run by this server: {error}")),
        Ok(metadata) if !metadata.is_file() => return Some("is no file".to_owned()),
        Ok(_) => {}
    }
    let may = rustix::fs::access(program, rustix::fs::Access::EXEC_OK);
    may.err().map(|_| "is not executable for this server's user".to_owned())
}

fn environment(context: &Context) -> Vec<(&'static str, String)> {
    let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
    let mut environment = vec![
        ("TIDEGATE_FUNCTION", context.function.name().to_owned()),
        ("TIDEGATE_STORE", context.store.clone()),
        ("TIDEGATE_PUSH", context.push.clone().unwrap_or_default()),
        ("TIDEGATE_REGION", context.region.clone().unwrap_or_default()),
        ("TIDEGATE_VERSION", number(context.version)),
        ("TIDEGATE_PREVIOUS_VERSION", number(context.previous_version)),
        ("TIDEGATE_ATTEMPT", context.attempt.to_string()),
        ("TIDEGATE_IDEMPOTENCY_KEY", context.idempotency_key.clone()),
        ("TIDEGATE_FENCING_TOKEN", context.fencing_token.to_string()),
    ];
    // An environment can't carry a zero byte; the whole name is in the context on standard input.
    for (_, value) in &mut environment {
        value.retain(|c| c != '\0');
    }
    environment
}

fn quoted_beginning(bytes: &[u8]) -> String {
    shorten(&String::from_utf8_lossy(bytes), QUOTED_BYTES_MAX)
}

fn quoted_end(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    let mut start = text.len().saturating_sub(QUOTED_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    format!(", standard error: {}{}", if start > 0 { "…" } else { "" }, &text[start..])
}

#[async_trait]
impl StoreLifecycleHooks for Exec {
    async fn validate_hook_config(&self, context: &ValidationContext) -> Result<Answer<Two>, HookError> {
        let refuse = |reason: String| Ok(Two::Abort { reason }.into());
        let (key, value) = (&context.key, &context.value);
        if context.store.is_some() && (key == "program" || key == "arguments") {
            return refuse(format!(
                "{key} = {value:?}: which program runs on the server is set in its configuration, not by a store"
            ));
        }
        let settings = Settings(&context.config);
        if key == "program" {
            if !Path::new(value).is_absolute() {
                return refuse(format!("program = {value:?}: is no absolute path"));
            }
            if let Some(reason) = why_not_run(value).await {
                return refuse(format!("program = {value:?}: {reason}"));
            }
        }
        let read = Times::read(&context.config)
            .and_then(|times| {
                if times.timeout.is_zero() {
                    let reason = "leaves no time".to_owned();
                    return Err(SettingError { key: "timeout".into(), value: value.clone(), reason });
                }
                arguments(&settings)
            })
            .and_then(|_| settings.list("functions"));
        match read {
            Err(error) => return refuse(error.to_string()),
            Ok(names) => {
                for name in names.unwrap_or_default() {
                    if Function::from_short_name(&name).is_none() {
                        let known = Function::ALL.map(Function::short_name).join(", ");
                        return refuse(format!(
                            "functions = {value:?}: there is no function {name}; there are {known}"
                        ));
                    }
                }
            }
        }
        Ok(Two::Proceed.into())
    }

    async fn pre_start_of_push_job(&self, context: &Context) -> Result<Answer<Two>, HookError> {
        self.two(context).await
    }
    async fn post_start_of_push_job(&self, context: &Context) -> Result<(), HookError> {
        self.nothing(context).await
    }
    async fn pre_schema_registration(&self, context: &Context) -> Result<Answer<Two>, HookError> {
        self.two(context).await
    }
    async fn post_schema_registration(&self, context: &Context) -> Result<(), HookError> {
        self.nothing(context).await
    }
    async fn pre_store_version_creation(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_store_version_creation(&self, context: &Context) -> Result<(), HookError> {
        self.nothing(context).await
    }
    async fn pre_start_of_store_version_ingestion_for_da_vinci(
        &self,
        context: &Context,
    ) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_start_of_store_version_ingestion_for_da_vinci(
        &self,
        context: &Context,
    ) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_store_version_leader_replication(&self, context: &Context) -> Result<(), HookError> {
        self.nothing(context).await
    }
    async fn pre_store_version_swap(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_store_version_swap(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn pre_end_of_push_job(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        self.four(context).await
    }
    async fn post_end_of_push_job(&self, context: &Context) -> Result<(), HookError> {
        self.nothing(context).await
    }
}

#[cfg(test)]
mod tests;
