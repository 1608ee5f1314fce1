//! D1–D5, D9, D11–D14: from input files to an artifact.

use arrow_array::types::{Float32Type, Int64Type};
use arrow_array::{
    BinaryArray, BooleanArray, Date32Array, FixedSizeListArray, Float32Array, Float64Array, Int32Array, Int64Array,
    ListArray, StringArray, StructArray, TimestampMicrosecondArray,
};
use sha2::Digest;
use tidegate_api::manifest::{Field, FieldType, Manifest, ScalarType, Schema};
use tidegate_dataset::build::{BuildError, BuiltArtifact, MANIFEST_FILE};
use tidegate_dataset::input::InputError;
use tidegate_dataset::{Cancel, infer_schema};

use crate::support::{World, array, build, files_below, part_rows, rows};

#[test]
fn d1_an_empty_input_is_refused_unless_allowed() {
    let world = World::new();
    let none: [Option<&str>; 0] = [];
    let inputs = [
        (world.file("zero.csv", ""), true),
        (world.file("header.csv", "k,a\n"), false),
        (
            world.parquet(
                "none.parquet",
                vec![("k", array(StringArray::from(none.to_vec()))), ("a", array(StringArray::from(none.to_vec())))],
            ),
            false,
        ),
    ];
    let schema =
        Schema { fields: vec![Field::required("k", FieldType::STRING), Field::nullable("a", FieldType::STRING)] };
    for (input, needs_schema) in inputs {
        let paths = [input];
        let error = world.refuse(&["k"], &paths);
        assert!(matches!(error, BuildError::Empty { files: 1 }), "{error}");

        let mut options = world.options(&["k"]);
        options.allow_empty = true;
        options.schema = needs_schema.then(|| schema.clone());
        let artifact = build(options, &paths).unwrap();
        assert_eq!(artifact.manifest.record_count, 0);
        assert_eq!(artifact.manifest.schema, schema);
        assert_eq!(artifact.manifest.statistics[1].null_ratio(), None);
        assert_eq!(rows(&artifact).len(), 0);
    }
}

#[test]
fn d2_equal_rows_are_kept_once_and_counted() {
    let world = World::new();
    let a = world.file("a.csv", "k,v\nx,1\ny,2\nx,1\n");
    let b = world.file("b.csv", "v,k\n1,x\n3,z\n");
    let artifact = world.build(&["k"], &[a, b]);
    assert_eq!(artifact.manifest.record_count, 3);
    assert_eq!(artifact.manifest.duplicate_count, 2);
    let mut found = rows(&artifact);
    found.sort();
    assert_eq!(found, [["\"x\"", "1"], ["\"y\"", "2"], ["\"z\"", "3"]]);
}

#[test]
fn d2_a_key_with_two_values_is_refused_naming_both_places() {
    let world = World::new();
    let filler: String = (0..50_000).map(|n| format!("f{n},{n}\n")).collect();
    let a = world.file("a.csv", format!("k,v\nx,1\n{filler}same,1\n"));
    let b = world.file("b.csv", format!("k,v\nsame,1\n{}x,2\nx,3\nf7,8\n", filler));
    let paths = [a, b];
    for memory in [6 << 20, 64 << 20] {
        let mut options = world.options(&["k"]);
        options.memory_bytes = memory;
        let error = build(options, &paths).unwrap_err();
        let BuildError::DuplicateKeys { count, conflicts } = &error else {
            panic!("{error}");
        };
        assert_eq!(*count, 2);
        assert_eq!(conflicts[0].key, "f7");
        assert_eq!(conflicts[1].key, "x");
        let text = error.to_string();
        assert!(text.contains("`x`"), "{text}");
        assert!(text.contains("a.csv, row 1;"), "{text}");
        assert!(text.contains("b.csv, row 50002"), "{text}");
        assert!(!text.contains("same"), "{text}");
        assert!(!world.path("work/artifact").exists());
        assert!(!world.path("work/building").exists());
    }
}

