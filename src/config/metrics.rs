//! What is measured beyond what always is, and who may see it.

use super::reader::Reader;

/// The metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four switches that know nothing of each other")]
pub struct MetricsConfig {
    /// Whether `/metrics` is open to everybody, as the probes are.
    pub public: bool,
    /// Whether the references of every backup are counted, not only those of the last ones.
    pub reference_count: bool,
    /// Whether the metric of the archive has the first and the last segment as labels.
    pub verbose_wal: bool,
    /// Whether names that `pgbackrest_exporter` has given up are there too.
    pub legacy_names: bool,
}

pub(super) fn metrics(reader: &mut Reader<'_>) -> MetricsConfig {
    MetricsConfig {
        public: reader.get("metrics_public", false),
        reference_count: reader.get("metrics.reference_count", false),
        verbose_wal: reader.get("metrics.verbose_wal", false),
        legacy_names: reader.get("metrics.legacy_names", false),
    }
}
