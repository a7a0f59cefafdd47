//! Looks at a stanza's repositories once in a while: `info`, and whether its WAL is whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::Parts;
use crate::domain::archive::Gap;
use crate::domain::health::WalFacts;
use crate::domain::job::{BackupOptions, BackupSpec, JobSpec, OnConflict, Trigger};
use crate::domain::plan::{Catalogue, Set};
use crate::domain::window::Window;
use crate::domain::{Annotations, BackupType, RepoKey, StanzaName, WalSegment};
use crate::jobs::Submission;
use crate::jobs::catalog::Freshness;
use crate::jobs::plans::Look;

/// How long a look may take before the repository counts as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon a backup that a gap asked for is asked for again.
const ASK_AGAIN: Duration = Duration::from_mins(15);
/// What asks for it.
const TRIGGER: &str = "wal-gap";

/// What the last look found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// When it began.
    pub(super) began: Instant,
    /// Why there is no answer. What `info` said is remembered elsewhere.
    pub(super) failed: Option<String>,
    /// The archive, when it could be compared with the server.
    pub(super) wal: Option<WalFacts>,
}

/// Looks at one stanza's repositories.
pub(super) struct Looker {
    pub(super) parts: Parts,
    pub(super) stanza: StanzaName,
    pub(super) interval: Duration,
    pub(super) looks: watch::Sender<BTreeMap<StanzaName, Found>>,
    /// Somebody wants to know now.
    pub(super) kick: Arc<Notify>,
}

impl Looker {
    pub(super) async fn run(self) {
        let shutdown = self.parts.context.shutdown.clone();
        let _ = shutdown.run_until_cancelled(self.look_for_ever()).await;
    }