#[test]
fn d2_the_number_of_keys_named_is_bounded() {
    let world = World::new();
    let rows: String = (0..1000).map(|n| format!("{n},1\n{n},2\n")).collect();
    let paths = [world.file("a.csv", format!("k,v\n{rows}"))];
    let mut texts = Vec::new();
    for threads in [1, 2] {
        let mut options = world.options(&["k"]);
        options.threads = threads;
        let error = build(options, &paths).unwrap_err();
        let BuildError::DuplicateKeys { count, conflicts } = &error else {
            panic!("{error}");
        };
        assert_eq!((*count, conflicts.len()), (1000, 10));
        assert!(error.to_string().contains("and 990 more"));
        texts.push(error.to_string());
    }
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn d3_null_keys_are_refused_naming_file_and_row() {
    let world = World::new();
    for (content, keys, row) in [
        ("k,v\na,1\n,2\n", vec!["k"], "row 2 (line 3), column `k`"),
        ("k,v\na,1\n\"\",2\n", vec!["k"], "row 2 (line 3), column `k`"),
        ("k,l,v\na,,1\n", vec!["k", "l"], "row 1 (line 2), column `l`"),
    ] {
        let error = world.refuse(&keys, &[world.file("in.csv", content)]);
        assert!(matches!(error, BuildError::Input(InputError::Null { key: true, .. })));
        assert!(error.to_string().contains(row), "{error}");
        assert!(error.to_string().contains("in.csv"), "{error}");
    }
    let input = world.parquet(
        "in.parquet",
        vec![("k", array(StringArray::from(vec![Some("a"), None]))), ("v", array(Int64Array::from(vec![1, 2])))],
    );
    let error = world.refuse(&["k"], &[input]).to_string();
    assert!(error.contains("in.parquet, row 2, column `k`"), "{error}");
}

#[test]
fn d3_a_missing_key_column_is_refused_naming_the_columns_there_are() {
    let world = World::new();
    let error = world.refuse(&["id"], &[world.file("in.csv", "k,v\na,1\n")]).to_string();
    assert!(error.contains("no key column `id`; the columns are k, v"), "{error}");
}

#[test]
fn d3_an_empty_text_is_a_key_in_parquet() {
    let world = World::new();
    let input = world.parquet(
        "in.parquet",
        vec![("k", array(StringArray::from(vec!["", "a"]))), ("v", array(Int64Array::from(vec![1, 2])))],
    );
    let artifact = world.build(&["k"], &[input]);
    assert_eq!(artifact.manifest.record_count, 2);
}

#[test]
fn d3_a_key_of_another_type_is_refused_naming_both() {
    let world = World::new();
    let input = world.parquet(
        "in.parquet",
        vec![("k", array(Int64Array::from(vec![1, 2]))), ("v", array(Int64Array::from(vec![1, 2])))],
    );
    let mut options = world.options(&["k"]);
    options.schema =
        Some(Schema { fields: vec![Field::required("k", FieldType::STRING), Field::nullable("v", FieldType::LONG)] });
    let error = build(options, &[input]).unwrap_err().to_string();
    assert!(error.contains("column `k`: of type long, where the schema has string"), "{error}");
}

#[test]
fn d4_a_value_at_the_limit_is_built_and_one_byte_over_is_refused() {
    let world = World::new();
    let options = |limit| {
        let mut options = world.options(&["k"]);
        options.value_bytes_max = Some(limit);
        options
    };
    // Ten bytes of text and a number of eight.
    let paths = [world.file("in.csv", "k,a,n\nfirst,short,1\nlong,0123456789,42\n")];
    build(options(18), &paths).unwrap();
    let error = build(options(17), &paths).unwrap_err().to_string();
    assert!(error.contains("row 2 (line 3)"), "{error}");
    assert!(error.contains("key `long` takes 18 bytes, the store's limit is 17"), "{error}");
}

#[test]
fn d9_what_an_interrupted_build_left_is_removed_and_the_result_is_the_same() {
    let world = World::new();
    let rows: String = (0..20_000).map(|n| format!("{n},value {n}\n")).collect();
    let paths = [world.file("in.csv", format!("k,v\n{rows}"))];
    let expected = world.build(&["k"], &paths);

    let other = World::new();
    other.file("work/building/part-00000-of-00004.parquet", "half");
    other.file("work/building/manifest.json", "{}");
    // Cancelled at each report of progress in turn, then left alone.
    let reports = std::sync::atomic::AtomicUsize::new(0);
    let mut stop_at = 1;
    let artifact = loop {
        let cancel = Cancel::new();
        reports.store(0, std::sync::atomic::Ordering::SeqCst);
        let stop = |_| {
            if reports.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1 == stop_at {
                cancel.cancel();
            }
        };
        let builder = tidegate_dataset::build::Builder::new(other.options(&["k"]));
        match builder.build(&paths, &stop, &cancel) {
            Ok(artifact) => break artifact,
            Err(BuildError::Cancelled) => {
                assert!(!other.path("work/artifact").exists());
                assert!(!other.path("work/building").exists());
                stop_at += 7;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert!(stop_at > 20, "only {stop_at} reports");
    assert_eq!(artifact.manifest, expected.manifest);
    assert_eq!(artifact.manifest_digest, expected.manifest_digest);
    let names: Vec<_> = files_below(&other.path("work"))
        .iter()
        .map(|path| path.strip_prefix(other.path("work")).unwrap().display().to_string())
        .filter(|name| name != "lock")
        .collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("artifact/")), "{names:?}");
}

#[test]
fn d9_one_build_at_a_time_uses_a_work_folder() {
    let world = World::new();
    let input = world.file("in.csv", "k,v\na,1\n");
    let inner = std::sync::Mutex::new(None);
    let nested = |_| {
        let mut inner = inner.lock().unwrap();
        if inner.is_none() {
            *inner = Some(world.refuse(&["k"], std::slice::from_ref(&input)));
        }
    };
    tidegate_dataset::build::Builder::new(world.options(&["k"]))
        .build(std::slice::from_ref(&input), &nested, &Cancel::new())
        .unwrap();
    let error = inner.into_inner().unwrap().unwrap();
    assert!(matches!(error, BuildError::Busy { .. }), "{error}");
}

fn bytes_of(artifact: &BuiltArtifact) -> Vec<Vec<u8>> {
    artifact.manifest.parts.iter().map(|part| std::fs::read(artifact.folder.join(&part.name)).unwrap()).collect()
}

#[test]
fn d11_the_same_input_gives_the_same_bytes_however_it_is_built() {
    let row = |n: u64| format!("key-{:06},{},{}\n", n * 7919 % 60_000, n * 7919 % 60_000 * 3, "text ".repeat(10));
    let part = |range: std::ops::Range<u64>| -> String {
        std::iter::once(String::from("k,n,t\n")).chain(range.map(row)).collect()
    };
    let world = World::new();
    let one = world.file("one.csv", part(0..60_000));
    let expected = world.build(&["k"], &[one]);
    let expected_bytes = bytes_of(&expected);

    let other = World::new();
    let parts = [
        other.file("in/z.csv", part(0..20_000)),
        other.file("in/b.csv", part(20_000..45_000)),
        other.file("in/a.csv", part(45_000..60_000)),
    ];
    for (memory, threads) in [(6 << 20, 1), (6 << 20, 4), (128 << 20, 1), (128 << 20, 3)] {
        let mut options = other.options(&["k"]);
        options.memory_bytes = memory;
        options.threads = threads;
        let artifact = build(options, &parts).unwrap();
        assert!(bytes_of(&artifact) == expected_bytes, "{memory} {threads}");
        assert_eq!(artifact.manifest.artifact_id, expected.manifest.artifact_id);
        // All of it but the digest of the input's files, which were cut differently.
        let mut manifest = artifact.manifest.clone();
        manifest.input_digest = expected.manifest.input_digest.clone();
        assert_eq!(manifest, expected.manifest);
    }
    let mut options = other.options(&["k"]);
    options.partitions = 5;
    let artifact = build(options, &parts).unwrap();
    assert_ne!(artifact.manifest.artifact_id, expected.manifest.artifact_id);
    assert_eq!(artifact.manifest.content_digest, expected.manifest.content_digest);
    assert_eq!(artifact.manifest.statistics, expected.manifest.statistics);
    assert_eq!(artifact.manifest.sample, expected.manifest.sample);
}

#[test]
fn d11_the_input_digest_knows_neither_names_nor_order_but_every_byte() {
    let world = World::new();
    let keys = [String::from("k")];
    let digest = |a: &str, b: &str, names: [&str; 2]| {
        let paths = [world.file(names[0], a), world.file(names[1], b)];
        infer_schema(&paths, &keys).unwrap().input_digest
    };
    let first = digest("k\na\n", "k\nb\n", ["1.csv", "2.csv"]);
    assert_eq!(first, digest("k\nb\n", "k\na\n", ["1.csv", "3.csv"]));
    assert_ne!(first, digest("k\nb\n", "k\nc\n", ["1.csv", "2.csv"]));
}

#[test]
fn d12_parts_are_sorted_zstd_parquet_and_are_what_the_manifest_says() {
    let world = World::new();
    let rows: String =
        (0..30_000).map(|n| format!("{},{},{}\n", (n * 7919) % 30_000, if n % 3 == 0 { "" } else { "x" }, n)).collect();
    let artifact = world.build(&["k"], &[world.file("in.csv", format!("k,a,n\n{rows}"))]);
    let manifest = &artifact.manifest;
    assert_eq!(manifest.parts.len(), 4);
    let mut all = Vec::new();
    let mut nulls = 0;
    for part in &manifest.parts {
        let path = artifact.folder.join(&part.name);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, part.bytes);
        assert_eq!(hex::encode(sha2::Sha256::digest(&bytes)), part.sha256);
        let rows = part_rows(&path);
        assert_eq!(rows.len() as u64, part.rows);
        let keys: Vec<i64> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
        assert!(keys.is_sorted());
        nulls += rows.iter().filter(|row| row[1] == "null").count();
        all.extend(keys);
        use parquet::file::reader::{FileReader, SerializedFileReader};
        let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
        for group in reader.metadata().row_groups() {
            for column in group.columns() {
                let compression = column.compression().to_string();
                assert!(compression.starts_with("ZSTD"), "{compression}");
            }
        }
    }
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..30_000));
    let a = manifest.field_statistics("a").unwrap();
    assert_eq!((a.nulls, a.count, a.distinct), (nulls as u64, 20_000, 1));
    assert_eq!(nulls, 10_000);
    let n = manifest.field_statistics("n").unwrap();
    assert_eq!((n.min.clone(), n.max.clone()), (Some(0.into()), Some(29_999.into())));
    assert_eq!(n.mean, Some(14_999.5));
    assert_eq!(manifest.bytes, manifest.parts.iter().map(|part| part.bytes).sum::<u64>());
    assert_eq!(manifest.data_bytes, 30_000 * 16 + 20_000);
    // And the manifest's file is the manifest.
    let stored = std::fs::read(artifact.folder.join(MANIFEST_FILE)).unwrap();
    assert_eq!(serde_json::from_slice::<Manifest>(&stored).unwrap(), *manifest);
    assert_eq!(BuiltArtifact::open(&artifact.folder).unwrap().manifest_digest, artifact.manifest_digest);
}

