use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;

/// A program made from a shell script, in a folder that goes with the test.
struct Script {
    folder: tempfile::TempDir,
    path: PathBuf,
}

fn script(body: &str) -> Script {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hook");
    let text = format!("#!/bin/sh\ncd {}\n{body}\n", folder.path().display());
    // Written by another process: a file that this one had open for writing when another test forked is busy for a moment.
    let write = r#"printf %s "$1" > "$0" && chmod 755 "$0""#;
    let written = std::process::Command::new("sh").args(["-c", write]).arg(&path).arg(text).status().unwrap();
    assert!(written.success(), "{written}");
    Script { folder, path }
}

impl Script {
    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }
}

fn context(function: Function) -> Context {
    let mut context = Context::new(function, "$(touch x)");
    context.region = Some("eu".into());
    context.push = Some("P".into());
    context.attempt = 3;
    context.fencing_token = 42;
    context.timeout_ms = 30_000;
    context
}

async fn run(script: &Script, context: &Context) -> Result<AnswerDocument, HookError> {
    let exec = Exec { program: script.path.display().to_string(), arguments: Vec::new() };
    exec.run(context).await
}

async fn failure(body: &str) -> String {
    let error = run(&script(body), &context(Function::PreStoreVersionSwap)).await.unwrap_err();
    error.message
}

#[tokio::test]
async fn g27_what_it_prints_is_applied() {
    let script = script(
        r#"echo '{"outcome": "wait", "reason": "42 open (limit 10)", "ask_again_at": 5, "memo": "m",
           "events": [{"kind": "k"}], "pause": {"may_answer": ["on-call"], "when_run_out": "abort"}}'"#,
    );
    let answer = run(&script, &context(Function::PreStoreVersionSwap)).await.unwrap();
    assert_eq!((answer.verdict, answer.reason.as_str()), (Verdict::Wait, "42 open (limit 10)"));
    assert_eq!(answer.ask_again_at, Some(tidegate_state::Timestamp(5)));
    assert_eq!(answer.memo.as_deref(), Some("m"));
    assert_eq!(answer.events[0].kind, "k");
    assert_eq!(answer.pause.unwrap().may_answer, ["on-call"]);
}

