//! A server that is started while its database is down.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tidegate_state::testing::postgres::{PostgresServer, Stop, skipped};

use super::process::{free_port, get, tidegate, until};

fn server(folder: &Path, port: u16, database: &str) -> Command {
    let mut command = tidegate();
    command.arg("server").arg("--data").arg(folder).args(["--database", database]);
    command.args(["--listen", &format!("127.0.0.1:{port}")]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Waits until something holds of a server that runs all the while.
fn while_it_runs(child: &mut Child, what: &str, holds: impl Fn() -> bool) {
    until(what, String::new, || {
        assert_eq!(child.try_wait().unwrap(), None, "{what}: the server has ended");
        holds()
    });
}

/// D10: it is not ready and makes nothing up, and is ready by itself when the database is up; told to fail fast it ends with
/// the reason; told to stop while it waits it stops.
#[test]
fn d10_a_server_waits_for_a_database_that_is_down_or_ends_if_it_is_to_fail_fast() {
    if skipped().is_some() {
        return;
    }
    let database = PostgresServer::start(&[]).unwrap();
    database.stop(Stop::Fast);
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut child = server(folder.path(), port, &database.url()).spawn().unwrap();
    while_it_runs(&mut child, "it lives", || get(port, "/healthz").0 == 200);
    for path in ["/readyz", "/v1/stores", "/"] {
        let (status, body) = get(port, path);
        assert_eq!(status, 503, "{path}: {body}");
        assert!(body.contains("It waits for its database") && !body.contains(&database.port().to_string()), "{body}");
    }

    let (other, at) = (tempfile::tempdir().unwrap(), free_port());
    let ended = server(other.path(), at, &database.url()).arg("--fail-fast").output().unwrap();
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success(), "{told}");
    assert!(told.contains(&format!("127.0.0.1:{}", database.port())) && told.contains("can't be reached"), "{told}");

    let mut stopped = server(other.path(), at, &database.url()).spawn().unwrap();
    while_it_runs(&mut stopped, "it lives", || get(at, "/healthz").0 == 200);
    kill_process(Pid::from_raw(i32::try_from(stopped.id()).unwrap()).unwrap(), Signal::TERM).unwrap();
    assert!(stopped.wait().unwrap().success());

    database.resume().unwrap();
    while_it_runs(&mut child, "it is ready", || get(port, "/readyz").0 == 200);
    let listed = tidegate().args(["store", "list", "--url", &format!("http://127.0.0.1:{port}")]).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    child.kill().unwrap();
    child.wait().unwrap();
}
