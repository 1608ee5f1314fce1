//! D16: comparing files and versions without a server.

use std::collections::BTreeMap;

use arrow_array::{Int64Array, StringArray};
use proptest::prelude::*;
use tidegate_dataset::diff::{DiffError, DiffInput, DiffOptions, DiffReport, diff};
use tidegate_dataset::{Cancel, quiet};

use crate::support::{World, array, build, files_below};

fn compare(world: &World, keys: &[&str], a: DiffInput, b: DiffInput) -> Result<DiffReport, DiffError> {
    let options = DiffOptions::new(keys.iter().copied(), world.path("diff"));
    let report = diff(&a, &b, &options, &quiet, &Cancel::new());
    assert_eq!(files_below(&world.path("diff")).len(), 0);
    report
}

fn files(path: std::path::PathBuf) -> DiffInput {
    DiffInput::Files(vec![path])
}

const A: &str = "k,n,t,gone\na,1,x,1\nb,2,,1\nc,3,z,1\nd,4,w,1\n";
const B: &str = "k,n,t,new\nb,2,,\na,1,y,9\nc,3,,9\ne,5,w,9\n";

fn check(report: &DiffReport) {
    assert_eq!((report.added, report.removed, report.changed, report.unchanged), (1, 1, 2, 1));
    assert_eq!(report.added_keys, ["e"]);
    assert_eq!(report.removed_keys, ["d"]);
    let names: Vec<_> = report.fields.iter().map(|field| field.name.as_str()).collect();
    assert_eq!(names, ["k", "n", "t", "gone", "new"]);
    let t = &report.fields[2];
    assert_eq!(t.changed, 2);
    assert_eq!((t.a.as_ref().unwrap().nulls, t.b.as_ref().unwrap().nulls), (1, 2));
    assert!(report.fields[3].b.is_none() && report.fields[4].a.is_none());
    assert!(!report.is_same());
}

#[test]
fn d16_files_and_the_versions_made_from_them_differ_in_the_same_way() {
    let world = World::new();
    let (a, b) = (world.file("a.csv", A), world.file("b.csv", B));
    let of_files = compare(&world, &["k"], files(a.clone()), files(b.clone())).unwrap();
    check(&of_files);

    let other = World::new();
    let mut options = other.options(&["k"]);
    options.partitions = 3;
    let version_a = build(options, std::slice::from_ref(&a)).unwrap();
    let version_b = world.build(&["k"], &[b]);
    let mut of_versions =
        compare(&world, &[], DiffInput::Artifact(version_a.folder.clone()), DiffInput::Artifact(version_b.folder))
            .unwrap();
    check(&of_versions);
    // The same in everything but the names of the sides: `data-quality` sees these figures too.
    of_versions.a.name.clone_from(&of_files.a.name);
    of_versions.b.name.clone_from(&of_files.b.name);
    let sorted = |mut report: DiffReport| {
        report.changed_records.sort_by(|a, b| a.key.cmp(&b.key));
        report
    };
    assert_eq!(sorted(of_versions), sorted(of_files));

    let with_file = compare(&world, &["k"], DiffInput::Artifact(version_a.folder), files(a)).unwrap();
    assert!(with_file.is_same(), "{with_file}");
}

#[test]
fn d16_the_text_says_what_changed() {
    let world = World::new();
    let (a, b) = (world.file("a.csv", A), world.file("b.csv", B));
    let report = compare(&world, &["k"], files(a), files(b)).unwrap();
    let text = report.to_string();
    for expected in [
        "a.csv: 4 records",
        "added                   1    25.0 % of A",
        "t      string, changed in 2 records",
        "nulls 1 (25.0 %) → 2 (50.0 %)",
        "gone   long → absent",
        "new    absent → long",
        "removed, for example: d",
        "  a  t: x → y",
        "  c  t: z → null",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<DiffReport>(&json).unwrap(), report);
}

#[test]
fn d16_text_is_read_as_the_type_that_suits_both_sides() {
    let world = World::new();
    let a = world.file("a.csv", "k,n,m\n1,1,7\n2,2,8\n");
    let b = world.file("b.csv", "k,n,m\n1,1,7\n2,2.5,x\n");
    let report = compare(&world, &["k"], files(a.clone()), files(b)).unwrap();
    assert_eq!((report.changed, report.unchanged), (1, 1));

    let typed = world.parquet(
        "b.parquet",
        vec![
            ("k", array(Int64Array::from(vec![1, 2]))),
            ("n", array(StringArray::from(vec!["1", "2"]))),
            ("m", array(Int64Array::from(vec![7, 8]))),
        ],
    );
    assert!(compare(&world, &["k"], files(a), files(typed.clone())).unwrap().is_same());
    let text = world.file("a.csv", "k,n,m\n1,1,7\n2,2,x\n");
    let report = compare(&world, &["k"], files(text), files(typed)).unwrap();
    assert_eq!(report.fields[2].type_a.unwrap().to_string(), "string");
    assert_eq!(report.changed, 2, "{report}");
}

#[test]
fn d16_what_can_not_be_compared_is_refused_with_both_sides() {
    let world = World::new();
    let a = world.file("a.csv", "k,v\na,1\n");
    let error = compare(&world, &[], files(a.clone()), files(a.clone())).unwrap_err();
    assert!(matches!(error, DiffError::NoKey));
    let b = world.file("b.csv", "id,v\na,1\n");
    let error = compare(&world, &["k"], files(a.clone()), files(b)).unwrap_err().to_string();
    assert!(error.contains("b.csv") && error.contains("the columns are id, v"), "{error}");
    let typed = world.parquet("b.parquet", vec![("k", array(Int64Array::from(vec![1])))]);
    let other = world.parquet("c.parquet", vec![("k", array(StringArray::from(vec!["1"])))]);
    let error = compare(&world, &["k"], files(typed), files(other)).unwrap_err().to_string();
    assert!(error.contains("k (long) against k (string)"), "{error}");
    let twice = world.file("d.csv", "k,v\na,1\na,2\n");
    let error = compare(&world, &["k"], files(a), files(twice)).unwrap_err().to_string();
    assert!(error.contains("`a`"), "{error}");
    let absent = DiffInput::Artifact(world.path("nowhere"));
    let error = compare(&world, &["k"], absent.clone(), absent).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn d16_a_diff_agrees_with_a_naive_one(
        a in proptest::collection::btree_map("[a-c]{1,3}", 0u8..3, 0..60),
        b in proptest::collection::btree_map("[a-c]{1,3}", 0u8..3, 0..60),
    ) {
        let world = World::new();
        let write = |name: &str, records: &BTreeMap<String, u8>| {
            let rows: String = records.iter().map(|(key, value)| format!("{key},{value}\n")).collect();
            files(world.file(name, format!("k,v\n{rows}")))
        };
        let report = compare(&world, &["k"], write("a.csv", &a), write("b.csv", &b)).unwrap();
        let added = b.keys().filter(|key| !a.contains_key(*key)).count();
        let removed = a.keys().filter(|key| !b.contains_key(*key)).count();
        let changed = a.iter().filter(|(key, value)| b.get(*key).is_some_and(|other| other != *value)).count();
        prop_assert_eq!(
            (report.added, report.removed, report.changed),
            (added as u64, removed as u64, changed as u64)
        );
        prop_assert_eq!(report.unchanged as usize, a.len() - removed - changed);
        prop_assert_eq!((report.a.records, report.b.records), (a.len() as u64, b.len() as u64));
    }
}