#[tokio::test]
async fn g27_everything_else_is_a_failure_with_code_and_the_end_of_standard_error() {
    for (body, parts) in [
        ("exit 0", vec!["exited with 0 and printed no outcome"]),
        (r#"echo '{"outcome":"proceed"}'; echo 'no disk' >&2; exit 3"#, vec!["exited with 3", "no disk"]),
        ("kill -9 $$", vec!["killed by signal 9"]),
        ("echo MAYBE", vec!["no answer", "MAYBE"]),
        (r#"echo '{"outcome":"maybe"}'"#, vec!["no answer", "maybe"]),
        (r#"echo '{"outcome":"abort"}'"#, vec!["without a reason"]),
    ] {
        let text = failure(body).await;
        for part in parts {
            assert!(text.contains(part), "{body}: {text}");
        }
    }
    let missing = Exec { program: "/nowhere/at/all".into(), arguments: Vec::new() };
    let error = missing.run(&context(Function::PreStoreVersionSwap)).await.unwrap_err();
    assert!(error.message.contains("could not be started"), "{error}");
    let plain = script("true");
    fs::set_permissions(&plain.path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = run(&plain, &context(Function::PreStoreVersionSwap)).await.unwrap_err();
    assert!(error.message.contains("Permission denied"), "{error}");
}

#[tokio::test]
async fn g27_an_outcome_that_the_function_lacks_is_a_failure_and_one_without_outcomes_needs_none() {
    let waits = script(r#"echo '{"outcome":"wait","reason":"r"}'"#);
    let error = run(&waits, &context(Function::PreStartOfPushJob)).await.unwrap_err();
    assert!(error.message.contains("pre_start_of_push_job does not have"), "{error}");
    let silent = script("true");
    assert_eq!(run(&silent, &context(Function::PostEndOfPushJob)).await.unwrap(), AnswerDocument::PROCEED);
}

/// Whether a process is there and is no zombie.
fn is_alive(pid: &str) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", pid.trim())) else { return false };
    !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
}

#[tokio::test]
async fn g28_a_program_that_hangs_with_children_goes_with_all_of_them() {
    let script = script(
        "trap '' TERM\n\
         sh -c 'trap \"\" TERM; echo $$ > child; sh -c \"trap \\\"\\\" TERM; echo \\$\\$ > grandchild; while :; do sleep 1; done\" & while :; do sleep 1; done' &\n\
         echo $$ > leader\n\
         while [ ! -s grandchild ]; do :; done\n\
         while :; do sleep 1; done",
    );
    let path = script.path.display().to_string();
    let program = Program { path: &path, arguments: &[], environment: Vec::new() };
    let limits = Limits { timeout: Duration::from_secs(2), grace: Duration::from_millis(200), ..Limits::default() };
    let error = process::run(&program, Vec::new(), &limits).await.unwrap_err();
    assert!(error.contains("did not end within 2000 ms and was killed"), "{error}");
    for name in ["leader", "child", "grandchild"] {
        let pid = script.file(name);
        assert!(!pid.is_empty(), "{name} never ran");
        // KILL takes effect at once, but its victim may still be seen on its way out.
        while is_alive(&pid) {
            tokio::task::yield_now().await;
        }
    }
    let leader = script.file("leader");
    assert!(!PathBuf::from(format!("/proc/{}", leader.trim())).exists(), "the leader is left as a zombie");
}

#[tokio::test]
async fn g28_a_call_that_is_cut_leaves_no_process_behind() {
    let script = script("echo $$ > leader\nwhile :; do sleep 1; done");
    let asked = context(Function::PreStoreVersionSwap);
    let mut call = Box::pin(run(&script, &asked));
    while script.file("leader").is_empty() {
        assert!(futures::poll!(&mut call).is_pending());
        tokio::task::yield_now().await;
    }
    let leader = script.file("leader");
    drop(call);
    while is_alive(&leader) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn g28_a_program_that_has_ended_has_answered_though_what_it_left_keeps_the_output_open() {
    let script = script("echo answered; sleep 1000 & echo $! > child");
    let path = script.path.display().to_string();
    let program = Program { path: &path, arguments: &[], environment: Vec::new() };
    let limits = Limits { timeout: Duration::from_secs(30), grace: Duration::from_millis(200), ..Limits::default() };
    let output = process::run(&program, Vec::new(), &limits).await.unwrap();
    assert_eq!((output.ended, output.stdout.as_slice()), (Ended::Exit(0), &b"answered\n"[..]));
    while is_alive(&script.file("child")) {
        tokio::task::yield_now().await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn g28_what_has_left_the_process_group_goes_too() {
    // A session of its own, and no parent that is known: what a daemon does.
    let script = script(
        "setsid sh -c 'echo $$ > child; setsid sh -c \"echo \\$\\$ > grandchild; exec sleep 1000\" & exec sleep 1000' < /dev/null > /dev/null 2>&1 &\n\
         while [ ! -s grandchild ]; do :; done\n\
         while :; do sleep 1; done",
    );
    let path = script.path.display().to_string();
    let program = Program { path: &path, arguments: &[], environment: Vec::new() };
    let limits = Limits { timeout: Duration::from_secs(2), grace: Duration::from_millis(200), ..Limits::default() };
    process::run(&program, Vec::new(), &limits).await.unwrap_err();
    for name in ["child", "grandchild"] {
        let pid = script.file(name);
        assert!(!pid.is_empty(), "{name} never ran");
        while is_alive(&pid) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn g29_output_without_end_is_cut_at_its_bound() {
    let text = failure("while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done").await;
    assert!(text.contains("printed more than 65536 bytes"), "{text}");
}

#[tokio::test]
async fn g29_a_program_that_does_not_read_its_input_is_no_failure() {
    let mut big = context(Function::PreStoreVersionSwap);
    big.attributes.insert("a".into(), "x".repeat(1 << 20));
    for body in [r#"echo '{"outcome":"proceed"}'"#, r#"exec 0<&-; echo '{"outcome":"proceed"}'"#] {
        assert_eq!(run(&script(body), &big).await.unwrap().verdict, Verdict::Proceed, "{body}");
    }
}

#[tokio::test]
async fn g29_the_context_comes_by_input_and_environment_and_never_through_a_shell() {
    let script = script(
        "cat > input\n\
         env > environment\n\
         echo '{\"outcome\":\"proceed\"}'",
    );
    let asked = context(Function::PreStoreVersionSwap);
    run(&script, &asked).await.unwrap();
    let given: Context = serde_json::from_str(&script.file("input")).unwrap();
    assert_eq!(given, asked);
    let environment = script.file("environment");
    for line in [
        "TIDEGATE_STORE=$(touch x)",
        "TIDEGATE_FUNCTION=pre_store_version_swap",
        "TIDEGATE_REGION=eu",
        "TIDEGATE_ATTEMPT=3",
        "TIDEGATE_FENCING_TOKEN=42",
    ] {
        assert!(environment.lines().any(|found| found == line), "{line} is not in {environment}");
    }
    assert!(!environment.contains("CARGO"), "the server's environment is not the program's");
    assert!(!script.folder.path().join("x").exists());
}

#[tokio::test]
async fn g29_standard_error_without_end_is_no_failure_and_only_its_end_is_kept() {
    let text = failure("i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1").await;
    assert!(text.contains("line 19999") && text.len() < 600, "{text}");
}

#[test]
fn the_group_is_gone_before_the_call_itself_would_be_cut() {
    let times = Times { timeout: Duration::from_secs(60), grace: Duration::from_secs(5) };
    let within = times.within(Duration::from_secs(30));
    assert!(within.timeout + within.grace < Duration::from_secs(30));
    assert_eq!(within.grace, Duration::from_secs(5));
}

#[tokio::test]
async fn g03_bad_settings_are_refused_and_a_store_can_not_choose_the_program() {
    let exec = Exec { program: String::new(), arguments: Vec::new() };
    for (store, key, value, part) in [
        (None, "program", "hook", "no absolute path"),
        (None, "program", "/nowhere/at/all", "No such file"),
        (None, "program", "/etc", "no file"),
        (None, "program", "/etc/passwd", "not executable"),
        (Some("s"), "program", "/bin/sh", "not by a store"),
        (Some("s"), "arguments", "-c reboot", "not by a store"),
        (None, "functions", "pre-swap, pre-lunch", "no function pre-lunch"),
        (None, "timeout", "0", "leaves no time"),
        (None, "grace", "-1s", "negative"),
    ] {
        let context = ValidationContext {
            store: store.map(str::to_owned),
            key: key.into(),
            value: value.into(),
            config: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            regions: None,
            now: tidegate_state::Timestamp(0),
        };
        let Two::Abort { reason } = exec.validate_hook_config(&context).await.unwrap().outcome else {
            panic!("{key} = {value} was accepted");
        };
        assert!(reason.contains(part), "{reason}");
    }
}

#[test]
fn it_acts_where_a_program_is_set_and_the_function_is_listed() {
    let settings = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let acts = descriptor().acts;
    assert!(!acts(Function::PreStoreVersionSwap, &settings(&[])));
    assert!(acts(Function::PreStoreVersionSwap, &settings(&[("program", "/p")])));
    let listed = settings(&[("program", "/p"), ("functions", "post-swap")]);
    assert!(!acts(Function::PreStoreVersionSwap, &listed));
    assert!(acts(Function::PostStoreVersionSwap, &listed));
}

#[tokio::test]
async fn g28_on_a_worker_whose_call_is_cut_no_process_remains_either() {
    use crate::pool::{CallError, Pool, PoolOptions};
    use tidegate_state::{ManualClock, Timestamp};

    let clock = ManualClock::new(Timestamp(0));
    let options = PoolOptions { threads: 1, timer: Arc::new(clock.clone()), ..PoolOptions::default() };
    let pool = Pool::new(options, crate::metrics::LifecycleMetrics::default());
    let timeout = Duration::from_secs(30);
    let script = script("echo $$ > leader\nwhile :; do sleep 1; done");
    let hook = Exec { program: script.path.display().to_string(), arguments: Vec::new() };
    let asked = context(Function::PreStoreVersionSwap);
    let hanging = pool.clone();
    let call = tokio::spawn(async move { hanging.call(timeout, move |_| async move { hook.run(&asked).await }).await });
    while script.file("leader").is_empty() {
        tokio::task::yield_now().await;
    }
    clock.advance(timeout);
    assert_eq!(call.await.unwrap(), Err(CallError::TimedOut { timeout }));
    while is_alive(&script.file("leader")) {
        tokio::task::yield_now().await;
    }
    // Programs run one after the other on the same worker, and on others.
    let quick = self::script(r#"echo '{"outcome":"proceed"}'"#);
    for _ in 0..3 {
        let hook = Exec { program: quick.path.display().to_string(), arguments: Vec::new() };
        let asked = context(Function::PreStoreVersionSwap);
        let answer = pool.call(timeout, move |_| async move { hook.run(&asked).await }).await.unwrap();
        assert_eq!(answer.unwrap().verdict, Verdict::Proceed);
    }
}