#[test]
fn d12_every_type_comes_through() {
    let world = World::new();
    let floats = vec![Some(vec![Some(1.5f32), None, Some(f32::NAN)]), None, Some(vec![])];
    let fixed = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
        [Some([Some(1.0), Some(2.0)]), None, Some([Some(3.0), Some(4.0)])],
        2,
    );
    let longs = [Some(vec![Some(1i64)]), Some(vec![None]), None];
    let columns = vec![
        ("k", array(Int32Array::from(vec![3, -1, 2]))),
        ("boolean", array(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("long", array(Int64Array::from(vec![Some(i64::MIN), None, Some(0)]))),
        ("float", array(Float32Array::from(vec![Some(0.1), None, Some(-0.0)]))),
        ("double", array(Float64Array::from(vec![Some(0.1), None, Some(1e300)]))),
        ("text", array(StringArray::from(vec![Some("é"), None, Some("")]))),
        ("binary", array(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None, Some(b"")]))),
        ("date", array(Date32Array::from(vec![Some(19_782), None, Some(-1)]))),
        ("time", array(TimestampMicrosecondArray::from(vec![Some(1), None, Some(-1)]).with_timezone("+02:00"))),
        ("vector", array(ListArray::from_iter_primitive::<Float32Type, _, _>(floats))),
        ("fixed", array(fixed)),
        ("longs", array(ListArray::from_iter_primitive::<Int64Type, _, _>(longs))),
    ];
    let artifact = world.build(&["k"], &[world.parquet("in.parquet", columns)]);
    let types: Vec<_> = artifact.manifest.schema.fields.iter().map(|field| field.data_type.to_string()).collect();
    assert_eq!(
        types,
        [
            "int",
            "boolean",
            "long",
            "float",
            "double",
            "string",
            "binary",
            "date",
            "timestamp[us, UTC]",
            "list<float>",
            "list<float>",
            "list<long>",
        ]
    );
    let mut found = rows(&artifact);
    found.sort_by_key(|row| row[0].parse::<i32>().unwrap());
    assert_eq!(
        found[0][1..],
        vec!["null"; 11]
            .into_iter()
            .enumerate()
            .map(|(n, null)| if n == 10 { "[null]" } else { null })
            .collect::<Vec<_>>()
    );
    assert_eq!(found[1][0..3], ["2", "false", "0"]);
    assert_eq!(found[1][4].parse::<f64>().unwrap(), 1e300);
    assert_eq!(found[1][5], "\"\"");
    assert_eq!(found[1][9], "[]");
    assert_eq!(found[1][11], "null");
    assert_eq!(found[2][2], i64::MIN.to_string());
    assert_eq!(found[2][5], "\"é\"");
    assert!(found[2][9].starts_with("[1.5, null, NaN]"), "{}", found[2][9]);
    assert!(found[2][10].starts_with("[1.0, 2.0]"), "{}", found[2][10]);
    let vector = artifact.manifest.field_statistics("vector").unwrap();
    assert_eq!(vector.vectors.as_ref().unwrap().with_nan, 1);
    // The parts are input like any other, and give the same artifact again.
    let again = World::new();
    let rebuilt = again.build(&["k"], &[artifact.folder.join("part-*.parquet")]);
    assert_eq!(rebuilt.manifest.artifact_id, artifact.manifest.artifact_id);
    assert_eq!(rebuilt.manifest.statistics, artifact.manifest.statistics);
}

