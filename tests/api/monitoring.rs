//! The alert rules and the board: they are what Prometheus understands, they do what they say, and
//! they know no metric that is not there. `make promtool` gets the program that this takes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;

use headrest::config::MetricsConfig;
use headrest::domain::RepoKey;
use headrest::domain::health::Level;
use headrest::domain::job::JobKind;
use headrest::metrics::exporter::{self, Moment, Seen};
use headrest::metrics::{Lane, Metrics, NextRun, Notified, Process, Request};
use headrest::pgbackrest::info;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

const RULES: &str = include_str!("../../docker/prometheus/headrest.rules.yml");
const RULES_TEST: &str = include_str!("../../docker/prometheus/headrest.rules.test.yml");
const PROMETHEUS: &str = include_str!("../../docker/prometheus/prometheus.yml");
const BOARD: &str = include_str!("../../docker/grafana/headrest.json");
const COMPOSE: &str = include_str!("../../docker/compose.yaml");

/// A scrape in which everything there is has a value.
fn everything() -> String {
    let metrics = Metrics::new(MetricsConfig::default(), TimeZone::UTC);
    let stanza = "main".parse().unwrap();
    let now = Timestamp::from_second(1_795_180_000).unwrap();
    let gauges = metrics.gauges();
    gauges.set_schedules([NextRun {
        schedule: "nightly".to_owned(),
        at: Some(now),
        missed: 0,
        last_missed: Some(now),
    }]);
    gauges.set_recovery_window(&stanza, RepoKey::FIRST, Some((now, now)));
    gauges.set_wal_gap(&stanza, RepoKey::FIRST, Some(0));
    gauges.set_wal_ready(&stanza, Some(0));
    gauges.set_notified([Notified {
        target: "ops".to_owned(),
        waiting: 0,
        given_up: 0,
        failed: 0,
    }]);
    gauges.set_health([("a\"b\\\n".to_owned(), "main".to_owned(), Level::Pass)]);
    let took = std::time::Duration::from_millis(1);
    metrics.answered(Request { method: "GET", route: Some("/livez"), status: 200, took });
    let json = include_bytes!("../fixtures/pgbackrest/2.60.0/info-two-timelines.json");
    let stanzas = info::parse(json).unwrap();
    let seen = Seen { stanza: &stanza, info: Some(&stanzas[0]) };
    let moment = Moment { now, zone: metrics.zone() };
    let mut families = exporter::families(&[seen], None, metrics.config(), moment);
    let service = headrest::metrics::Service {
        processes: vec![Process { name: "postgres", up: true, restarts: 0 }],
        lanes: vec![Lane { stanza: &stanza, running: Some(JobKind::Backup) }],
        pgbackrest: None,
    };
    families.extend(service.families());
    metrics.encode(families).unwrap()
}

/// The names of the series of a scrape.
fn series(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(['{', ' ']).next().unwrap()).collect()
}

/// The names of metrics of ours that an expression has.
fn used(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = |word: &&str| word.starts_with("headrest_") || word.starts_with("pgbackrest_");
    words.filter(ours).collect()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}"))
}

fn rules() -> Vec<Value> {
    let groups = yaml(RULES)["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// Runs promtool; it is on the path, or `make promtool` has put it beside what was built.
#[track_caller]
fn promtool(directory: &Path, args: &[&str], stdin: Option<&Path>) -> Output {
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("tools/promtool");
    let program = if made.exists() { made } else { PathBuf::from("promtool") };
    let stdin = stdin
        .map_or_else(std::process::Stdio::null, |path| std::fs::File::open(path).unwrap().into());
    let run = command(&program).args(args).current_dir(directory).stdin(stdin).output();
    run.unwrap_or_else(|error| panic!("{}: {error}; run `make promtool`", program.display()))
}

#[expect(clippy::disallowed_methods, reason = "a test runs a program of its own")]
fn command(program: &Path) -> std::process::Command {
    std::process::Command::new(program)
}

#[track_caller]
fn succeeded(output: &Output) {
    let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    assert!(output.status.success(), "{}\n{}{}", output.status, said[0], said[1]);
}

fn docker(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker").join(name)
}

#[test]
fn the_rules_do_what_their_tests_say() {
    let directory = docker("prometheus");
    succeeded(&promtool(&directory, &["check", "rules", "headrest.rules.yml"], None));
    succeeded(&promtool(&directory, &["test", "rules", "headrest.rules.test.yml"], None));
    let config = ["check", "config", "--syntax-only", "prometheus.yml"];
    succeeded(&promtool(&directory, &config, None));
}

#[test]
fn every_alert_is_seen_to_fire_and_to_be_silent() {
    let tests = yaml(RULES_TEST);
    let cases: Vec<&Value> = tests["tests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_array().unwrap())
        .collect();
    for rule in rules() {
        let alert = rule["alert"].as_str().unwrap();
        let of = |fires: bool| {
            cases.iter().any(|case| {
                let expected = case["exp_alerts"].as_array().unwrap();
                case["alertname"] == alert && expected.is_empty() != fires
            })
        };
        assert!(of(true) && of(false), "{alert}");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["warning", "critical"].contains(&severity), "{alert}");
        let expression = rule["expr"].as_str().unwrap();
        assert!(
            !expression.contains("pgbackrest_") || expression.contains("stanza!~\"all-stanzas.*\""),
            "{alert} does not leave out what is said of all stanzas"
        );
    }
}

#[test]
fn rules_and_board_know_only_what_is_there() {
    let text = everything();
    let known = series(&text);
    let board: Value = serde_json::from_str(BOARD).unwrap();
    let mut expressions: Vec<String> =
        rules().iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect();
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            expressions.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    for variable in board["templating"]["list"].as_array().unwrap() {
        expressions.extend(variable["definition"].as_str().map(str::to_owned));
    }
    assert!(expressions.len() > 40);
    for expression in &expressions {
        for name in used(expression) {
            assert!(known.contains(name), "{name} of {expression} is not there");
        }
    }
}

#[test]
fn the_board_s_panels_are_apart() {
    let board: Value = serde_json::from_str(BOARD).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()));
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
    }
}

