//! What lies in `deploy/` is what this release takes: every command line there is parsed, every configuration read, the
//! compose file and the units are checked as far as the programs for it are on this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::Parser;
use serde_json::Value;
use tidegate_server::ConfigFile;

use super::Arguments;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(deploy().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[allow(clippy::print_stderr)]
fn skip(test: &str, why: &str) {
    eprintln!("skipped: {test}: {why}");
    if let Some(path) = std::env::var_os("TIDEGATE_SKIP_LOG") {
        use std::io::Write;
        let mut log = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(log, "{test}\t{why}").unwrap();
    }
}

fn check_lines(lines: &[Vec<String>]) {
    assert!(!lines.is_empty());
    for line in lines {
        Arguments::try_parse_from(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn compose() -> Value {
    serde_saphyr::from_str(&read("compose.yaml")).unwrap()
}

/// The services, with what they take from others by `<<` put in.
fn services() -> Vec<(String, Value)> {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    services.iter().map(|(name, service)| (name.clone(), service.clone())).collect()
}

#[test]
fn every_command_line_of_the_compose_file_is_one_of_this_program() {
    let lines: Vec<Vec<String>> = services()
        .iter()
        .filter(|(_, service)| service["image"] == "tidegate")
        .map(|(_, service)| {
            let command = service["command"].as_array().unwrap();
            let words = command.iter().map(|word| word.as_str().unwrap().to_owned());
            std::iter::once("tidegate".to_owned()).chain(words).collect()
        })
        .collect();
    let count = |command: &str| lines.iter().filter(|line| line[1] == command).count();
    assert_eq!((count("server"), count("agent")), (2, 3));
    check_lines(&lines);
}

#[test]
fn every_command_line_of_units_image_and_page_is_one_of_this_program() {
    let mut lines = Vec::new();
    for unit in ["tidegate.service", "tidegate-agent@.service", "tidegate-node@.service"] {
        let text = read(unit);
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/")).unwrap();
        lines.push(words(
            &line
                .replace("%i", "eu")
                .replace("${TIDEGATE_CONTROL_PLANE}", "https://server:7600")
                .replace("${TIDEGATE_AGENT}", "https://agent:7610"),
        ));
    }
    let image = read("Dockerfile");
    let listed = |prefix: &str| -> Vec<Vec<String>> {
        let found = image.lines().filter_map(|line| line.trim().strip_prefix(prefix));
        found.map(|line| serde_json::from_str(line.trim()).unwrap()).collect()
    };
    let (program, commands) = (listed("ENTRYPOINT ").remove(0), listed("CMD "));
    let [check, run] = commands.as_slice() else { panic!("{commands:?}") };
    assert!(image.contains("ENV TIDEGATE_DATA=/var/lib/tidegate\n"));
    lines.push(check.clone());
    lines.push([program, run.clone(), words("--data /var/lib/tidegate")].concat());
    for line in read("README.md").lines().map(str::trim).filter(|line| line.starts_with("tidegate ")) {
        lines.push(words(line.split('>').next().unwrap_or_default()));
    }
    check_lines(&lines);
}

#[test]
fn the_compose_file_names_nothing_that_is_not_there() {
    let compose = compose();
    let names = |section: &str| -> BTreeSet<String> { compose[section].as_object().unwrap().keys().cloned().collect() };
    let (services, volumes, secrets) = (names("services"), names("volumes"), names("secrets"));
    for (name, service) in self::services() {
        assert!(service["image"].is_string() && service["restart"] == "unless-stopped", "{name}");
        for on in service["depends_on"].as_object().into_iter().flatten() {
            assert!(services.contains(on.0), "{name}: {}", on.0);
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            let is_there =
                if source.starts_with('.') { deploy().join(source).exists() } else { volumes.contains(source) };
            assert!(is_there, "{name}: {source}");
        }
        for secret in service["secrets"].as_array().into_iter().flatten() {
            assert!(secrets.contains(secret.as_str().unwrap()), "{name}: {secret}");
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port} is open to everybody");
        }
    }
}

#[test]
fn configurations_that_lie_there_are_read_by_this_release() {
    for name in ["compose/server-1.toml", "compose/server-2.toml"] {
        let file = ConfigFile::parse(&read(name), name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(name.contains(&file.server.name.unwrap()));
    }
}

#[test]
fn compose_itself_accepts_the_file() {
    let test = "compose_itself_accepts_the_file";
    let version = Process::new("docker").args(["compose", "version"]).output();
    if !version.is_ok_and(|output| output.status.success()) {
        return skip(test, "there is no `docker compose` on this machine");
    }
    let file = deploy().join("compose.yaml");
    let checked = Process::new("docker")
        .args(["compose", "--file", file.to_str().unwrap(), "config", "--quiet"])
        .env("POSTGRES_PASSWORD", "x")
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn systemd_itself_accepts_the_units() {
    let test = "systemd_itself_accepts_the_units";
    if !Process::new("systemd-analyze").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip(test, "there is no `systemd-analyze` on this machine");
    }
    // The program and its user are not installed here: any program and user that are do.
    let folder = tempfile::tempdir().unwrap();
    for (unit, installed) in [
        ("tidegate.service", "tidegate.service"),
        ("tidegate-agent@.service", "tidegate-agent@eu.service"),
        ("tidegate-node@.service", "tidegate-node@eu-3.service"),
    ] {
        let text =
            read(unit).replace("/usr/bin/tidegate", "/bin/true").replace("=tidegate\nGroup=tidegate\n", "=root\n");
        let path = folder.path().join(installed);
        std::fs::write(&path, text).unwrap();
        let checked = Process::new("systemd-analyze").arg("verify").arg("--man=no").arg(&path).output().unwrap();
        let told = String::from_utf8_lossy(&checked.stderr).into_owned();
        // It also looks at units of the machine that ours come after; what it says of those is not about ours.
        let ours: Vec<&str> = told.lines().filter(|line| line.contains("tidegate")).collect();
        assert!(ours.is_empty(), "{unit}: {told}");
    }
}

#[test]
fn units_give_the_program_no_more_than_it_needs() {
    let of = |unit: &str| -> BTreeSet<String> {
        let text = read(unit);
        text.lines().filter(|line| !line.starts_with('#') && line.contains('=')).map(str::to_owned).collect()
    };
    for unit in ["tidegate.service", "tidegate-agent@.service", "tidegate-node@.service"] {
        let lines = of(unit);
        for needed in ["User=tidegate", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="] {
            assert!(lines.contains(needed), "{unit}: {needed}");
        }
    }
    let image = read("Dockerfile");
    assert!(image.lines().any(|line| line.starts_with("USER 10001")));
    assert!(image.lines().any(|line| line.starts_with("HEALTHCHECK")));
}
