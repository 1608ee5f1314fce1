//! Following a push to its end, and what is shown meanwhile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidegate_api::{PushPhase, PushView};
use tidegate_client::Client;
use tidegate_client::push::{BuildPhase, PushError, PushEvent, PushJob, PushOptions, PushOutcome};
use tokio::time::Instant;

use super::end;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::live::Live;
use crate::output::{Output, Paint, Style, bytes, counted, elapsed, plain, say, tree};

/// How long an answer may take that is asked for at the end of the time.
const LAST_ANSWER: Duration = Duration::from_millis(250);

/// Runs a job to its end, showing it. Ctrl-C ends the command and not the push, and says how the push stands.
pub(super) async fn run(client: &Client, job: PushJob, redraw: bool, output: Output) -> Result<PushOutcome, Failure> {
    let id = job.id.clone();
    let mut shown = Shown::new(output, redraw);
    let mut observer = |event: PushEvent| shown.event(event);
    let outcome = tokio::select! {
        outcome = job.run(client, &mut observer) => Some(outcome),
        // Where no signal can be waited for, it ends the process by itself.
        Ok(()) = tokio::signal::ctrl_c() => None,
    };
    let left = shown.left_behind(&id);
    shown.finish();
    match outcome {
        None => Err(left.interrupted()),
        Some(Ok(outcome)) if outcome.timed_out && !output.is_json() => {
            let needs_client = outcome.needs_client();
            let (follows, to_do) = LeftBehind { needs_client: Some(needs_client), ..left }.words();
            say(&format!(
                "{} it has not ended within --timeout. {follows} {to_do}",
                output.error_style.mark(Paint::Held)
            ));
            Ok(outcome)
        }
        Some(outcome) => outcome.map_err(failure_of),
    }
}

/// A push whose command ends before it.
struct LeftBehind {
    id: String,
    /// Whether its data is not complete; `None`: the server has not said yet that there is a push at all.
    needs_client: Option<bool>,
    /// How long the server waits for a silent client.
    silence_ms: u64,
}

impl LeftBehind {
    /// What follows, and what to do.
    fn words(&self) -> (String, String) {
        let id = plain(&self.id);
        match self.needs_client {
            None => (
                "It is not known whether the push was started.".to_owned(),
                format!(
                    "Look at it with `tidegate push status {id}`; the same command with `--id {id}` makes it or goes on with it."
                ),
            ),
            Some(true) => {
                let silence = elapsed(i64::try_from(self.silence_ms).unwrap_or(i64::MAX));
                (
                    format!(
                        "Its data is not complete, so the push waits for its client: for {silence}, then it ends as ERROR."
                    ),
                    format!(
                        "Go on with the same command and `--id {id}`, or end it with `tidegate push kill {id} --reason …`."
                    ),
                )
            }
            Some(false) => (
                "The server has all of its data, so the push goes on without this command.".to_owned(),
                format!(
                    "Follow it with `tidegate push status {id} --watch`; `tidegate push explain {id}` says what it waits for."
                ),
            ),
        }
    }

    fn interrupted(&self) -> Failure {
        let (follows, to_do) = self.words();
        let what = format!("the command was interrupted, and push {} was not", plain(&self.id));
        Failure::new(what, "Ctrl-C ends the command alone.", &follows, &to_do).with_exit(Exit::Interrupted)
    }
}

fn failure_of(error: PushError) -> Failure {
    match error {
        PushError::Server(error) => error.into(),
        PushError::Input { message, to_do } => {
            Failure::new("the input can't be pushed", message, "No push was started.", &to_do)
        }
        other => Failure::new(
            "the push could not be followed",
            other.to_string(),
            "What the server has goes on.",
            "Repeat the command with the same --id.",
        ),
    }
}

/// Pushes from within this process; gives the view of the end.
pub(crate) async fn follow_push(
    client: &Client,
    store: &str,
    id: &str,
    paths: Vec<PathBuf>,
    work: &Path,
    output: Output,
) -> Result<PushView, Failure> {
    let job = PushJob {
        id: id.to_owned(),
        store: store.to_owned(),
        paths,
        options: PushOptions {
            pushed_by: Some("demo".to_owned()),
            work: Some(work.to_owned()),
            ..PushOptions::default()
        },
    };
    let mut shown = Shown::new(output, true);
    let outcome = job.run(client, &mut |event: PushEvent| shown.event(event)).await;
    shown.finish();
    outcome.map_err(failure_of)?;
    Ok(client.push(id).await?)
}

/// `push status`: once, or until it has ended.
pub(super) async fn status(
    client: &Client,
    id: &str,
    watch: bool,
    timeout: Option<Duration>,
    output: Output,
) -> Result<Exit, Failure> {
    let started = Instant::now();
    // The time that is given is for all of it, a server that does not answer included.
    let client = &timeout.map_or_else(|| client.clone(), |limit| client.with_patience(limit));
    let mut view = match timeout {
        Some(limit) => match tokio::time::timeout(limit.saturating_add(LAST_ANSWER), client.push(id)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(unanswered(client, id)),
        },
        None => client.push(id).await?,
    };
    if !watch {
        output.result(&view, tree::push)?;
        return Ok(Exit::Done);
    }
    let mut timed_out = false;
    let mut live = Live::new(output, true);
    let following = async {
        let mut events = client.watch_push(id);
        while let Some(next) = events.next().await? {
            live.show(&next);
            let ended = next.state.status.is_terminal();
            view = next;
            if ended {
                break;
            }
        }
        Ok::<(), tidegate_client::Error>(())
    };
    match timeout {
        Some(limit) => match tokio::time::timeout_at(started + limit, following).await {
            Ok(followed) => followed?,
            Err(_) => timed_out = true,
        },
        None => following.await?,
    }
    live.finish();
    if timed_out && !output.is_json() {
        let (mark, id) = (output.error_style.mark(Paint::Held), plain(id));
        say(&format!("{mark} it has not ended within --timeout; `tidegate push explain {id}` says what it waits for"));
    }
    let outcome = PushOutcome { state: view.state.clone(), view: Some(view), timed_out, to_do: None };
    end::print(&outcome, output)?;
    Ok(end::exit_of(&outcome, true))
}

