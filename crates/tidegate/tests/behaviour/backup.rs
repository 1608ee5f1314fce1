//! Backups, and putting one back: under load, with servers up and down, in either database, on a new machine.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tidegate_state::testing::postgres;

use crate::process::{Server, describe, get, tidegate, until, write_csv};

/// Commands that need no server, on one installation.
struct Offline {
    place: Vec<String>,
}

impl Offline {
    fn in_folder(data: &Path) -> Offline {
        Offline { place: vec!["--data".to_owned(), data.to_str().unwrap().to_owned()] }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tidegate();
        command.args(arguments).args(&self.place);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.command(arguments).args(["--output", "json"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", describe(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, arguments: &[&str], code: i32, named: &[&str]) {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", describe(&output));
        for word in named {
            assert!(String::from_utf8_lossy(&output.stderr).contains(word), "{word}: {}", describe(&output));
        }
    }
}

struct World {
    server: Server,
    input: String,
    offline: Offline,
}

impl World {
    fn start(config: Option<&str>) -> World {
        let server = Server::start_with(config);
        let input = server.scratch().join("input.csv");
        write_csv(&input, 300, 0);
        server.json(&["store", "create", "things", "--key", "id"]);
        let offline = Offline::in_folder(&server.data());
        World { server, input: input.to_str().unwrap().to_owned(), offline }
    }

    /// On the tests' PostgreSQL, in a schema of its own.
    fn on_postgres() -> Option<World> {
        if postgres::skipped().is_some() {
            return None;
        }
        let database = postgres::shared().unwrap();
        let config = format!(
            "[server]\ndatabase = {:?}\nschema = {:?}\nlease_seconds = 2\n",
            database.url(),
            database.fresh_schema()
        );
        let mut world = World::start(Some(&config));
        let file = world.server.scratch().join("tidegate.toml");
        world.offline.place.extend(["--config".to_owned(), file.to_str().unwrap().to_owned()]);
        Some(world)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.server.scratch().join(name)
    }

    fn database(&self) -> String {
        self.server.data().join("state.sqlite").to_str().unwrap().to_owned()
    }

    fn push(&self, id: &str) -> u64 {
        let output = self.server.run(&["push", "things", &self.input, "--id", id]);
        assert_eq!(output.status.code(), Some(0), "{}\n{}", describe(&output), self.server.log_text());
        self.server.json(&["push", "status", id])["version"].as_u64().unwrap()
    }

    fn set(&self, number: u64) {
        self.server.json(&["store", "set", "things", &format!("limits.silence_ms={}", 600_000 + number)]);
    }

    fn until(&self, what: &str, holds: impl Fn(&Server) -> bool) {
        until(what, || self.server.log_text(), || holds(&self.server));
    }

    fn serves(&self, region: &str) -> Option<u64> {
        let output =
            self.server.command(&["get", "things", "k7", "--region", region, "--output", "json"]).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).ok()?["version"].as_u64()
    }

    /// A watch that was at the backup's revision is told to begin anew, also where there is such a revision again.
    fn refuses_to_resume(&self, taken: &Value) {
        let (epoch, revision) = (taken["epoch"].as_str().unwrap(), &taken["revision"]);
        let (status, body) = get(self.server.port(), &format!("/v1/watch?epoch={epoch}&revision={revision}"));
        assert_eq!(status, 410, "{body}");
    }

    fn knows(&self, push: &str) -> bool {
        self.server.run(&["push", "status", push]).status.success()
    }
}

/// A backup while somebody writes all the time.
fn backup_under_load(world: &World, to: &str) -> Value {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                world.set(number);
                number += 1;
            }
            number
        });
        let taken = world.offline.run(&["backup", "--output", "json", "--to", to]);
        // Whatever came of it, the writer has to end.
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0, "nobody wrote meanwhile");
        assert_eq!(taken.status.code(), Some(0), "{}", describe(&taken));
        serde_json::from_slice(&taken.stdout).unwrap()
    })
}