    async fn look_for_ever(&self) {
        let mut asked: Option<Instant> = None;
        let mut missing_before = false;
        let mut wanted = false;
        loop {
            let found = self.look(wanted).await;
            let missing = found
                .wal
                .as_ref()
                .is_some_and(|wal| !wal.missing.is_empty() || wal.dropped.is_some());
            // Twice in a row: the first is for people to see, and it may be a look at a bad moment.
            if missing && missing_before && asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
                asked = Some(Instant::now());
                self.ask_for_backup().await;
            }
            missing_before = missing;
            self.looks.send_modify(|all| {
                all.insert(self.stanza.clone(), found);
            });
            wanted = tokio::select! {
                () = sleep(self.interval) => false,
                () = self.kick.notified() => true,
            };
        }
    }

    /// Looks; `wanted` by somebody who wants to know how it is now.
    async fn look(&self, wanted: bool) -> Found {
        let began = Instant::now();
        let failed = |why: String| Found { began, failed: Some(why), wal: None };
        let seconds = PATIENCE.as_secs();
        // Who looked meanwhile looked for us, too.
        let recent = Freshness::Within(self.interval.min(Duration::from_secs(5)));
        let enough = if wanted { Freshness::New } else { recent };
        let catalog = &self.parts.context.catalog;
        let seen = match timeout(PATIENCE, catalog.observe(&self.stanza, enough)).await {
            Err(_) => return failed(format!("pgbackrest info does not answer within {seconds} s")),
            Ok(Err(unavailable)) => return failed(unavailable.reason),
            // An answer of long before would do for a page; here it must be from now.
            Ok(Ok(seen)) if seen.age() > self.interval + PATIENCE => {
                return failed("pgbackrest info has not answered for a while".to_owned());
            }
            Ok(Ok(seen)) => seen,
        };
        let began = began.checked_sub(seen.age()).unwrap_or(began);
        match timeout(PATIENCE, self.wal()).await {
            Ok(wal) => Found { began, failed: None, wal },
            Err(_) => failed(format!("the archive cannot be listed within {seconds} s")),
        }
    }

    /// The archive of a server that takes writes, compared with it.
    async fn wal(&self) -> Option<WalFacts> {
        let context = &self.parts.context;
        context.server.as_ref().filter(|side| side.stanza == self.stanza)?;
        // Before the look: what is archived meanwhile is not missing.
        let status = context.postgres.status();
        let archived = status.archiver.as_ref().and_then(|facts| facts.last_archived_wal.clone());
        if !status.takes_writes() {
            return None;
        }
        let look = self.parts.planner.windows(&self.stanza).await.ok()?;
        let (catalogue, gauges) = (&look.ground.catalogue, &self.parts.gauges);
        let size = catalogue.segment_size;
        let archived = archived.and_then(|name| WalSegment::parse(&name, size).ok());
        let mut facts = WalFacts::default();
        let own: Vec<&Window> = look.windows.iter().filter(|window| window.is_current).collect();
        for window in &own {
            let moments = window.from().zip(window.to());
            gauges.set_recovery_window(&self.stanza, window.repo, moments);
            let missing = window.gaps.iter().map(Gap::segments).sum();
            gauges.set_wal_gap(&self.stanza, window.repo, Some(missing));
            let newest = newest_set(catalogue, window.repo)?;
            let begin = newest.archive_start.number();
            // Several workers archive at once: before the server takes a segment for archived a
            // later one may be there already.
            let settled = |gap: &&Gap| {
                archived.is_none_or(|last| {
                    gap.first.timeline() != last.timeline() || gap.first.number() <= last.number()
                })
            };
            for gap in window.gaps.iter().filter(settled) {
                let told = if own.len() > 1 {
                    format!("{gap} in repository {}", window.repo)
                } else {
                    gap.to_string()
                };
                if gap.last.number() >= begin {
                    facts.missing.push(told);
                } else {
                    facts.missing_before.push(told);
                }
            }
        }
        facts.dropped = archived.filter(|last| is_dropped(&look, *last)).map(|s| s.to_string());
        Some(facts)
    }

    /// A new backup makes what is written from now on safe again.
    async fn ask_for_backup(&self) {
        let lane = self.parts.jobs.lane(&self.stanza);
        if lane.is_some_and(|lane| lane.running.is_some() || lane.waiting > 0) {
            return;
        }
        let submission = Submission {
            spec: JobSpec::Backup(BackupSpec {
                stanza: self.stanza.clone(),
                repo: None,
                backup_type: BackupType::Full,
                annotations: Annotations::default(),
                options: BackupOptions::default(),
            }),
            trigger: Trigger::Event(TRIGGER.to_owned()),
            by: "headrest".to_owned(),
            on_conflict: OnConflict::Refuse,
            idempotency_key: None,
            tried_again: false,
        };
        match self.parts.jobs.submit(submission).await {
            Ok(job) => tracing::warn!(
                stanza.name = %self.stanza, job.id = %job.id,
                "WAL of stanza {} is missing: full backup {} makes what follows safe again",
                self.stanza, job.id
            ),
            Err(denied) => tracing::warn!("no backup after a gap in the WAL: {denied}"),
        }
    }
}

/// The newest set of a repository on the server's own timeline.
fn newest_set(catalogue: &Catalogue, repo: RepoKey) -> Option<&Set> {
    let branch = catalogue.timelines.branch(catalogue.current?);
    let own = catalogue
        .sets
        .iter()
        .filter(|set| set.repo == repo && branch.holds(set.archive_start.timeline(), set.lsn_stop));
    own.max_by_key(|set| set.lsn_stop)
}

/// Whether the server takes a segment for archived that no repository has. What is older than every
/// backup may have expired.
fn is_dropped(look: &Look, last: WalSegment) -> bool {
    let catalogue = &look.ground.catalogue;
    let repos = look.ground.archives.keys();
    let begins = repos.filter_map(|repo| newest_set(catalogue, *repo));
    let begin = begins.map(|set| set.archive_start.number()).max();
    catalogue.current == Some(last.timeline())
        && begin.is_some_and(|begin| last.number() >= begin)
        && !catalogue.archived.has(last)
}
