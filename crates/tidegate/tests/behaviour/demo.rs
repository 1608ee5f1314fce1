//! The demo tells its story and says so: in one process, and with every part as a process of its own.

use serde_json::Value;

use crate::process::{describe, tidegate};

#[test]
fn the_demo_ends_as_told_and_prints_its_facts() {
    check_story(&tell(&["demo", "--once"]));
}

#[test]
fn the_demo_in_many_processes_tells_the_same_story() {
    check_story(&tell(&["demo", "--once", "--processes"]));
}

#[test]
fn the_demo_tells_the_same_story_on_postgresql_in_one_process_and_in_many() {
    if tidegate_state::testing::postgres::skipped().is_some() {
        return;
    }
    let database = tidegate_state::testing::postgres::shared().unwrap().url();
    check_story(&tell(&["demo", "--once", "--database", &database]));
    check_story(&tell(&["demo", "--once", "--processes", "--database", &database]));
}

#[test]
fn a_second_demo_in_the_same_folder_is_told_which_folder_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("demo");
    std::fs::create_dir_all(data.join("server")).unwrap();
    let output = tidegate().args(["demo", "--once", "--data"]).arg(&data).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("earlier demo") && said.contains(&format!("rm -r {}", data.display())), "{said}");
    assert!(!data.join("inputs").exists(), "nothing was written");
}

/// The facts of a demo that has to end well.
fn tell(arguments: &[&str]) -> Value {
    let output = tidegate().args(arguments).args(["--output", "json"]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", describe(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// That the facts are those of the story, wherever it was told.
pub(crate) fn check_story(facts: &Value) {
    let pushes = facts["pushes"].as_array().unwrap();
    let ends: Vec<(&str, u64)> = pushes
        .iter()
        .map(|push| (push["status"].as_str().unwrap(), push["regions"]["a"]["version"].as_u64().unwrap()))
        .collect();
    assert_eq!(ends, [("COMPLETED", 1), ("ABORTED", 1), ("ROLLED_BACK", 1), ("COMPLETED", 4)], "{facts:#}");
    for push in pushes {
        assert_eq!(push["reads"]["failed"], 0, "{push:#}");
        assert!(push["calls"].as_array().is_some_and(|calls| !calls.is_empty()), "{push:#}");
    }
    let reason = pushes[1]["reason"].as_str().unwrap();
    for part in ["data-quality", "tz", "limit"] {
        assert!(reason.contains(part), "{part} in {reason}");
    }
    assert!(pushes[2]["reason"].as_str().unwrap().contains("health-check"), "{facts:#}");
    // The first region served the third version for a while, and no other region ever did.
    assert!(pushes[2]["regions"]["a"]["times"]["ONLINE"].is_u64(), "{facts:#}");
    assert!(pushes[2]["regions"]["b"]["times"]["ONLINE"].is_null(), "{facts:#}");
    assert!(
        pushes[1]["regions"].as_object().unwrap().values().all(|region| region["times"]["STARTED"].is_null()),
        "{facts:#}"
    );
}
