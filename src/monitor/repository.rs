//! Looks at a stanza's repositories once in a while: `info`, and whether its WAL is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::Parts;
use crate::domain::archive::Gap;
use crate::domain::health::WalFacts;
use crate::domain::job::{BackupSpec, JobSpec};
use crate::domain::plan::{Catalogue, Set};
use crate::domain::window::Window;
use crate::domain::{BackupType, JobId, JobState, RepoKey, StanzaName, WalSegment};
use crate::jobs::Submission;
use crate::jobs::catalog::Freshness;
use crate::jobs::plans::Look;

/// How long a look may take before the repository counts as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon a bad look is followed by another one.
const SECOND_LOOK: Duration = Duration::from_secs(5);
/// How soon a backup that a gap asked for, and that failed, is asked for again.
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
    /// It was a bad look, and the one before was good: the next one comes soon.
    pub(super) is_unsure: bool,
    /// The archive, when it could be compared with the server.
    pub(super) wal: Option<WalFacts>,
    /// The repositories in which something is missing since their newest backup.
    gaps_in: BTreeSet<RepoKey>,
}

/// A backup that a gap asked for.
struct Asked {
    /// The gap.
    missing: String,
    jobs: Vec<JobId>,
    at: Instant,
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
        let _ = shutdown.run_until_cancelled(Box::pin(self.look_for_ever())).await;
    }

    async fn look_for_ever(&self) {
        let mut asked: Option<Asked> = None;
        let (mut missing_before, mut was_bad) = (None, false);
        // The first look waits for an answer, however long that takes.
        let mut wanted = true;
        loop {
            let mut found = self.look(wanted).await;
            let missing = found.missing();
            // The first time is for people to see, and it may be a look at a bad moment.
            if let Some(missing) = missing.clone().filter(|_| missing == missing_before) {
                asked = self.see_to(missing, &found.gaps_in, asked).await;
            }
            missing_before = missing;
            let is_bad = found.failed.is_some();
            found.is_unsure = is_bad && !was_bad;
            let nap = if found.is_unsure { self.interval.min(SECOND_LOOK) } else { self.interval };
            was_bad = is_bad;
            self.looks.send_modify(|all| {
                all.insert(self.stanza.clone(), found);
            });
            wanted = tokio::select! {
                () = sleep(nap) => was_bad,
                () = self.kick.notified() => true,
            };
        }
    }

    /// Looks; `wanted` by somebody who wants to know how it is now.
    async fn look(&self, wanted: bool) -> Found {
        let began = Instant::now();
        let found = |failed, wal, gaps_in| Found { began, failed, is_unsure: false, wal, gaps_in };
        let failed = |why: String| {
            self.forget_gauges();
            found(Some(why), None, BTreeSet::new())
        };
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
        let (wal, gaps_in) = match timeout(PATIENCE, self.wal()).await {
            Ok(Some((wal, gaps_in))) => (Some(wal), gaps_in),
            Ok(None) => {
                self.forget_gauges();
                (None, BTreeSet::new())
            }
            Err(_) => return failed(format!("the archive cannot be listed within {seconds} s")),
        };
        let began = began.checked_sub(seen.age()).unwrap_or(began);
        Found { began, failed: None, is_unsure: false, wal, gaps_in }
    }

    /// What is not known now is not told as if it were.
    fn forget_gauges(&self) {
        let seen = self.parts.context.catalog.last(&self.stanza).and_then(Result::ok);
        for repo in seen.iter().flat_map(|seen| &seen.stanza.repos) {
            self.parts.gauges.set_wal_gap(&self.stanza, repo.key, None);
            self.parts.gauges.set_recovery_window(&self.stanza, repo.key, None);
        }
    }

    /// The archive of a server that takes writes, compared with it.
    async fn wal(&self) -> Option<(WalFacts, BTreeSet<RepoKey>)> {
        let context = &self.parts.context;
        context.server.as_ref().filter(|side| side.stanza == self.stanza)?;
        // Before the look: what is archived meanwhile is not missing.
        let status = context.postgres.status();
        let archived = status.archiver.as_ref().and_then(|facts| facts.last_archived_wal.clone());
        if !status.takes_writes() {
            return None;
        }
        // Not what was listed before that.
        self.parts.planner.look_again(&self.stanza).await;
        let look = self.parts.planner.windows(&self.stanza).await.ok()?;
        let (catalogue, gauges) = (&look.ground.catalogue, &self.parts.gauges);
        let size = catalogue.segment_size;
        let archived = archived.and_then(|name| WalSegment::parse(&name, size).ok());
        let (mut facts, mut gaps_in) = (WalFacts::default(), BTreeSet::new());
        let own: Vec<&Window> = look.windows.iter().filter(|window| window.is_current).collect();
        for window in &own {
            let moments = window.from().zip(window.to());
            gauges.set_recovery_window(&self.stanza, window.repo, moments);
            let Some(newest) = newest_set(catalogue, window.repo) else { continue };
            let begin = newest.archive_start.number();
            // Several workers archive at once: before the server takes a segment for archived a
            // later one may be there already.
            let settled = |gap: &&Gap| {
                archived.is_none_or(|last| {
                    gap.first.timeline() != last.timeline() || gap.first.number() <= last.number()
                })
            };
            let mut segments = 0;
            for gap in window.gaps.iter().filter(settled) {
                let told = if own.len() > 1 {
                    format!("{gap} in repository {}", window.repo)
                } else {
                    gap.to_string()
                };
                if gap.last.number() >= begin {
                    segments += gap.segments();
                    gaps_in.insert(window.repo);
                    facts.missing.push(told);
                } else {
                    facts.missing_before.push(told);
                }
            }
            gauges.set_wal_gap(&self.stanza, window.repo, Some(segments));
        }
        facts.dropped = archived.filter(|last| is_dropped(&look, *last)).map(|s| s.to_string());
        if facts.dropped.is_some() {
            gaps_in.extend(own.iter().map(|window| window.repo));
        }
        Some((facts, gaps_in))
    }

    /// A new backup makes what is written from now on safe again: in each repository where WAL is
    /// missing, once for each gap. Only what failed is tried again, after a while.
    async fn see_to(
        &self,
        missing: String,
        repos: &BTreeSet<RepoKey>,
        asked: Option<Asked>,
    ) -> Option<Asked> {
        if let Some(asked) = asked.filter(|asked| asked.missing == missing) {
            let store = &self.parts.context.store;
            let mut failed = false;
            for job in &asked.jobs {
                let job = store.job(*job).await.ok().flatten();
                failed |= job.is_some_and(|job| {
                    matches!(job.state, JobState::Failed | JobState::Interrupted)
                });
            }
            if !failed || asked.at.elapsed() < ASK_AGAIN {
                return Some(asked);
            }
        }
        let lane = self.parts.jobs.lane(&self.stanza);
        if lane.is_some_and(|lane| lane.running.is_some() || lane.waiting > 0) {
            return None;
        }
        let several = self.parts.context.catalog.last(&self.stanza).and_then(Result::ok);
        let several = several.is_some_and(|seen| seen.stanza.repos.len() > 1);
        let mut jobs = Vec::new();
        for repo in repos {
            jobs.extend(self.ask_for_backup(several.then_some(*repo)).await);
        }
        // What nobody accepted is asked for with the next look.
        (!jobs.is_empty()).then(|| Asked { missing, jobs, at: Instant::now() })
    }

    async fn ask_for_backup(&self, repo: Option<RepoKey>) -> Option<JobId> {
        let plain = BackupSpec::plain(self.stanza.clone(), BackupType::Full);
        let spec = JobSpec::Backup(BackupSpec { repo, ..plain });
        match self.parts.jobs.submit(Submission::of_event(spec, TRIGGER)).await {
            Ok(job) => {
                tracing::warn!(
                    stanza.name = %self.stanza, job.id = %job.id,
                    "WAL of stanza {} is missing: full backup {} makes what follows safe again",
                    self.stanza, job.id
                );
                Some(job.id)
            }
            Err(denied) => {
                tracing::warn!("no backup after a gap in the WAL: {denied}");
                None
            }
        }
    }
}

impl Found {
    /// What is missing since the newest backup, as a name for it.
    fn missing(&self) -> Option<String> {
        let wal = self.wal.as_ref()?;
        let all: Vec<&str> = wal.missing.iter().chain(&wal.dropped).map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
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
