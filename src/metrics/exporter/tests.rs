//! The contract with `pgbackrest_exporter`, on recorded answers of three versions.

use std::collections::BTreeSet;

use super::*;
use crate::pgbackrest::info;

const CONTRACT: &str = include_str!("../../../tests/fixtures/metrics/exporter-0.24.txt");
const NONE: [f64; 0] = [];
const VERSIONS: [&str; 3] = ["2.45", "2.55.1", "2.60.0"];

/// The families of a recorded answer, so many seconds after 1970.
fn recorded_at(version: &str, name: &str, now: i64, config: &MetricsConfig) -> Vec<Family> {
    let root = env!("CARGO_MANIFEST_DIR");
    let path = format!("{root}/tests/fixtures/pgbackrest/{version}/info-{name}.json");
    of(&std::fs::read(path).unwrap(), now, config)
}

fn recorded(version: &str, name: &str) -> Vec<Family> {
    recorded_at(version, name, 1_795_180_000, &MetricsConfig::default())
}

fn of(json: &[u8], now: i64, config: &MetricsConfig) -> Vec<Family> {
    let stanza = "main".parse().unwrap();
    let stanzas = info::parse(json).unwrap();
    let seen = Seen { stanza: &stanza, info: info::find(&stanzas, &stanza) };
    let now = Timestamp::from_second(now).unwrap();
    families(&[seen], None, config, Moment { now, zone: &TimeZone::UTC })
}

/// The values of all samples of a family that have these labels.
fn values(families: &[Family], name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
    let family = families.iter().find(|family| family.name == name);
    let family = family.unwrap_or_else(|| panic!("no {name}"));
    let fits = |sample: &&crate::metrics::Sample| {
        labels.iter().all(|(name, value)| label(&sample.labels, name) == Some(value))
    };
    family.samples.iter().filter(fits).map(|sample| sample.value).collect()
}

fn label<'a>(labels: &'a Labels, name: &str) -> Option<&'a str> {
    labels.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
}

fn labels_of(families: &[Family], name: &str) -> Vec<Labels> {
    let family = families.iter().find(|family| family.name == name).unwrap();
    family.samples.iter().map(|sample| sample.labels.clone()).collect()
}

fn shapes(families: &[Family]) -> BTreeSet<String> {
    let shape = |family: &Family| {
        let kind = match family.kind {
            crate::metrics::Kind::Gauge => "gauge",
            crate::metrics::Kind::Counter => "counter",
        };
        let name = family.name;
        family
            .samples
            .iter()
            .map(move |sample| {
                let labels: Vec<_> = sample.labels.iter().map(|(name, _)| *name).collect();
                format!("{name} {kind} {}", labels.join(" ")).trim_end().to_owned()
            })
            .collect::<Vec<_>>()
    };
    families.iter().flat_map(shape).collect()
}

#[test]
fn names_types_and_labels_are_the_contract() {
    let config = MetricsConfig { reference_count: true, ..MetricsConfig::default() };
    let contract: BTreeSet<String> =
        CONTRACT.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    for version in VERSIONS {
        for name in ["three", "block-incr", "two-repos", "two-timelines", "page-error"] {
            let families = recorded_at(version, name, 1_795_180_000, &config);
            assert_eq!(shapes(&families), contract, "{version} {name}");
        }
    }
}

#[test]
fn old_names_are_there_when_asked_for() {
    let config = MetricsConfig { legacy_names: true, ..MetricsConfig::default() };
    let with = shapes(&recorded_at("2.55.1", "running", 0, &config));
    let without = shapes(&recorded("2.55.1", "running"));
    let added: Vec<_> = with.difference(&without).map(String::as_str).collect();
    assert_eq!(
        added,
        [
            "pgbackrest_exporter_info gauge version",
            "pgbackrest_stanza_backup_compete_bytes gauge stanza",
            "pgbackrest_stanza_lock_status gauge stanza",
        ]
    );
    let families = recorded_at("2.55.1", "running", 0, &config);
    assert_eq!(values(&families, "pgbackrest_stanza_backup_compete_bytes", &[]), [50_741_248.0]);
    assert_eq!(values(&families, "pgbackrest_stanza_lock_status", &[]), [1.0]);
}