#[test]
fn prometheus_reads_a_scrape() {
    let directory = tempfile::tempdir().unwrap();
    let text = everything();
    // Its reader of OpenMetrics wants times, which a scrape does not have.
    let timed: String = text
        .lines()
        .map(|line| if line.starts_with('#') { format!("{line}\n") } else { format!("{line} 1\n") })
        .collect();
    let file = directory.path().join("scrape.om");
    std::fs::write(&file, &timed).unwrap();
    let read = ["tsdb", "create-blocks-from", "openmetrics", "scrape.om", "data"];
    succeeded(&promtool(directory.path(), &read, None));
    let broken = timed.replace("# EOF\n", "");
    std::fs::write(&file, broken).unwrap();
    assert!(!promtool(directory.path(), &read, None).status.success());

    // And its linter, which knows the older format: there a counter's type is that of its series.
    let older: String = text
        .lines()
        .map(|line| match line.strip_suffix(" counter") {
            Some(name) => format!("{name}_total counter\n"),
            None => format!("{line}\n"),
        })
        .collect();
    let older = headed_by_series(&older);
    let file = directory.path().join("scrape.txt");
    std::fs::write(&file, older).unwrap();
    let linted = promtool(directory.path(), &["check", "metrics"], Some(&file));
    let said = String::from_utf8_lossy(&linted.stderr).into_owned();
    let ours: Vec<&str> = said.lines().filter(|line| line.starts_with("headrest_")).collect();
    assert!(ours.is_empty() && !said.contains("error"), "{said}");
}

/// `# HELP` of counters under the names that their series have.
fn headed_by_series(text: &str) -> String {
    let counters: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix("_total counter"))
        .collect();
    let head = |line: &str| match line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '))
    {
        Some((name, help)) if counters.contains(&name) => format!("# HELP {name}_total {help}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(head).collect()
}

#[test]
fn compose_s_profile_agrees_with_the_files() {
    let compose = yaml(COMPOSE);
    let prometheus = yaml(PROMETHEUS);
    let services = compose["services"].as_object().unwrap();
    let declared = compose["volumes"].as_object().unwrap();
    for (name, service) in services.iter().filter(|(name, _)| *name != "postgres") {
        assert_eq!(service["profiles"], serde_json::json!(["monitoring"]), "{name}");
        let tag = service["image"].as_str().unwrap().split_once(':').unwrap().1;
        assert!(tag.contains('.') && tag != "latest", "{name}");
        for volume in service["volumes"].as_array().unwrap() {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            let there = match from.strip_prefix("./") {
                Some(path) => docker(path).exists(),
                None => declared.contains_key(from),
            };
            assert!(there, "{name}: {from}");
        }
        for port in service["ports"].as_array().unwrap() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}");
        }
    }
    let job = &prometheus["scrape_configs"][0];
    assert_eq!(job["static_configs"][0]["targets"][0], "postgres:8433");
    assert_eq!(job["authorization"]["credentials_file"], "/var/lib/headrest/admin-token");
    assert!(docker("prometheus").join(prometheus["rule_files"][0].as_str().unwrap()).exists());
}
