//! `docs/slot-protocol.md` says which code each step stands for, and which tests go with which rule: what it names is
//! there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The sections that name code. A name in backquotes that ends in `.rs` is a file, and the names after it are its
/// functions.
const SECTIONS: [&str; 2] = ["Which code each step stands for", "What the model asks for that is easily forgotten"];

fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a section of the document.
fn section(heading: &str) -> String {
    let file = crate_folder().join("../../docs/slot-protocol.md");
    let document = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let (_, rest) = document
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("{} has no section \"{heading}\"", file.display()));
    rest.split("\n## ").next().unwrap_or_default().to_owned()
}

/// What stands in backquotes, in its order.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn has_function(source: &str, name: &str) -> bool {
    [format!("fn {name}("), format!("fn {name}<")].iter().any(|start| source.contains(start.as_str()))
}

/// A case of the map of cases, and what is tested of it.
fn is_test(name: &str) -> bool {
    name.starts_with('k') && name.contains('_') && name[1..].starts_with(|first: char| first.is_ascii_digit())
}

/// All source of this crate, its tests too.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn k44_the_map_of_the_protocol_names_functions_that_are_there() {
    let mut wrong = Vec::new();
    let mut named = 0;
    for row in SECTIONS.map(section).iter().flat_map(|section| section.lines()) {
        let mut file = None;
        for name in quoted(row) {
            if name.ends_with(".rs") {
                let path = crate_folder().join("src").join(name);
                let source = fs::read_to_string(&path).unwrap_or_else(|error| {
                    wrong.push(format!("{name}: {error}"));
                    String::new()
                });
                file = Some((name, source));
            } else if let Some((file, source)) = &file
                && !is_test(name)
            {
                named += 1;
                if !has_function(source, name) {
                    wrong.push(format!("{file} has no function {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "docs/slot-protocol.md names what is not there: {wrong:#?}");
    assert!(named > 50, "only {named} functions are named: is the map still read as it is written?");
}

#[test]
fn k44_the_map_of_the_protocol_has_every_step_of_the_model() {
    let protocol = include_str!("protocol.rs");
    let (_, actions) = protocol.split_once("enum Action {\n").expect("the steps are there");
    let (actions, _) = actions.split_once("\n}").expect("they end");
    let steps: BTreeSet<&str> = actions
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
        .filter_map(|line| line.split(['(', ',', ' ']).next())
        .collect();
    let map = section(SECTIONS[0]);
    let rows = map.lines().filter_map(|line| line.strip_prefix("| `"));
    let mapped: BTreeSet<&str> = rows
        .flat_map(|row| row.split('|').next().unwrap_or_default().split(','))
        .map(|name| name.trim().trim_matches('`'))
        .collect();
    assert_eq!(mapped, steps, "steps in docs/slot-protocol.md, and those of the model");
}

#[test]
fn k44_the_map_of_the_protocol_names_tests_and_variants_that_are_there() {
    let mut files = Vec::new();
    sources(&crate_folder().join("src"), &mut files);
    sources(&crate_folder().join("tests"), &mut files);
    let sources: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let rules = section(SECTIONS[1]);
    let tests: Vec<&str> = quoted(&rules).filter(|name| is_test(name)).collect();
    assert!(tests.len() > 5, "only {tests:?} are named");
    for test in tests {
        assert!(sources.iter().any(|source| has_function(source, test)), "there is no test {test}");
    }
    let variants: Vec<&str> = quoted(&rules).filter(|name| name.starts_with(char::is_uppercase)).collect();
    assert!(variants.len() > 2, "only {variants:?} are named");
    for variant in variants {
        assert!(include_str!("variants.rs").contains(&format!("\n    {variant},\n")), "there is no variant {variant}");
    }
}