#[test]
fn a_backup_s_labels_and_values() {
    let families = recorded("2.45", "three");
    let full = [("backup_name", "20261120-111222F")];
    for (name, value) in [
        ("info", 1.0),
        ("duration_seconds", 2.0),
        ("size_bytes", 24_590_133.0),
        ("delta_bytes", 24_590_133.0),
        ("repo_size_bytes", 3_625_079.0),
        ("repo_delta_bytes", 3_625_079.0),
        ("repo_size_map_bytes", 0.0),
        ("repo_delta_map_bytes", 0.0),
        ("error_status", 0.0),
        ("annotations", 2.0),
    ] {
        assert_eq!(
            values(&families, &format!("pgbackrest_backup_{name}"), &full),
            [value],
            "{name}"
        );
    }
    let text = |labels: &Labels| {
        labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    let info = labels_of(&families, "pgbackrest_backup_info");
    assert_eq!(
        text(&info[1]),
        "backrest_ver=2.45 backup_name=20261120-111222F_20261120-111225D backup_type=diff \
         block_incr=n database_id=1 lsn_start=0/4000028 lsn_stop=0/4000100 pg_version=15 \
         prior=20261120-111222F repo_key=1 stanza=main wal_start=000000010000000000000004 \
         wal_stop=000000010000000000000004"
    );
    assert_eq!(label(&info[0], "prior"), Some(""));
    let duration = labels_of(&families, "pgbackrest_backup_duration_seconds");
    assert_eq!(label(&duration[0], "start_time"), Some("2026-11-20 11:12:22"));
    assert_eq!(label(&duration[0], "stop_time"), Some("2026-11-20 11:12:24"));
}

#[test]
fn times_in_labels_are_those_of_the_zone() {
    let moment = Moment { now: Timestamp::UNIX_EPOCH, zone: &TimeZone::fixed(jiff::tz::offset(1)) };
    let stanza = "main".parse().unwrap();
    let json = include_bytes!("../../../tests/fixtures/pgbackrest/2.60.0/info-three.json");
    let stanzas = info::parse(json).unwrap();
    let seen = Seen { stanza: &stanza, info: Some(&stanzas[0]) };
    let families = families(&[seen], None, &MetricsConfig::default(), moment);
    let labels = labels_of(&families, "pgbackrest_backup_duration_seconds");
    assert_eq!(label(&labels[0], "start_time"), Some("2026-11-20 12:15:16"));
}

/// Type of the slot, age 1000 s after 1795173000, duration, size of the backup that is in it.
#[test]
fn the_last_backup_of_a_type_may_be_of_another_type() {
    for (version, name, expect) in [
        // full, diff, incr: each in its own slot.
        (
            "2.45",
            "three",
            [(856.0, 2.0, 24_590_133.0), (854.0, 1.0, 25_294_645.0), (852.0, 1.0, 25_982_773.0)],
        ),
        (
            "2.55.1",
            "three",
            [(721.0, 4.0, 24_831_122.0), (719.0, 2.0, 25_535_634.0), (718.0, 1.0, 26_215_570.0)],
        ),
        (
            "2.60.0",
            "three",
            [(682.0, 2.0, 25_193_213.0), (681.0, 1.0, 25_897_725.0), (680.0, 1.0, 26_577_661.0)],
        ),
        // A diff after the incr is the last incr, too.
        (
            "2.45",
            "two-timelines",
            [(856.0, 2.0, 24_590_133.0), (849.0, 2.0, 25_982_914.0), (849.0, 2.0, 25_982_914.0)],
        ),
        (
            "2.60.0",
            "two-timelines",
            [(682.0, 2.0, 25_193_213.0), (678.0, 1.0, 26_585_994.0), (678.0, 1.0, 26_585_994.0)],
        ),
        // A full alone is all of them; of two repositories the newer one counts.
        ("2.45", "two-repos", [(829.0, 4.0, 23_213_877.0); 3]),
        ("2.60.0", "two-repos", [(667.0, 1.0, 23_702_269.0); 3]),
    ] {
        let families = recorded_at(version, name, 1_795_174_000, &MetricsConfig::default());
        for (slot, (age, duration, size)) in ["full", "diff", "incr"].into_iter().zip(expect) {
            let of = [("backup_type", slot), ("block_incr", "n"), ("stanza", "main")];
            let one = |name: &str| values(&families, &format!("pgbackrest_backup_{name}"), &of);
            assert_eq!(one("since_last_completion_seconds"), [age], "{version} {name} {slot}");
            assert_eq!(one("last_duration_seconds"), [duration], "{version} {name} {slot}");
            assert_eq!(one("last_size_bytes"), [size], "{version} {name} {slot}");
        }
    }
}

#[test]
fn every_repository_has_its_own_last_backup() {
    let families = recorded_at("2.60.0", "two-repos", 1_795_174_000, &MetricsConfig::default());
    for (repo, age, duration) in [("1", 668.0, 2.0), ("2", 667.0, 1.0)] {
        for slot in ["full", "diff", "incr"] {
            let of = [("repo_key", repo), ("backup_type", slot)];
            let one =
                |name: &str| values(&families, &format!("pgbackrest_backup_repo_{name}"), &of);
            assert_eq!(one("since_last_completion_seconds"), [age]);
            assert_eq!(one("last_duration_seconds"), [duration]);
        }
        assert_eq!(values(&families, "pgbackrest_repo_status", &[("repo_key", repo)]), [0.0]);
    }
}

#[test]
fn references_are_counted_by_type() {
    let config = MetricsConfig { reference_count: true, ..MetricsConfig::default() };
    let families = recorded_at("2.55.1", "three", 1_795_174_000, &config);
    let of = |name: &str, backup: (&str, &str)| {
        ["full", "diff", "incr"]
            .map(|kind| values(&families, name, &[backup, ("ref_backup", kind)]))
    };
    let last = |slot| of("pgbackrest_backup_last_references", ("backup_type", slot));
    assert_eq!(last("full"), [[0.0], [0.0], [0.0]]);
    assert_eq!(last("diff"), [[1.0], [0.0], [0.0]]);
    assert_eq!(last("incr"), [[1.0], [1.0], [0.0]]);
    let incr = ("backup_name", "20261120-111435F_20261120-111441I");
    assert_eq!(of("pgbackrest_backup_references", incr), [[1.0], [1.0], [0.0]]);
}

#[test]
fn block_incremental_backups() {
    for (version, maps) in [("2.45", 6247.0), ("2.55.1", 6247.0), ("2.60.0", 6215.0)] {
        let families = recorded(version, "block-incr");
        let incr = [("backup_type", "incr"), ("block_incr", "y")];
        assert_eq!(values(&families, "pgbackrest_backup_repo_size_bytes", &incr), [0.0]);
        assert_eq!(values(&families, "pgbackrest_backup_repo_delta_map_bytes", &incr), [maps]);
        let last = "pgbackrest_backup_last_repo_delta_map_bytes";
        assert_eq!(values(&families, last, &incr), [maps]);
        assert_eq!(values(&families, "pgbackrest_backup_info", &[("block_incr", "n")]), NONE);
    }
    // Both maps, or it is none.
    let json = include_str!("../../../tests/fixtures/pgbackrest/2.60.0/info-block-incr.json");
    let families = of(json.replace("size-map", "x").as_bytes(), 0, &MetricsConfig::default());
    assert_eq!(values(&families, "pgbackrest_backup_info", &[("block_incr", "y")]), NONE);
}

#[test]
fn page_errors_are_told() {
    for (version, last) in [("2.45", 1.0), ("2.55.1", 1.0), ("2.60.0", 1.0)] {
        let families = recorded(version, "page-error");
        assert_eq!(values(&families, "pgbackrest_backup_last_error_status", &[]), [last; 3]);
    }
    let errors = values(&recorded("2.45", "page-error"), "pgbackrest_backup_error_status", &[]);
    assert_eq!(errors, [0.0, 1.0]);
}

#[test]
fn a_running_backup() {
    for (version, stanza, repo) in [
        ("2.45", (0.0, 0.0), (0.0, 0.0)),
        ("2.55.1", (327_943_056.0, 50_741_248.0), (0.0, 0.0)),
        ("2.60.0", (327_330_299.0, 50_593_792.0), (327_330_299.0, 50_593_792.0)),
    ] {
        let families = recorded(version, "running");
        let one = |name: &str| values(&families, &format!("pgbackrest_stanza_{name}"), &[]);
        assert_eq!(one("backup_lock_status"), [1.0]);
        assert_eq!(one("restore_lock_status"), [0.0]);
        assert_eq!(
            (one("backup_total_bytes"), one("backup_complete_bytes")),
            (vec![stanza.0], vec![stanza.1])
        );
        let (total, complete) = (one("backup_repo_total_bytes"), one("backup_repo_complete_bytes"));
        assert_eq!((total, complete), (vec![repo.0], vec![repo.1]), "{version}");
        let quiet = recorded(version, "two-repos");
        assert_eq!(values(&quiet, "pgbackrest_stanza_backup_repo_total_bytes", &[]), [0.0, 0.0]);
    }
}

#[test]
fn without_a_full_there_is_no_last() {
    for version in VERSIONS {
        for (name, code, repo) in [
            ("no-backup", 2.0, 2.0),
            ("missing-stanza", 1.0, 1.0),
            ("no-repo", 1.0, 1.0),
            ("unreadable", 99.0, 99.0),
        ] {
            let families = recorded(version, name);
            assert_eq!(values(&families, "pgbackrest_stanza_status", &[]), [code]);
            assert_eq!(values(&families, "pgbackrest_repo_status", &[]), [repo]);
            assert_eq!(values(&families, "pgbackrest_exporter_status", &[]), [1.0]);
            let backups = families.iter().filter(|f| f.name.starts_with("pgbackrest_backup_"));
            assert!(
                backups.into_iter().all(|family| family.samples.is_empty()),
                "{version} {name}"
            );
        }
        let archive = values(&recorded(version, "no-backup"), "pgbackrest_wal_archive_status", &[]);
        assert_eq!(archive, [0.0]);
    }
    // An incr whose full has gone.
    let json = include_str!("../../../tests/fixtures/pgbackrest/2.60.0/info-three.json");
    let families =
        of(json.replace("\"full\"", "\"incr\"").as_bytes(), 0, &MetricsConfig::default());
    assert_eq!(values(&families, "pgbackrest_backup_last_size_bytes", &[]), NONE);
    assert_eq!(values(&families, "pgbackrest_backup_size_bytes", &[]).len(), 3);
}

#[test]
fn one_of_two_repositories_cannot_be_read() {
    for version in VERSIONS {
        let families = recorded(version, "two-repos-one-unreadable");
        assert_eq!(values(&families, "pgbackrest_stanza_status", &[]), [4.0]);
        let of = |key| values(&families, "pgbackrest_repo_status", &[("repo_key", key)]);
        assert_eq!((of("1"), of("2")), (vec![0.0], vec![99.0]));
        let repo = "pgbackrest_backup_repo_since_last_completion_seconds";
        assert_eq!(values(&families, repo, &[("repo_key", "2")]), NONE);
    }
}

#[test]
fn an_answer_that_could_not_be_had_is_only_a_status() {
    let stanza = "main".parse().unwrap();
    let moment = Moment { now: Timestamp::UNIX_EPOCH, zone: &TimeZone::UTC };
    let seen = Seen { stanza: &stanza, info: None };
    let families = families(&[seen], None, &MetricsConfig::default(), moment);
    assert_eq!(values(&families, "pgbackrest_exporter_status", &[("stanza", "main")]), [0.0]);
    let filled = families.iter().filter(|family| !family.samples.is_empty());
    let names: Vec<_> = filled.map(|family| family.name).collect();
    assert_eq!(
        names,
        ["pgbackrest_version_info", "pgbackrest_exporter_status", "pgbackrest_exporter_build_info"]
    );
}

#[test]
fn versions_are_numbers() {
    for (text, number) in [
        ("pgBackRest 2.45", 2_045_000.0),
        ("pgBackRest 2.55.1", 2_055_001.0),
        ("pgBackRest 2.57.0", 2_057_000.0),
    ] {
        assert_eq!(
            version_number(&text.parse().unwrap()).to_bits(),
            f64::to_bits(number),
            "{text}"
        );
    }
}

#[test]
fn segments_are_labels_only_when_asked_for() {
    for (verbose_wal, min, max) in
        [(false, "", ""), (true, "000000010000000000000001", "000000010000000000000006")]
    {
        let config = MetricsConfig { verbose_wal, ..MetricsConfig::default() };
        let families = recorded_at("2.60.0", "three", 0, &config);
        let of = [("wal_min", min), ("wal_max", max), ("pg_version", "18"), ("database_id", "1")];
        assert_eq!(values(&families, "pgbackrest_wal_archive_status", &of), [1.0]);
    }
}

/// No recording: a version before 2.32, which had one repository and did not speak of it, nor of LSNs.
#[test]
fn a_repository_without_a_key() {
    let json = include_str!("../../../tests/fixtures/pgbackrest/2.45/info-three.json");
    let json =
        json.replace("\"repo\"", "\"x\"").replace("repo-key", "y").replace("\"lsn\"", "\"z\"");
    let families = of(json.as_bytes(), 0, &MetricsConfig::default());
    let repo = [("repo_key", "0"), ("cipher", "none")];
    assert_eq!(values(&families, "pgbackrest_repo_status", &repo), [0.0]);
    let info = [("repo_key", "0"), ("pg_version", "15"), ("lsn_start", "-"), ("lsn_stop", "-")];
    assert_eq!(values(&families, "pgbackrest_backup_info", &info).len(), 3);
    let archive = values(&families, "pgbackrest_wal_archive_status", &[("repo_key", "0")]);
    assert_eq!(archive, [1.0]);
}