#[test]
fn d12_a_type_that_no_field_can_have_is_refused_by_name() {
    let world = World::new();
    let inner: (std::sync::Arc<arrow_schema::Field>, _) =
        (arrow_schema::Field::new("x", arrow_schema::DataType::Int64, true).into(), array(Int64Array::from(vec![1])));
    let input = world.parquet(
        "in.parquet",
        vec![("k", array(Int64Array::from(vec![1]))), ("nested", array(StructArray::from(vec![inner])))],
    );
    let error = world.refuse(&["k"], &[input]).to_string();
    assert!(error.contains("column `nested`: type Struct"), "{error}");
}

#[test]
fn d13_types_are_inferred_once_and_then_kept() {
    let world = World::new();
    let first = world.file("first.csv", "code,k,n,empty\n007,a,1,\nA1,b,-2,\n");
    let artifact = world.build(&["k"], &[first]);
    let schema = artifact.manifest.schema.clone();
    assert_eq!(
        schema.fields,
        [
            Field::nullable("code", FieldType::STRING),
            Field::required("k", FieldType::STRING),
            Field::nullable("n", FieldType::LONG),
            Field::nullable("empty", FieldType::STRING),
        ]
    );

    let next = |content: &str| {
        let mut options = world.options(&["k"]);
        options.schema = Some(schema.clone());
        build(options, &[world.file("next.csv", content)])
    };
    let artifact = next("k,code,n,empty\n1,007,5,\n").unwrap();
    assert_eq!(rows(&artifact), [["\"007\"", "\"1\"", "5", "null"]]);
    let rows: String = (1..=6).map(|n| format!("{n},1,5,\n")).collect();
    let error = next(&format!("k,code,n,empty\n{rows}7,1,x,\n")).unwrap_err().to_string();
    assert!(error.contains("next.csv, row 7 (line 8), column `n`: `x` is no long"), "{error}");
    // New and missing columns are for the schema check, and refused if it was left out.
    let error = next("k,n,empty,other\na,1,,\n").unwrap_err().to_string();
    assert!(error.contains("missing code; not expected other"), "{error}");
    let inferred = tidegate_dataset::infer_schema_against(
        &[world.file("next.csv", "other,k,n,code\n1,a,1,9\n")],
        &[String::from("k")],
        Some(&schema),
        &tidegate_dataset::quiet,
        &Cancel::new(),
    )
    .unwrap();
    let differences: Vec<_> =
        tidegate_dataset::schema::differences(&schema, &inferred.schema).iter().map(ToString::to_string).collect();
    assert_eq!(differences, ["field `empty` (string) is gone", "field `other` (long) is new"]);
}

