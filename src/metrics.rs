//! What is measured, and how it is written for Prometheus (OpenMetrics 1.0).
//!
//! [`exporter`] turns what `info` said into the metrics of `pgbackrest_exporter`, purely. [`Metrics`]
//! holds what is counted while Headrest runs (`headrest_*`), [`Gauges`] what the loops of Headrest
//! found out last. Reading all of it is a matter of memory: nothing here may run a program, read a
//! file or wait. There is no global registry; the composition root makes a [`Metrics`] and hands out
//! clones of it.

mod counted;
pub mod exporter;
mod family;
mod gauges;
mod service;

use std::fmt;
use std::sync::Arc;

use jiff::tz::TimeZone;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use crate::config::MetricsConfig;
use crate::store::EndedJob;

pub use counted::Request;
pub use family::{Family, Kind, Label, Labels, Sample};
pub use gauges::{Gauges, NextRun, Notified};
pub use service::{Lane, Process, Service};

/// The media type of what [`Metrics::encode`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is measured; clones share it.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: MetricsConfig,
    zone: TimeZone,
    registry: Registry,
    counted: counted::Counted,
    gauges: Gauges,
}

impl Metrics {
    /// Nothing measured yet. `zone` is the one in which pgBackRest prints times here.
    pub fn new(config: MetricsConfig, zone: TimeZone) -> Self {
        let mut registry = Registry::default();
        let counted = counted::Counted::registered(&mut registry);
        Self(Arc::new(Inner { config, zone, registry, counted, gauges: Gauges::default() }))
    }

    /// What is configured.
    pub fn config(&self) -> &MetricsConfig {
        &self.0.config
    }

    /// The zone of times in labels.
    pub fn zone(&self) -> &TimeZone {
        &self.0.zone
    }

    /// The values that the loops of Headrest set.
    pub fn gauges(&self) -> &Gauges {
        &self.0.gauges
    }

    /// Counts a job that has ended.
    pub fn job_ended(&self, end: EndedJob) {
        self.0.counted.job(end);
    }

    /// Counts a request that was answered.
    pub fn answered(&self, request: Request<'_>) {
        self.0.counted.request(request);
    }

    /// The text of a scrape: `families`, what was counted, and what the gauges hold.
    pub fn encode(&self, mut families: Vec<Family>) -> Result<String, fmt::Error> {
        families.extend(self.0.gauges.families());
        let mut text = String::new();
        text::encode_registry(&mut text, &family::registry(families))?;
        text::encode_registry(&mut text, &self.0.registry)?;
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
