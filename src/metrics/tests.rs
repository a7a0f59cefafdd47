//! The text as a whole: is it OpenMetrics, and is it written fast enough.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::*;
use crate::domain::RepoKey;
use crate::domain::health::Level;
use crate::domain::job::{JobKind, Outcome};
use crate::pgbackrest::info;

fn metrics() -> Metrics {
    Metrics::new(MetricsConfig::default(), TimeZone::UTC)
}

fn hundred() -> Vec<u8> {
    include_bytes!("../../tests/fixtures/pgbackrest/2.45/info-100.json").to_vec()
}

fn scrape(metrics: &Metrics, json: &[u8]) -> String {
    let stanza = "main".parse().unwrap();
    let stanzas = info::parse(json).unwrap();
    write(metrics, exporter::Seen { stanza: &stanza, info: info::find(&stanzas, &stanza) })
}

fn write(metrics: &Metrics, seen: exporter::Seen<'_>) -> String {
    let now = Timestamp::from_second(1_795_180_000).unwrap();
    let moment = exporter::Moment { now, zone: metrics.zone() };
    metrics.encode(exporter::families(&[seen], None, metrics.config(), moment)).unwrap()
}

/// Checks the rules of the text format that can be seen line by line; answers the families' names.
fn check(text: &str) -> Vec<String> {
    let mut families: Vec<String> = Vec::new();
    let (mut kind, mut series) = (String::new(), BTreeSet::new());
    assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1);
    let mut lines = text.lines().take_while(|line| *line != "# EOF");
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(!families.iter().any(|known| known == name), "{name} twice");
            assert!(!help.is_empty() && !help.contains(['\\', '"']), "{line}");
            families.push(name.to_owned());
            let typed = lines.next().unwrap();
            let (typed, of) = typed.strip_prefix("# TYPE ").unwrap().split_once(' ').unwrap();
            assert_eq!(typed, name);
            kind = of.to_owned();
            continue;
        }
        let family = families.last().unwrap();
        let (id, value) = line.rsplit_once(' ').unwrap();
        let rest = id.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} in {family}"));
        let suffix = rest.split('{').next().unwrap();
        let allowed: &[&str] = match kind.as_str() {
            "gauge" => &[""],
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            other => panic!("{other}"),
        };
        assert!(allowed.contains(&suffix), "{line} is no {kind}");
        assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
        assert!(series.insert(id.to_owned()), "{id} twice");
    }
    families
}

#[test]
fn a_scrape_is_openmetrics() {
    let metrics = metrics();
    let names = check(&scrape(&metrics, &hundred()));
    assert!(names.iter().any(|name| name == "pgbackrest_backup_info"));
    assert!(names.iter().any(|name| name == "headrest_jobs"));
    // Of what has no samples there is not even the name.
    assert!(!names.iter().any(|name| name == "headrest_wal_gap_segments"));
}

#[test]
fn labels_are_escaped() {
    let metrics = metrics();
    let check_name = "a\"b\\c\nd".to_owned();
    metrics.gauges().set_health([(check_name, String::new(), Level::Warn)]);
    let text = scrape(&metrics, &hundred());
    check(&text);
    let expected = r#"headrest_health_status{check="a\"b\\c\nd",stanza=""} 1.0"#;
    assert!(text.contains(expected), "{text}");
}