fn unanswered(client: &Client, id: &str) -> Failure {
    Failure::new(
        format!("push {} could not be looked at", plain(id)),
        format!("The server at {} did not answer within --timeout.", client.url()),
        "Nothing was changed, and the push goes on.",
        "Ask again with a longer --timeout, or name another server with --url.",
    )
    .with_exit(Exit::Unreachable)
}

/// What is shown while a job runs: bars for build and upload, then the push itself.
struct Shown {
    live: Option<Live>,
    bar: Option<ProgressBar>,
    style: Style,
    silent: bool,
    redraw: bool,
    told_unreachable: bool,
    /// As in [`LeftBehind`].
    needs_client: Option<bool>,
    silence_ms: u64,
}

impl Shown {
    fn new(output: Output, redraw: bool) -> Self {
        let style = output.error_style;
        Shown {
            live: Some(Live::new(output, redraw)),
            bar: None,
            style,
            silent: output.is_json(),
            redraw,
            told_unreachable: false,
            needs_client: None,
            silence_ms: 0,
        }
    }

    fn left_behind(&self, id: &str) -> LeftBehind {
        LeftBehind { id: id.to_owned(), needs_client: self.needs_client, silence_ms: self.silence_ms }
    }

    fn event(&mut self, event: PushEvent) {
        match &event {
            PushEvent::Accepted(accepted) => {
                self.needs_client = Some(accepted.state.phase <= PushPhase::Upload);
                self.silence_ms = accepted.silence_limit_ms;
            }
            PushEvent::Completed => self.needs_client = Some(false),
            _ => {}
        }
        if self.silent {
            return;
        }
        match event {
            PushEvent::Accepted(accepted) => {
                let version = accepted.state.version.map(|version| format!(", version {version}")).unwrap_or_default();
                let word = if accepted.created { "started" } else { "found" };
                self.line(Paint::Going, &format!("push {} {word}{version}", plain(&accepted.state.push)));
            }
            PushEvent::Building { phase, done, of, records } => {
                let what = match phase {
                    BuildPhase::Inspecting => "inspecting",
                    BuildPhase::Reading => "reading",
                    BuildPhase::Writing => "building",
                };
                self.progress(what, done, of, &counted(records, "record"));
            }
            PushEvent::Built { artifact, records, bytes: size, reused } => {
                self.end_bar();
                let word = if reused { "found again" } else { "built" };
                self.line(
                    Paint::Good,
                    &format!(
                        "artifact {} {word}: {}, {}",
                        tree::short(&artifact),
                        counted(records, "record"),
                        bytes(size)
                    ),
                );
            }
            PushEvent::Uploading { bytes: sent, of, parts, parts_of, .. } => {
                self.progress("sending", sent, of, &format!("{parts} of {}", counted(parts_of, "part")));
            }
            PushEvent::Completed => {
                self.end_bar();
                self.line(Paint::Good, "the server has all of it; this command is not needed any more");
            }
            PushEvent::View(view) => {
                self.told_unreachable = false;
                // While a bar runs, the push only waits for it.
                if self.bar.is_none()
                    && let Some(live) = &mut self.live
                {
                    live.show(&view);
                }
            }
            PushEvent::Unreachable { reason } => {
                if !std::mem::replace(&mut self.told_unreachable, true) {
                    self.line(Paint::Held, &format!("the server can't be reached ({}); trying on", plain(&reason)));
                }
            }
            _ => {}
        }
    }

    fn line(&self, paint: Paint, text: &str) {
        let line = format!("{} {text}", self.style.mark(paint));
        match &self.live {
            Some(Live::Tree { bar, .. }) => bar.suspend(|| say(&line)),
            _ => say(&line),
        }
    }

    fn progress(&mut self, what: &str, done: u64, of: u64, message: &str) {
        if !(self.redraw || self.style.terminal) {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(of), ProgressDrawTarget::stderr());
            let template = "  {prefix:<10} [{bar:30}] {percent:>3} %  {msg}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        bar.set_prefix(what.to_owned());
        bar.set_length(of);
        bar.set_position(done);
        bar.set_message(message.to_owned());
    }

    fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn finish(mut self) {
        self.end_bar();
        if let Some(live) = self.live.take() {
            live.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f11_a_command_that_ends_before_its_push_says_what_is_true() {
        let words = |needs_client| {
            let left = LeftBehind { id: "p1".to_owned(), needs_client, silence_ms: 600_000 };
            assert_eq!(left.interrupted().exit() as u8, 130);
            let (follows, to_do) = left.words();
            format!("{follows} {to_do}")
        };
        let waits = words(Some(true));
        for part in ["waits for its client: for 10m00s", "--id p1", "push kill p1"] {
            assert!(waits.contains(part), "{part} in {waits}");
        }
        assert!(words(Some(false)).contains("goes on without this command"));
        assert!(words(None).contains("not known"));
    }
}
