//! C13, with processes: servers in different time zones, the clock of one five minutes ahead, and a change of the clocks in the
//! middle.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tidegate_state::testing::postgres;

use crate::process::{free_port, get, is_ready, tidegate, until, write_csv};

/// How long the next region waits, in milliseconds.
const DELAY: u64 = 3_000;

/// How long after the servers are begun to start the clocks change, and how long before that the push begins.
const CHANGE_AFTER: Duration = Duration::from_secs(8);
const PUSH_BEFORE: Duration = Duration::from_millis(1_500);

fn server(data: &Path, config: &Path, port: u16, zone: &str) -> Command {
    let mut command = tidegate();
    command.arg("server").arg("--data").arg(data).arg("--config").arg(config);
    command.args(["--listen", &format!("127.0.0.1:{port}")]).env("TZ", zone);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// How far the second server's clock is ahead, in seconds.
const AHEAD: u64 = 300;

/// A library that has a program's clock stand ahead, built where programs can be given one.
fn clock_ahead(folder: &Path) -> Option<PathBuf> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return None;
    }
    let (source, library) = (folder.join("ahead.c"), folder.join("ahead.so"));
    let text = format!(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <time.h>\n\
         int clock_gettime(clockid_t clock, struct timespec *at) {{\n\
         static int (*there)(clockid_t, struct timespec *);\n\
         if (!there) there = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, \"clock_gettime\");\n\
         int failed = there(clock, at);\n\
         if (!failed && clock == CLOCK_REALTIME) at->tv_sec += {AHEAD};\n\
         return failed;\n}}\n"
    );
    std::fs::write(&source, text).unwrap();
    // A C compiler is there: the program itself needs one to be built.
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(library)
}

/// What the clock of a server says, in seconds of its day, as it dates its answers.
fn clock_of(port: u16) -> u64 {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET /healthz HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let date = answer.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("date: ").map(str::to_owned));
    let date = date.unwrap_or_else(|| panic!("no date: {answer}"));
    // Such as `sun, 29 mar 2026 00:30:00 gmt`.
    let time: Vec<u64> = date.split(' ').nth(4).unwrap().split(':').map(|part| part.parse().unwrap()).collect();
    time[0] * 3_600 + time[1] * 60 + time[2]
}

fn epoch_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// Processes that end with the test.
struct Servers(Vec<Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A zone, in the form of POSIX, whose clocks go forward by an hour so soon.
fn zone_that_changes_in(soon: Duration) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + soon;
    let (mut day, second) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    let mut year = 1970;
    loop {
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = if is_leap { 366 } else { 365 };
        if day < days {
            break;
        }
        (day, year) = (day - days, year + 1);
    }
    let time = format!("{}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60);
    format!("WIN0SUM-1,{day}/{time},{}/0", (day + 60) % 365)
}

#[test]
fn c13_servers_with_other_zones_and_clocks_count_elapsed_time_by_one_clock_over_a_change_of_the_clocks() {
    if postgres::skipped().is_some() {
        return;
    }
    let database = postgres::shared().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tidegate.toml");
    let settings = format!(
        "[server]\ndatabase = {:?}\nschema = {:?}\nlease_seconds = 2\n[artifacts]\nurl = \"file://{}\"\n\
         [hooks]\nenabled = [\"region-order\"]\n[hooks.config.region-order]\norder = \"a, b, c\"\ndelay = \"{DELAY}ms\"\n",
        database.url(),
        database.fresh_schema(),
        folder.path().join("artifacts").display(),
    );
    let ports = [free_port(), free_port()];
    let ahead = clock_ahead(folder.path());
    let (begun, begun_ms) = (Instant::now(), epoch_ms());
    let zones = [zone_that_changes_in(CHANGE_AFTER), "IST-5:30".to_owned()];
    let mut servers = Servers(Vec::new());
    std::fs::write(&config, settings).unwrap();
    for (number, zone) in zones.iter().enumerate() {
        let data = folder.path().join(format!("data-{number}"));
        let mut command = server(&data, &config, ports[number], zone);
        if let Some(library) = ahead.as_ref().filter(|_| number == 1) {
            command.env("LD_PRELOAD", library);
        }
        let child = command.spawn().unwrap();
        servers.0.push(child);
        let child = servers.0.last_mut().unwrap();
        until("the server is ready", String::new, || is_ready(child, ports[number]));
    }
    if ahead.is_some() {
        let day = 86_400;
        let apart = (clock_of(ports[1]) + day - clock_of(ports[0])) % day;
        assert!(apart.abs_diff(AHEAD) < 60, "their clocks are {apart} s apart");
    }
    let command = |number: usize, arguments: &[&str]| {
        let url = format!("http://127.0.0.1:{}", ports[number]);
        let output = tidegate().env("TIDEGATE_URL", url).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let input = folder.path().join("things.csv");
    write_csv(&input, 50, 0);
    command(0, &["store", "create", "things", "--key", "id"]);
    // So that the change comes while the second region waits.
    std::thread::sleep((CHANGE_AFTER - PUSH_BEFORE).saturating_sub(begun.elapsed()));
    command(0, &["push", "things", input.to_str().unwrap(), "--id", "p"]);

    let seen = [0, 1].map(|number: usize| {
        let job = || serde_json::from_str::<Value>(&get(ports[number], "/v1/pushes/p").1).unwrap_or_default();
        until("the push has ended here, too", String::new, || job()["status"] == "COMPLETED");
        let mut ended = job();
        for region in ended["regions"].as_array_mut().unwrap() {
            // Regions go on reporting between the two looks.
            region.as_object_mut().unwrap().remove("heard_at").expect("a time");
        }
        ended
    });
    for field in ["regions", "created_at", "completed_at", "ended_at"] {
        assert_eq!(seen[0][field], seen[1][field], "both say the same");
    }
    let times = |push: &Value| {
        let at = |region: &str| {
            let regions = push["regions"].as_array().unwrap();
            let region = regions.iter().find(|there| there["region"] == region).unwrap();
            region["times"]["ONLINE"].as_u64().unwrap_or_else(|| panic!("{region:#}"))
        };
        [at("a"), at("b"), at("c")]
    };
    // By the one clock of the database, in epoch milliseconds: at least the delay, neither an hour more nor one less, and none
    // of it by a clock that is ahead.
    let check = |push: &Value, since: u64, until: u64| {
        let [a, b, c] = times(push);
        for (before, after) in [(a, b), (b, c)] {
            assert!(after >= before + DELAY && after < before + DELAY + 3_000_000, "{push:#}");
        }
        assert!(since <= a && c <= until, "{since} {until}: {push:#}");
    };
    check(&seen[0], begun_ms, epoch_ms());

    // The one whose clock is ahead does everything alone, and it is no different.
    let mut other = servers.0.remove(0);
    other.kill().unwrap();
    other.wait().unwrap();
    let since = epoch_ms();
    command(1, &["push", "things", input.to_str().unwrap(), "--id", "q"]);
    let alone = || serde_json::from_str::<Value>(&get(ports[1], "/v1/pushes/q").1).unwrap_or_default();
    until("the push has ended", String::new, || alone()["status"] == "COMPLETED");
    check(&alone(), since, epoch_ms());
}
