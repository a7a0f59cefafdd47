//! A service for tests: everything but the network and PostgreSQL.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use headrest::config::{Auth as AuthMode, HealthConfig, MetricsConfig, NotifyConfig, ShortRoutes};
use headrest::domain::StanzaName;
use headrest::domain::schedule::Schedule;
use headrest::http::state::Shared;
use headrest::http::{AppState, Auth, router};
use headrest::jobs::archive::Archives;
use headrest::jobs::context::Wake;
use headrest::jobs::journal::Journals;
use headrest::jobs::retention::Retention;
use headrest::jobs::{self, Catalog, Context, JobsHandle, Keeper, Planner, Wal};
use headrest::metrics::Metrics;
use headrest::monitor::{self, MonitorHandle};
use headrest::notify::{Notifier, Settings};
use headrest::pgbackrest::runner::Tool;
use headrest::postgres::supervisor::PostgresHandle;
use headrest::pulse::Pulses;
use headrest::scheduler::{Origin, SchedulerHandle};
use headrest::store::Store;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
pub(crate) const TOKEN: &str = "correct-horse-battery";
pub(crate) const THREE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pgbackrest/2.45/info-three.json");

/// A running service.
pub(crate) struct Service {
    pub(crate) router: Router,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) metrics: Metrics,
    store: Store,
    shutdown: CancellationToken,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that this is a problem of that kind, with everything a problem has.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let body = self.json();
        assert_eq!((self.status.as_u16(), body["code"].as_str()), (status, Some(code)), "{body}");
        assert_eq!(body["status"], status);
        assert_eq!(body["type"], format!("/problems/{code}"));
        for field in ["title", "detail", "instance", "request_id"] {
            assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {body}");
        }
        assert_eq!(body["request_id"], self.header("x-request-id"));
        body
    }
}

/// How a service is made.
pub(crate) struct Options {
    pub(crate) script: String,
    pub(crate) auth: AuthMode,
    pub(crate) short_routes: ShortRoutes,
    pub(crate) retention: Retention,
    pub(crate) schedules: Vec<Schedule>,
    pub(crate) metrics: MetricsConfig,
    pub(crate) notify: Vec<NotifyConfig>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            script: info_from(THREE),
            auth: AuthMode::Token,
            short_routes: ShortRoutes::On,
            retention: Retention::default(),
            schedules: Vec::new(),
            metrics: MetricsConfig::default(),
            notify: Vec::new(),
        }
    }
}

/// A fake pgbackrest that answers `info` from a file and ends everything else well.
pub(crate) fn info_from(file: &str) -> String {
    format!("case \"$*\" in *info*) cat '{file}';; esac")
}

impl Service {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with_script(script: &str) -> Self {
        Self::with(Options { script: script.to_owned(), ..Options::default() }).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let binary = fake(directory.path(), &options.script);
        let store = Store::open(&directory.path().join("headrest.db")).unwrap();
        let path = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
        let tool = Arc::new(Tool { binary, env: path });
        let stanza: StanzaName = "main".parse().unwrap();
        let catalog = Catalog::new(Arc::clone(&tool), [stanza.clone()]);
        let shutdown = CancellationToken::new();
        let mut pulses = Pulses::new();
        let context = Context {
            archives: Archives::new(Arc::clone(&tool)),
            tool,
            version: None,
            catalog: catalog.clone(),
            postgres: PostgresHandle::beside(),
            server: None,
            store: store.clone(),
            journals: Journals::in_state_dir(directory.path()).unwrap(),
            retention: options.retention,
            wake: Wake::new(0),
            shutdown: shutdown.clone(),
            hurry: CancellationToken::new(),
        };
        let settings = Settings::new(options.notify, BTreeMap::new());
        let followed = context.wake.subscribe();
        let (notifier, _) = Notifier::spawn(settings, store.clone(), followed).await.unwrap();
        let (planner, wal) = (Planner::new(context.clone()), Wal::new(context.clone()));
        let keeper = Keeper::new(context.clone());
        let (jobs, _) = JobsHandle::spawn(context.clone(), [stanza.clone()], pulses.add("jobs"));
        let fixed =
            options.schedules.into_iter().map(|schedule| (schedule, Origin::File)).collect();
        let (scheduler, _) =
            SchedulerHandle::spawn(context.clone(), jobs.clone(), fixed, pulses.add("scheduler"))
                .await;
        let metrics = Metrics::new(options.metrics, jiff::tz::TimeZone::UTC);
        let counted = jobs::tally::history(&store, &metrics).await.unwrap();
        tokio::spawn(jobs::tally::follow(store.clone(), jobs.events(), metrics.clone(), counted));
        let parts = monitor::Parts {
            context,
            jobs: jobs.clone(),
            planner: planner.clone(),
            scheduler: scheduler.clone(),
            gauges: metrics.gauges().clone(),
            notifier: notifier.clone(),
            stanzas: vec![stanza.clone()],
        };
        let pulse = pulses.add("monitor");
        let monitor = MonitorHandle::spawn(parts, &HealthConfig::default(), pulse).await;
        let state = AppState::new(Shared {
            jobs,
            postgres: PostgresHandle::beside(),
            planner,
            wal,
            keeper,
            scheduler,
            monitor,
            fence_dir: None,
            catalog,
            store: store.clone(),
            notifier,
            auth: Auth::new(options.auth, Some(&TOKEN.to_owned().into())),
            stanzas: vec![stanza],
            allowed_hosts: vec!["localhost".to_owned()],
            short_routes: options.short_routes,
            pgbackrest: None,
            metrics: metrics.clone(),
            pulses,
            shutdown: shutdown.clone(),
        });
        Self { router: router::router(&state), directory, metrics, store, shutdown }
    }

    /// What a Headrest that is started now on the same history counts.
    pub(crate) async fn count_again(&self) -> Metrics {
        let metrics = Metrics::new(MetricsConfig::default(), jiff::tz::TimeZone::UTC);
        jobs::tally::history(&self.store, &metrics).await.unwrap();
        metrics
    }

    /// A request with the token.
    pub(crate) fn request(method: &str, path: &str) -> axum::http::request::Builder {
        Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {TOKEN}"))
    }

    pub(crate) async fn send(&self, mut request: Request<Body>) -> Answer {
        let from = std::net::SocketAddr::from(([127, 0, 0, 1], 50_000));
        request.extensions_mut().insert(ConnectInfo(from));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let gzipped = parts.headers.get("content-encoding").is_some_and(|coding| coding == "gzip");
        let text = if gzipped {
            let mut text = String::new();
            flate2::read::GzDecoder::new(bytes.as_ref()).read_to_string(&mut text).unwrap();
            text
        } else {
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Self::request("GET", path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.post_with(path, body, &[]).await
    }

    pub(crate) async fn post_with(
        &self,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Self::request("POST", path).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Looks until it is so; panics when it is not in time.
pub(crate) async fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !look() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes an executable shell script.
pub(crate) fn fake(directory: &Path, script: &str) -> PathBuf {
    let path = directory.join("pgbackrest");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}