#[test]
fn d35_a_backup_under_load_is_restored_and_no_version_is_given_out_twice() {
    let mut world = World::start(None);
    assert_eq!((world.push("p1"), world.push("p2")), (1, 2));
    let token = |name: &str| {
        let made = world.server.json(&["token", "create", "--name", name, "--role", "viewer"]);
        made["token"]["id"].as_str().unwrap_or_else(|| panic!("{made:#}")).to_owned()
    };
    let (lost, kept) = (token("lost"), token("kept"));
    let to = world.file("things.backup").to_str().unwrap().to_owned();
    let taken = backup_under_load(&world, &to);
    assert_eq!((&taken["stores"], &taken["pushes"]), (&Value::from(1), &Value::from(2)));
    assert_eq!(taken["artifacts"].as_array().unwrap().len(), 2, "{taken:#}");
    assert!(taken["artifact_store"].as_str().unwrap().starts_with("file://"), "{taken:#}");
    world.offline.refused(&["backup", "--to", &to], 1, &["is there already"]);

    // What is lost: 50 commits and more, three of them versions.
    for number in 0..50 {
        world.set(number);
    }
    assert_eq!((world.push("p3"), world.push("p4"), world.push("p5")), (3, 4, 5));
    world.server.json(&["token", "revoke", &lost, "--reason", "leaked", "--yes"]);
    // A store that the backup knows nothing of, and that is lost with it.
    let begin_later = |world: &World, id: &str| {
        world.server.json(&["store", "create", "later", "--key", "id"]);
        world.server.json(&["push", "later", &world.input, "--id", id]);
        world.server.json(&["push", "status", id])["version"].as_u64().unwrap()
    };
    assert_eq!(begin_later(&world, "l1"), 1);
    world.offline.refused(&["restore", "--from", &to, "--yes"], 1, &["a server is running on"]);
    assert!(world.knows("p5"));
    world.server.kill();

    // Without a terminal to ask on nothing is done, but it is said what would be.
    let revision = taken["revision"].to_string();
    world.offline.refused(&["restore", "--from", &to], 2, &["--yes", &revision, "6 pushes", "2 pushes"]);
    world.server.restart();
    assert!(world.knows("p5"));
    world.server.kill();

    let restored = world.offline.json(&["restore", "--from", &to, "--yes"]);
    assert_eq!(restored["installation"], taken["installation"]);
    assert_eq!(restored["replaced"]["same_installation"], Value::from(true), "{restored:#}");
    assert!(restored["missing"].as_array().unwrap().is_empty(), "{restored:#}");
    assert!(Path::new(restored["kept"].as_str().unwrap()).is_file(), "{restored:#}");
    assert_eq!(restored["revoked"], Value::from(1), "{restored:#}");
    world.server.restart();
    let tokens = world.server.json(&["token", "list"]);
    let status = |id: &str| {
        let listed = tokens.as_array().or_else(|| tokens["tokens"].as_array()).unwrap().iter();
        let found = listed.clone().find(|token| token["id"] == id).unwrap_or_else(|| panic!("{tokens:#}"));
        found["status"].as_str().unwrap().to_owned()
    };
    assert_eq!((status(&lost).as_str(), status(&kept).as_str()), ("revoked", "active"));
    let trail = world.server.json(&["audit"]).to_string();
    assert!(trail.contains("tidegate restore") && trail.contains(taken["epoch"].as_str().unwrap()), "{trail}");
    let again = begin_later(&world, "l2");
    assert!(again > 1_000 && again < 10_000, "{again}: the regions know a version 1 of it");
    assert!(world.knows("p2") && !world.knows("p3") && !world.knows("p5"));
    world.until("the regions serve what the backup says", |_| {
        ["a", "b", "c"].iter().all(|region| world.serves(region) == Some(2))
    });
    world.refuses_to_resume(&taken);
    // The id of a push that was lost is free again; its number is not.
    let next = world.push("p3");
    assert!(next > 5 && next < 10_000, "{next}");
    assert_eq!(world.serves("b"), Some(next));
    assert_eq!(world.push("p6"), next + 1);

    let again = world.file("again.backup").to_str().unwrap().to_owned();
    let taken_again = world.offline.json(&["backup", "--to", &again]);
    assert_eq!(taken_again["installation"], taken["installation"]);
    assert_ne!(taken_again["epoch"], taken["epoch"]);
    // The older one once more: the state at hand counts in another epoch, so that it can't tell what it did not see.
    world.server.kill();
    world.offline.json(&["restore", "--from", &to, "--yes"]);
    world.server.restart();
    let far = world.push("p7");
    assert!(far > next + 1_000_000, "{far}");
}

