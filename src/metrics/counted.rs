//! What is counted while Headrest runs: jobs that ended, requests that were answered.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::domain::job::{JobKind, Outcome};
use crate::store::EndedJob;

/// From a check that takes a second to a backup that takes a day.
const JOB_SECONDS: [f64; 12] =
    [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14_400.0, 43_200.0, 86_400.0];
/// From an answer out of memory to one that waits for `info` or for a job.
const REQUEST_SECONDS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0];
/// The methods that are told apart; a caller can invent any number of others.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
/// The route of a request that no route is for.
const UNMATCHED: &str = "unmatched";

/// A request that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a str,
    /// The route that it matched, with the names of its parameters.
    pub route: Option<&'a str>,
    /// The answer's status.
    pub status: u16,
    /// How long the answer took to begin.
    pub took: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    method: &'static str,
    route: String,
}

#[derive(Debug)]
pub(super) struct Counted {
    jobs: Family<Ended, Counter>,
    job_seconds: Family<OfKind, Histogram>,
    requests: Family<Answered, Counter>,
    request_seconds: Family<OfRoute, Histogram>,
}

impl Counted {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let counted = Self {
            jobs: Family::default(),
            job_seconds: Family::new_with_constructor(|| Histogram::new(JOB_SECONDS)),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(|| Histogram::new(REQUEST_SECONDS)),
        };
        // What has never happened is 0 and not absent: the first failure must be an increase.
        for kind in JobKind::ALL {
            drop(counted.job_seconds.get_or_create(&OfKind { kind: kind.as_str() }));
            for outcome in Outcome::ALL {
                drop(counted.jobs.get_or_create(&ended(*kind, *outcome)));
            }
        }
        registry.register(
            "headrest_jobs",
            "Jobs that ended, all that the history has",
            counted.jobs.clone(),
        );
        registry.register(
            "headrest_job_duration_seconds",
            "How long jobs were at work, all that the history has",
            counted.job_seconds.clone(),
        );
        registry.register(
            "headrest_http_requests",
            "Requests that were answered",
            counted.requests.clone(),
        );
        registry.register(
            "headrest_http_request_duration_seconds",
            "How long answers took to begin",
            counted.request_seconds.clone(),
        );
        counted
    }

    pub(super) fn job(&self, end: EndedJob) {
        self.jobs.get_or_create(&ended(end.kind, end.outcome)).inc();
        if let Some(took) = end.took {
            let labels = OfKind { kind: end.kind.as_str() };
            self.job_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    pub(super) fn request(&self, request: Request<'_>) {
        let known = METHODS.into_iter().find(|known| *known == request.method);
        let (method, route) =
            (known.unwrap_or("other"), request.route.unwrap_or(UNMATCHED).to_owned());
        let answered = Answered { method, route: route.clone(), status: request.status };
        self.requests.get_or_create(&answered).inc();
        let labels = OfRoute { method, route };
        self.request_seconds.get_or_create(&labels).observe(request.took.as_secs_f64());
    }
}

fn ended(kind: JobKind, outcome: Outcome) -> Ended {
    Ended { kind: kind.as_str(), outcome: outcome.as_str() }
}
