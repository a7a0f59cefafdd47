//! A metric family as a value, and its way into the encoder.
//!
//! Gauges keep exactly the name that they are given, and a family without samples is not written at
//! all, as `client_golang` does it: boards and rules rely on both.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

/// A name and its value.
pub type Label = (&'static str, String);

/// The labels of a sample, in the order of their names; clones share them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(Arc<[Label]>);

/// What kind of values a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// They go up and down.
    Gauge,
    /// They only grow. Written with `_total` after the family's name.
    Counter,
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What it is the value of.
    pub labels: Labels,
    /// The value.
    pub value: f64,
}

/// All values of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// The name; a counter's without `_total`.
    pub name: &'static str,
    /// What it means, a sentence.
    pub help: &'static str,
    /// What kind of values it has.
    pub kind: Kind,
    /// The values.
    pub samples: Vec<Sample>,
}

impl Labels {
    /// These labels, sorted.
    pub fn new(labels: impl IntoIterator<Item = Label>) -> Self {
        let mut labels: Vec<Label> = labels.into_iter().collect();
        labels.sort_unstable_by_key(|(name, _)| *name);
        Self(labels.into())
    }

    /// These labels and more.
    #[must_use]
    pub fn and(&self, more: impl IntoIterator<Item = Label>) -> Self {
        Self::new(self.0.iter().cloned().chain(more))
    }

    /// Name and value of each.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.0.iter()
    }
}

impl Family {
    /// A family of gauges.
    pub fn gauge(
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Self {
        Self::of(Kind::Gauge, name, help, samples)
    }

    /// A family of counters; `name` is without `_total`.
    pub fn counter(
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Self {
        Self::of(Kind::Counter, name, help, samples)
    }

    fn of(
        kind: Kind,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Self {
        let samples = samples.into_iter().map(|(labels, value)| Sample { labels, value }).collect();
        Self { name, help, kind, samples }
    }
}

/// A count or a number of bytes as a sample's value.
#[expect(clippy::cast_precision_loss, reason = "a sample is a float: exact up to 2^53, 9 PB")]
pub(super) fn number(value: u64) -> f64 {
    value as f64
}

/// 1 for yes.
pub(super) fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// A registry of one scrape that holds these.
pub(super) fn registry(families: Vec<Family>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(families)));
    registry
}

#[derive(Debug)]
struct Scrape(Vec<Family>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in self.0.iter().filter(|family| !family.samples.is_empty()) {
            let kind = match family.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for sample in &family.samples {
                let mut one = metric.encode_family(&sample.labels)?;
                match family.kind {
                    Kind::Gauge => one.encode_gauge(&sample.value)?,
                    Kind::Counter => {
                        one.encode_counter(&sample.value, None::<&Exemplar<Labels, f64>>)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(name, value)| (*name, value.as_str()).encode(encoder.encode_label()))
    }
}