#[test]
fn d35_a_backup_with_artifacts_makes_an_installation_on_a_new_machine() {
    let world = World::start(None);
    assert_eq!((world.push("p1"), world.push("p2")), (1, 2));
    let to = world.file("whole.backup").to_str().unwrap().to_owned();
    let taken = world.offline.json(&["backup", "--to", &to, "--with-artifacts"]);
    assert!(taken["not_copied"].as_array().unwrap().is_empty(), "{taken:#}");
    assert_eq!(taken["artifacts_folder"], Value::from(format!("{to}.artifacts")));
    for private in [to.clone(), format!("{to}.artifacts"), world.database()] {
        let mode = std::fs::metadata(&private).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{private} is for its owner alone");
    }

    // By reference: the artifacts are nowhere on the new machine, and named.
    let alone = world.file("elsewhere/alone.backup");
    std::fs::create_dir(alone.parent().unwrap()).unwrap();
    std::fs::copy(&to, &alone).unwrap();
    let bare = Offline::in_folder(&world.file("bare"));
    let restored = bare.json(&["restore", "--from", alone.to_str().unwrap(), "--yes"]);
    let missing = restored["missing"].as_array().unwrap();
    assert_eq!(missing.len(), 2, "{restored:#}");
    assert_eq!((&missing[1]["store"], &missing[1]["version"]), (&Value::from("things"), &Value::from(2)));
    let said = bare.run(&["restore", "--from", alone.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("version 2 of things") && said.contains("not the one"), "{said}");

    // With them: another machine, another port, an empty folder.
    let mut other = Server::start();
    other.kill();
    std::fs::remove_dir_all(other.data()).unwrap();
    let restored = Offline::in_folder(&other.data()).json(&["restore", "--from", &to, "--yes"]);
    assert_eq!(restored["replaced"]["state"], "absent");
    assert!(restored["missing"].as_array().unwrap().is_empty(), "{restored:#}");
    other.restart();
    let other = World { offline: Offline::in_folder(&other.data()), server: other, input: world.input.clone() };
    other.until("its regions have loaded what they are to serve", |_| {
        ["a", "b", "c"].iter().all(|region| other.serves(region) == Some(2))
    });
    let next = other.push("p3");
    assert!(next > 1_000_000, "{next}: nobody there knows what was given out since");
    assert_eq!(other.serves("c"), Some(next));
}

#[test]
fn d35_what_is_damaged_or_no_backup_is_refused_and_nothing_is_touched() {
    let mut world = World::start(None);
    world.push("p1");
    let to = world.file("b").to_str().unwrap().to_owned();
    world.offline.json(&["backup", "--to", &to]);
    world.push("p2");
    world.server.kill();
    let before = std::fs::read(world.server.data().join("state.sqlite")).unwrap();
    let whole = std::fs::read(&to).unwrap();
    let bad = world.file("bad").to_str().unwrap().to_owned();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    let newer = [&b"tidegate backup\n{\"format\":9}\n"[..], &[0; 64]].concat();
    for (bytes, named) in [
        (&changed[..], "damaged"),
        (&whole[..whole.len() - 1], "damaged"),
        (&whole[..whole.len() / 2], "damaged"),
        (&before[..], "is no backup"),
        (&[], "is no backup"),
        (&newer, "format 9"),
    ] {
        std::fs::write(&bad, bytes).unwrap();
        world.offline.refused(&["restore", "--from", &bad, "--yes"], 1, &[named, &bad, "Nothing was changed"]);
    }
    world.offline.refused(&["restore", "--from", "/nowhere/b", "--yes"], 1, &["/nowhere/b"]);
    assert_eq!(std::fs::read(world.server.data().join("state.sqlite")).unwrap(), before);
    world.server.restart();
    assert!(world.knows("p2"));
    // Which installation has to be said.
    let unsaid = tidegate().args(["backup", "--to", &bad]).output().unwrap();
    assert_eq!(unsaid.status.code(), Some(2), "{}", describe(&unsaid));
}

#[test]
fn d43_a_backup_takes_the_place_of_a_database_that_is_damaged() {
    let mut world = World::start(None);
    world.push("p1");
    let to = world.file("b").to_str().unwrap().to_owned();
    world.offline.json(&["backup", "--to", &to]);
    world.server.kill();
    let file = world.server.data().join("state.sqlite");
    std::fs::write(&file, "this is no database any more").unwrap();
    for beside in ["state.sqlite-wal", "state.sqlite-shm"] {
        // With it some pages could still be read.
        let _ = std::fs::remove_file(world.server.data().join(beside));
    }
    let restored = world.offline.json(&["restore", "--from", &to, "--yes"]);
    assert_eq!(restored["replaced"]["state"], "unreadable", "{restored:#}");
    assert_eq!(std::fs::read(restored["kept"].as_str().unwrap()).unwrap(), b"this is no database any more");
    world.server.restart();
    assert!(world.push("p2") > 1_000_000);
}

#[test]
fn d35_on_postgres_a_restore_is_noticed_by_servers_that_are_up() {
    let Some(world) = World::on_postgres() else { return };
    assert_eq!(world.push("p1"), 1);
    let to = world.file("p.backup").to_str().unwrap().to_owned();
    let taken = backup_under_load(&world, &to);
    for number in 0..50 {
        world.set(number);
    }
    assert_eq!((world.push("p2"), world.push("p3")), (2, 3));
    world.offline.refused(&["restore", "--from", &to], 2, &["--yes", "3 pushes"]);
    let restored = world.offline.json(&["restore", "--from", &to, "--yes"]);
    assert_eq!(restored["installation"], taken["installation"]);
    world.until("the server has loaded it", |_| world.knows("p1") && !world.knows("p3"));
    world.until("the regions serve what the backup says", |_| {
        ["a", "b", "c"].iter().all(|region| world.serves(region) == Some(1))
    });
    world.refuses_to_resume(&taken);
    let next = world.push("p4");
    assert!(next > 3 && next < 10_000, "{next}");
    assert_eq!(world.serves("a"), Some(next));
}

/// The installation that a restore refuses to replace, as it says itself.
fn other_installation(world: &World, backup: &str) -> String {
    let refused = world.offline.run(&["restore", "--from", backup, "--yes"]);
    assert_eq!(refused.status.code(), Some(2), "{}", describe(&refused));
    let said = String::from_utf8(refused.stderr).unwrap();
    let named = said.split("--replace-installation ").nth(1).unwrap_or_else(|| panic!("{said}"));
    named.split(|c: char| !c.is_ascii_hexdigit() && c != '-').next().unwrap().to_owned()
}

#[test]
fn d35_a_backup_of_one_database_is_restored_into_the_other() {
    let Some(mut shared) = World::on_postgres() else { return };
    let mut file = World::start(None);
    file.push("of-file");
    shared.push("of-postgres");
    let (from_file, from_shared) =
        (file.file("f").to_str().unwrap().to_owned(), file.file("s").to_str().unwrap().to_owned());
    let taken = file.offline.json(&["backup", "--to", &from_file, "--with-artifacts"]);
    shared.offline.json(&["backup", "--to", &from_shared, "--with-artifacts"]);
    file.server.kill();
    shared.server.kill();
    // What is there is another installation's, so it has to be named.
    let of_shared = other_installation(&shared, &from_file);
    let replace = ["restore", "--from", &from_file, "--yes", "--replace-installation"];
    shared.offline.refused(&[&replace[..], &[taken["installation"].as_str().unwrap()]].concat(), 2, &[&of_shared]);
    let restored = shared.offline.json(&[&replace[..], &[&of_shared]].concat());
    assert_eq!(restored["installation"], taken["installation"]);
    assert_eq!(restored["replaced"]["same_installation"], Value::from(false), "{restored:#}");
    let of_file = other_installation(&file, &from_shared);
    file.offline.json(&["restore", "--from", &from_shared, "--yes", "--replace-installation", &of_file]);
    file.server.restart();
    shared.server.restart();
    assert!(shared.knows("of-file") && !shared.knows("of-postgres"));
    assert!(file.knows("of-postgres") && !file.knows("of-file"));
    assert!(shared.push("next") > 1_000_000 && file.push("next") > 1_000_000);
}
