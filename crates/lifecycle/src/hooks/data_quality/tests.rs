use super::*;
use crate::context::{
    FieldStatistics, GoldenValue, RegionPushStatus, RegionStatus, Sample, SampledRecord, VersionStatistics,
};

fn version(records: u64, fields: &[(&str, FieldStatistics)]) -> VersionStatistics {
    let fields = fields.iter().map(|(name, field)| ((*name).to_owned(), field.clone())).collect();
    VersionStatistics { records, bytes: records * 100, fields, ..VersionStatistics::default() }
}

fn nulls(records: u64, nulls: u64) -> FieldStatistics {
    FieldStatistics { count: records - nulls, nulls, distinct: 10, ..FieldStatistics::default() }
}

fn ask(settings: &[(&str, &str)], served: Option<&VersionStatistics>, new: Option<&VersionStatistics>) -> Four {
    let mut context = Context::new(Function::PreStoreVersionCreation, "s");
    context.config = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    context.region = Some("a".into());
    context.statistics = new.cloned();
    let region =
        RegionStatus { status: RegionPushStatus::NotCreated, statistics: served.cloned(), ..RegionStatus::default() };
    context.regions.insert("a".into(), region);
    decide(&context).unwrap()
}

#[track_caller]
fn abort(outcome: Four) -> String {
    match outcome {
        Four::Abort { reason } => reason,
        other => panic!("{other:?} is no abort"),
    }
}

#[test]
fn g15_a_tenth_fewer_records_is_within_the_limit_and_one_record_less_is_not() {
    let limit = [("records_drop_max", "10")];
    let served = version(1_000_000, &[]);
    assert_eq!(ask(&limit, Some(&served), Some(&version(900_000, &[]))), Four::Proceed);
    assert_eq!(
        abort(ask(&limit, Some(&served), Some(&version(899_999, &[])))),
        "899,999 records, 10.0001 % fewer than the 1,000,000 served (limit 10 % fewer)"
    );
    assert_eq!(ask(&limit, Some(&served), Some(&version(2_000_000, &[]))), Four::Proceed);
}

#[test]
fn g16_null_ratios_rise_by_points_and_a_field_that_is_gone_counts_as_null() {
    let limit = [("null_increase_max", "5"), ("null_increase_max.free", "100")];
    let served = version(1_000, &[("price", nulls(1_000, 1)), ("free", nulls(1_000, 0))]);
    let empty = version(1_000, &[("price", nulls(1_000, 400)), ("free", nulls(1_000, 0))]);
    assert_eq!(
        abort(ask(&limit, Some(&served), Some(&empty))),
        "null ratio of price 40.0 % (limit +5 points over 0.1 %)"
    );
    let gone = version(1_000, &[("free", nulls(1_000, 0))]);
    assert_eq!(
        abort(ask(&limit, Some(&served), Some(&gone))),
        "null ratio of price 100.0 % (limit +5 points over 0.1 %, the field is gone)"
    );
    let added =
        version(1_000, &[("price", nulls(1_000, 1)), ("added", nulls(1_000, 1_000)), ("free", nulls(1_000, 1_000))]);
    assert_eq!(ask(&limit, Some(&served), Some(&added)), Four::Proceed, "nothing to compare; a limit of its own");
    let always = version(1_000, &[("price", nulls(1_000, 1_000))]);
    assert_eq!(ask(&limit, Some(&always), Some(&always)), Four::Proceed);
    let edge = version(1_000, &[("price", nulls(1_000, 51)), ("free", nulls(1_000, 0))]);
    assert_eq!(ask(&limit, Some(&served), Some(&edge)), Four::Proceed, "exactly the limit");
}

#[test]
fn g16_the_message_has_the_form_that_people_know() {
    let served = version(1_000, &[("tz", nulls(1_000, 0))]);
    let new = version(1_000, &[("tz", nulls(1_000, 382))]);
    assert_eq!(
        abort(ask(&[("null_increase_max", "5")], Some(&served), Some(&new))),
        "null ratio of tz 38.2 % (limit +5 points over 0.0 %)"
    );
}