#[test]
fn d5_parquet_columns_have_the_types_that_they_have() {
    let world = World::new();
    let registered = Schema {
        fields: vec![
            Field::required("k", FieldType::STRING),
            Field::nullable("a", FieldType::STRING),
            Field::nullable("v", FieldType::List(ScalarType::Float)),
        ],
    };
    let input = world.parquet(
        "in.parquet",
        vec![("k", array(StringArray::from(vec!["x"]))), ("a", array(Int64Array::from(vec![1])))],
    );
    let inferred = tidegate_dataset::infer_schema_against(
        &[input],
        &[String::from("k")],
        Some(&registered),
        &tidegate_dataset::quiet,
        &Cancel::new(),
    )
    .unwrap();
    let found: Vec<_> = tidegate_dataset::schema::incompatibilities(&registered, &inferred.schema)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(found, ["field `a` was string and is long", "field `v` (list<float>) is gone"]);
}

#[test]
fn d14_two_columns_never_run_together() {
    let world = World::new();
    let input = world.file("in.csv", "k,l,v\na,bc,1\nab,c,2\n");
    let artifact = world.build(&["k", "l"], &[input]);
    assert_eq!(artifact.manifest.record_count, 2);
    assert_eq!(artifact.manifest.duplicate_count, 0);
}

