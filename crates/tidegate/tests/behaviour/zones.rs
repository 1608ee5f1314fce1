//! C13, with processes: servers in different time zones, and a change of the clocks in the middle.

use std::path::Path;
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
fn c13_servers_in_two_time_zones_over_a_change_of_the_clocks_count_elapsed_time_by_one_clock() {
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
    let begun = Instant::now();
    let zones = [zone_that_changes_in(CHANGE_AFTER), "IST-5:30".to_owned()];
    let mut servers = Servers(Vec::new());
    std::fs::write(&config, settings).unwrap();
    for (number, zone) in zones.iter().enumerate() {
        let data = folder.path().join(format!("data-{number}"));
        let child = server(&data, &config, ports[number], zone).spawn().unwrap();
        servers.0.push(child);
        let child = servers.0.last_mut().unwrap();
        until("the server is ready", String::new, || is_ready(child, ports[number]));
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
        job()
    });
    for field in ["regions", "created_at", "completed_at", "ended_at"] {
        assert_eq!(seen[0][field], seen[1][field], "both say the same");
    }
    let at = |region: &str| {
        let regions = seen[0]["regions"].as_array().unwrap();
        let region = regions.iter().find(|there| there["region"] == region).unwrap();
        region["times"]["ONLINE"].as_u64().unwrap_or_else(|| panic!("{region:#}"))
    };
    let (a, b) = (at("a"), at("b"));
    // By the one clock of the database: at least the delay, and neither an hour more nor one less.
    assert!(b >= a + DELAY && b < a + DELAY + 3_000_000, "{a} {b}");
    // Epoch milliseconds.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    assert!(u128::from(b).abs_diff(now) < 3_000_000, "{b} {now}");
}