#[test]
fn g17_without_anything_to_compare_absolute_limits_apply_alone() {
    let limits = [
        ("records_drop_max", "10"),
        ("null_increase_max", "5"),
        ("bytes_growth_max", "3"),
        ("distinct_shrink_max", "20"),
        ("norm_change_max", "10"),
        ("sample_present_min", "95"),
        ("golden_changed_max", "0"),
        ("records_min", "10"),
        ("null_max", "50"),
    ];
    let new = version(20, &[("price", nulls(20, 5))]);
    let none = version(0, &[]);
    assert_eq!(ask(&limits, None, Some(&new)), Four::Proceed);
    assert_eq!(ask(&limits, Some(&none), Some(&new)), Four::Proceed);
    for served in [None, Some(&none)] {
        assert_eq!(abort(ask(&limits, served, Some(&none))), "0 records (limit at least 10)");
    }
    let empty = version(20, &[("price", nulls(20, 11))]);
    assert_eq!(abort(ask(&limits, None, Some(&empty))), "null ratio of price 55.0 % (limit 50 %)");
    assert!(matches!(ask(&limits, Some(&new), None), Four::Wait { reason, .. } if reason.contains("no statistics")));
}

#[test]
fn g18_each_limit_works_in_its_own_direction() {
    let limits = [("bytes_growth_max", "3"), ("distinct_shrink_max", "20")];
    let with = |bytes, distinct| {
        let field = FieldStatistics { distinct, ..nulls(100, 0) };
        VersionStatistics { bytes, ..version(100, &[("city", field)]) }
    };
    let served = with(1_000, 100);
    for (new, expected) in [
        (with(3_000, 80), ""),
        (with(1, 1_000), ""),
        (with(3_001, 80), "3,001 bytes of data, 3.001 times the 1,000 served (limit 3 times)"),
        (with(10, 79), "about 79 distinct values of city, 21.0 % fewer than the 100 served (limit 20 % fewer)"),
    ] {
        match ask(&limits, Some(&served), Some(&new)) {
            Four::Proceed => assert_eq!(expected, ""),
            other => assert_eq!(abort(other), expected),
        }
    }
}

#[test]
fn g18_each_region_is_compared_with_what_it_serves() {
    let mut context = Context::new(Function::PreStoreVersionCreation, "s");
    context.config = BTreeMap::from([("records_drop_max".into(), "10".into())]);
    context.statistics = Some(version(100, &[]));
    for (region, records) in [("a", 100), ("b", 200)] {
        let status = RegionStatus { statistics: Some(version(records, &[])), ..RegionStatus::default() };
        context.regions.insert(region.into(), status);
    }
    context.region = Some("a".into());
    assert_eq!(decide(&context).unwrap(), Four::Proceed);
    context.region = Some("b".into());
    assert!(abort(decide(&context).unwrap()).contains("50.0 % fewer than the 200"));
}

#[test]
fn g38_golden_keys_have_to_be_there() {
    let golden = |keys: &[(&str, Option<&str>)]| {
        let value = |digest: &Option<&str>| GoldenValue { value_digest: digest.map(str::to_owned) };
        let golden = keys.iter().map(|(key, digest)| ((*key).to_owned(), value(digest))).collect();
        VersionStatistics { golden, ..version(10, &[]) }
    };
    let served = golden(&[("x", Some("1")), ("y", Some("1")), ("z", Some("1"))]);
    let new = golden(&[("x", Some("1")), ("y", None), ("z", Some("2"))]);
    let reason = abort(ask(&[("golden_present", "true")], Some(&served), Some(&new)));
    assert_eq!(reason, "1 of 3 golden keys missing (limit 0): y");
    let reason = abort(ask(&[("golden_changed_max", "1")], Some(&served), Some(&new)));
    assert_eq!(reason, "2 golden keys changed (limit 1): y, z");
    assert_eq!(ask(&[("golden_changed_max", "2")], Some(&served), Some(&new)), Four::Proceed);
}