#[test]
fn rows_that_do_not_parse_are_named_by_file_row_and_line() {
    let world = World::new();
    for (content, expected) in [
        ("k,v\r\na,1\r\nb\r\n", "row 2 (line 3): 1 cells where the header has 2"),
        ("k,v\na,1,2\n", "row 1 (line 2): 3 cells where the header has 2"),
        ("k,v\n\"a\nb\",1\nc,\"d\n\n", "row 2 (line 4): a quoted cell is still open"),
        ("k,k\n1,2\n", "two columns are called `k`"),
        ("k,\n1,2\n", "column 2 has no name"),
    ] {
        let error = world.refuse(&["k"], &[world.file("in.csv", content)]).to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("in.csv"), "{error}");
    }
    let error = world.refuse(&["k"], &[world.file("in.csv", b"k,v\na,1\nb,\xff\n")]).to_string();
    assert!(error.contains("row 2 (line 3), column `v`: not UTF-8"), "{error}");
    let long = format!("k,v\na,{}\n", "x".repeat(2 << 20));
    let error = world.refuse(&["k"], &[world.file("in.csv", long)]).to_string();
    assert!(error.contains("row 1 (line 2)"), "{error}");
    assert!(error.contains("limit"), "{error}");
}

#[test]
fn compressed_input_gives_the_same_artifact_and_a_cut_one_is_refused() {
    use std::io::Write;
    let world = World::new();
    let rows: String = (0..5000).map(|n| format!("{n},{n}\n")).collect();
    let content = format!("k,v\n{rows}");
    let plain = world.build(&["k"], &[world.file("in.csv", &content)]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(content.as_bytes(), 1).unwrap();
    for (name, bytes) in [("in.csv.gz", &gzip), ("in.csv.zst", &zstd)] {
        let artifact = world.build(&["k"], &[world.file(name, bytes)]);
        assert_eq!(artifact.manifest.artifact_id, plain.manifest.artifact_id);
        let cut = world.file(name, &bytes[..bytes.len() - 20]);
        let error = world.refuse(&["k"], &[cut]).to_string();
        assert!(error.contains(name) && error.contains("can't be read"), "{error}");
    }
    // Parquet too, which needs random access.
    let part = world.build(&["k"], &[world.file("in.csv", &content)]);
    let bytes = std::fs::read(part.folder.join(&part.manifest.parts[0].name)).unwrap();
    let packed = world.file("part.parquet.zst", zstd::encode_all(bytes.as_slice(), 1).unwrap());
    let artifact = world.build(&["k"], &[packed]);
    assert_eq!(artifact.manifest.record_count, part.manifest.parts[0].rows);
}

#[test]
fn golden_keys_are_reported_whether_they_are_there_or_not() {
    let world = World::new();
    let mut options = world.options(&["k", "n"]);
    options.golden_keys =
        vec![String::from("[\"a\", 1]"), String::from("[\"z\", 1]"), String::from("{\"n\": 2, \"k\": \"b\"}")];
    let input = world.file("in.csv", "k,n,v\na,1,x\nb,2,\n");
    let artifact = build(options.clone(), &[input]).unwrap();
    let golden = &artifact.manifest.golden;
    assert_eq!(golden[0].value, Some(serde_json::json!({"k": "a", "n": 1, "v": "x"})));
    assert!(golden[0].is_present() && !golden[1].is_present() && golden[2].is_present());
    assert_eq!(golden[1].key, "[\"z\", 1]");
    // A new field that is null there leaves the value's digest as it was.
    let input = world.file("in.csv", "k,n,v,w\na,1,x,\nb,2,,5\n");
    let next = build(options.clone(), &[input]).unwrap().manifest.golden;
    assert_eq!(next[0].value_digest, golden[0].value_digest);
    assert_ne!(next[2].value_digest, golden[2].value_digest);

    options.golden_keys = vec![String::from("a")];
    let input = world.file("in.csv", "k,n,v\na,1,x\n");
    let error = build(options, &[input]).unwrap_err().to_string();
    assert!(error.contains("columns k, n"), "{error}");
}

#[test]
fn the_demo_airports_are_built_with_their_statistics() {
    let world = World::new();
    let airports = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/airports.csv.zst");
    let artifact = world.build(&["icao"], &[airports.into()]);
    let manifest = &artifact.manifest;
    assert_eq!(manifest.record_count, 28_298);
    assert_eq!(manifest.field_statistics("tz").unwrap().nulls, 0);
    assert_eq!(manifest.schema.field("elevation").unwrap().data_type, FieldType::DOUBLE);
    assert_eq!(manifest.sample.records.len(), 256);
    assert!(manifest.sample.records.is_sorted_by(|a, b| a.hash < b.hash));
}