#[test]
fn gauges_replace_and_forget() {
    let metrics = metrics();
    let (gauges, stanza) = (metrics.gauges().clone(), "main".parse().unwrap());
    let at = |second| Timestamp::from_second(second).unwrap();
    let run = |name: &str, second| NextRun {
        schedule: name.to_owned(),
        at: Some(at(second)),
        missed: 1,
        last_missed: Some(at(5)),
    };
    gauges.set_schedules([run("a", 10), run("b", 20)]);
    gauges.set_schedules([
        run("a", 30),
        NextRun { schedule: "c".to_owned(), at: None, missed: 0, last_missed: None },
    ]);
    gauges.set_recovery_window(&stanza, RepoKey::FIRST, Some((at(1), at(2))));
    gauges.set_wal_gap(&stanza, RepoKey::FIRST, Some(3));
    gauges.set_wal_ready(&stanza, Some(4));
    gauges.set_health([("archiving".to_owned(), "main".to_owned(), Level::Fail)]);
    gauges.set_notified([Notified {
        target: "ops".to_owned(),
        waiting: 2,
        given_up: 1,
        failed: 9,
    }]);
    let ours = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| {
            line.starts_with("headrest_") && !line.contains("_job") && !line.contains("_http")
        });
        lines.map(str::to_owned).collect()
    };
    let text = scrape(&metrics, &hundred());
    check(&text);
    assert_eq!(
        ours(&text),
        [
            r#"headrest_schedule_next_run_timestamp_seconds{schedule="a"} 30.0"#,
            r#"headrest_schedule_missed_total{schedule="a"} 1.0"#,
            r#"headrest_schedule_missed_total{schedule="c"} 0.0"#,
            r#"headrest_schedule_last_missed_timestamp_seconds{schedule="a"} 5.0"#,
            r#"headrest_recovery_window_start_timestamp_seconds{repo_key="1",stanza="main"} 1.0"#,
            r#"headrest_recovery_window_end_timestamp_seconds{repo_key="1",stanza="main"} 2.0"#,
            r#"headrest_wal_gap_segments{repo_key="1",stanza="main"} 3.0"#,
            r#"headrest_wal_ready_segments{stanza="main"} 4.0"#,
            r#"headrest_health_status{check="archiving",stanza="main"} 2.0"#,
            r#"headrest_notify_waiting{target="ops"} 2.0"#,
            r#"headrest_notify_given_up_total{target="ops"} 1.0"#,
            r#"headrest_notify_failed_total{target="ops"} 9.0"#,
        ]
    );
    gauges.set_schedules([]);
    gauges.set_recovery_window(&stanza, RepoKey::FIRST, None);
    gauges.set_wal_gap(&stanza, RepoKey::FIRST, None);
    gauges.set_wal_ready(&stanza, None);
    gauges.set_health([]);
    gauges.set_notified([]);
    assert_eq!(ours(&scrape(&metrics, &hundred())), [] as [String; 0]);
}

#[test]
fn jobs_and_requests_are_counted() {
    let metrics = metrics();
    let end = EndedJob {
        kind: JobKind::Backup,
        outcome: Outcome::Failed,
        took: Some(Duration::from_secs(20)),
    };
    metrics.job_ended(end);
    metrics.job_ended(EndedJob { took: None, ..end });
    let request = Request {
        method: "GET",
        route: Some("/api/v1/jobs/{id}"),
        status: 404,
        took: Duration::from_millis(3),
    };
    metrics.answered(request);
    metrics.answered(Request { method: "BREW", route: None, ..request });
    let text = scrape(&metrics, &hundred());
    check(&text);
    for line in [
        r#"headrest_jobs_total{kind="backup",outcome="failed"} 2"#,
        r#"headrest_jobs_total{kind="restore",outcome="failed"} 0"#,
        r#"headrest_job_duration_seconds_count{kind="backup"} 1"#,
        r#"headrest_job_duration_seconds_bucket{le="15.0",kind="backup"} 0"#,
        r#"headrest_job_duration_seconds_bucket{le="60.0",kind="backup"} 1"#,
        r#"headrest_http_requests_total{method="GET",route="/api/v1/jobs/{id}",status="404"} 1"#,
        r#"headrest_http_requests_total{method="other",route="unmatched",status="404"} 1"#,
    ] {
        assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_hundred_backups_are_written_in_five_milliseconds() {
    let metrics = metrics();
    let stanza = "main".parse().unwrap();
    let stanzas = info::parse(&hundred()).unwrap();
    let info = info::find(&stanzas, &stanza);
    assert_eq!(info.unwrap().backups.len(), 100);
    // The fastest of some: others use this machine, too.
    let once = || {
        let began = Instant::now();
        write(&metrics, exporter::Seen { stanza: &stanza, info });
        began.elapsed()
    };
    let fastest = (0..20).map(|_| once()).min().unwrap();
    assert!(fastest < Duration::from_millis(5), "{fastest:?}");
}