#[test]
fn g38_a_share_of_the_served_sample_has_to_be_there() {
    let sample = |from: u64, to: u64, limit: u64| {
        let record = |n| SampledRecord { hash: format!("{n:016x}"), key: format!("k{n}"), value_digest: "d".into() };
        let sample = Sample { limit, records: (from..to).map(record).collect() };
        VersionStatistics { sample, ..version(1_000, &[]) }
    };
    let limit = [("sample_present_min", "95")];
    let served = sample(0, 100, 100);
    assert_eq!(ask(&limit, Some(&served), Some(&sample(5, 105, 200))), Four::Proceed, "95 of 100");
    let reason = abort(ask(&limit, Some(&served), Some(&sample(6, 105, 200))));
    assert_eq!(reason, "94.0 % of 100 sampled keys are there (limit 95 %); missing: k0, k1, k2, k3, k4 and 1 more");
    let reason = abort(ask(&limit, Some(&served), Some(&sample(0, 1, 1_000))));
    assert!(reason.starts_with("1.0 % of 100"), "{reason}");
    assert_eq!(ask(&limit, Some(&served), Some(&sample(0, 50, 50))), Four::Proceed, "the rest can't be judged");
}

#[test]
fn g39_the_mean_norm_of_vectors_moves_within_its_limit() {
    let with = |mean_norm, vectors_with_nan| {
        version(10, &[("e", FieldStatistics { mean_norm, vectors_with_nan, ..nulls(10, 0) })])
    };
    let limit = [("norm_change_max", "10")];
    let served = with(Some(1.0), 0);
    assert_eq!(ask(&limit, Some(&served), Some(&with(Some(1.09), 0))), Four::Proceed);
    let reason = abort(ask(&limit, Some(&served), Some(&with(Some(1.11), 0))));
    assert_eq!(reason, "mean norm of e 1.11, 11.0 % from the 1.00 served (limit 10 %)");
    assert!(abort(ask(&limit, Some(&served), Some(&with(Some(0.0), 0)))).contains("0.00, 100.0 %"));
    let reason = abort(ask(&limit, Some(&served), Some(&with(Some(1.0), 3))));
    assert_eq!(reason, "3 vectors of e have components that are NaN (limit 0)");
    assert!(abort(ask(&limit, Some(&served), Some(&with(None, 0)))).contains("NaN"));
    assert_eq!(ask(&limit, Some(&with(Some(0.0), 0)), Some(&with(Some(1.0), 0))), Four::Proceed);
}

#[test]
fn a_reason_names_a_bounded_number_of_broken_limits() {
    let names: Vec<String> = (0..9).map(|n| format!("f{n}")).collect();
    let fields = |missing| names.iter().map(|name| (name.as_str(), nulls(10, missing))).collect::<Vec<_>>();
    let reason = abort(ask(&[("null_max", "0")], None, Some(&version(10, &fields(1)))));
    assert!(reason.ends_with("; and 4 more broken limits"), "{reason}");
}

#[tokio::test]
async fn g17_limits_that_are_none_are_refused_with_key_and_value() {
    for (key, value) in [
        ("records_drop_max", "NaN"),
        ("null_increase_max.tz", "-1"),
        ("golden_present", "perhaps"),
        ("records_min", "1.5"),
    ] {
        let context = ValidationContext {
            store: Some("s".into()),
            key: key.into(),
            value: value.into(),
            config: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            regions: None,
            now: tidegate_state::Timestamp(0),
        };
        let Two::Abort { reason } = DataQuality.validate_hook_config(&context).await.unwrap().outcome else {
            panic!("{key} = {value} was accepted");
        };
        assert!(reason.contains(key) && reason.contains(value), "{reason}");
    }
}
