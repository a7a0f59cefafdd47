//! What is read from the service itself at each scrape.

use super::family::{Family, Labels, flag, number};
use crate::domain::StanzaName;
use crate::domain::job::JobKind;
use crate::pgbackrest::version::Version;

/// A supervised process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its name, as in the API.
    pub name: &'static str,
    /// Whether it is there.
    pub up: bool,
    /// Starts after an unexpected exit.
    pub restarts: u64,
}

/// What a stanza's lane is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane<'a> {
    /// The stanza.
    pub stanza: &'a StanzaName,
    /// The kind of the job that has it.
    pub running: Option<JobKind>,
}

/// The service at the moment of a scrape.
#[derive(Debug, Clone)]
pub struct Service<'a> {
    /// Its children.
    pub processes: Vec<Process>,
    /// Its lanes.
    pub lanes: Vec<Lane<'a>>,
    /// pgBackRest's version, when it could be asked.
    pub pgbackrest: Option<&'a Version>,
}

impl Service<'_> {
    /// The families.
    pub fn families(&self) -> Vec<Family> {
        let process = |process: &Process| Labels::new([("process", process.name.to_owned())]);
        let running = self.lanes.iter().flat_map(|lane| {
            JobKind::ALL.iter().map(|kind| {
                let labels =
                    Labels::new([("kind", kind.to_string()), ("stanza", lane.stanza.to_string())]);
                (labels, flag(lane.running == Some(*kind)))
            })
        });
        let build = Labels::new([
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("pgbackrest_version", self.pgbackrest.map(Version::to_string).unwrap_or_default()),
        ]);
        vec![
            Family::gauge(
                "headrest_build_info",
                "The versions of Headrest and of the pgBackRest that it runs.",
                [(build, 1.0)],
            ),
            Family::gauge(
                "headrest_process_up",
                "Whether the supervised process is there.",
                self.processes.iter().map(|one| (process(one), flag(one.up))),
            ),
            Family::counter(
                "headrest_process_restarts",
                "Starts of the supervised process after an unexpected exit.",
                self.processes.iter().map(|one| (process(one), number(one.restarts))),
            ),
            Family::gauge(
                "headrest_job_running",
                "Whether a job of this kind has the stanza's lane.",
                running,
            ),
        ]
    }
}
