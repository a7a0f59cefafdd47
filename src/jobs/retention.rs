//! What retention depends on, gathered: backups, pins, what is in use, and the options of both
//! programs. `domain::retention` decides; `jobs::expire` carries it out.
//!
//! A pin counts from the moment it is stored here. A copy of it is written into the repository as an
//! annotation, because the store can be lost: a backup with that annotation is pinned unless it was
//! unpinned here.

mod holds;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use super::catalog::{FRESH_ENOUGH, Freshness, Observation, Unavailable};
use super::context::Context;
use super::journal::JournalError;
use super::worker::problem;
use crate::clock;
use crate::config::RetentionConfig;
use crate::domain::job::{AnnotateSpec, JobError, JobSpec};
use crate::domain::retention::{
    self, ArchiveType, Counts, FullRetention, Held, Hold, Refused, Removal, RepoPlan, Rules,
    WalLimit,
};
use crate::domain::sets::{Judgement, Judgements, Verified};
use crate::domain::{Annotations, BackupLabel, JobId, RepoKey, StanzaName};
use crate::pgbackrest::conf::UserOptions;
use crate::pgbackrest::info::{Backup, StanzaInfo};
use crate::store::StoreError;

/// The annotation that says that a backup is pinned, and by whom.
pub const PIN_KEY: &str = "headrest-pin";
/// How long a pin waits for an expire that is under way.
const GATE_PATIENCE: Duration = Duration::from_secs(20);

/// What is configured of retention; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Retention {
    /// Headrest's own part.
    pub config: RetentionConfig,
    /// What the user set for pgBackRest, per stanza.
    pub options: BTreeMap<StanzaName, UserOptions>,
    /// One of each stanza. Held while its backups are removed, and while a pin is set: none is
    /// removed by a decision that was made before it was pinned.
    gates: Arc<StdMutex<BTreeMap<StanzaName, Arc<Mutex<()>>>>>,
}

impl Retention {
    /// Of this configuration.
    pub fn new(config: RetentionConfig, options: BTreeMap<StanzaName, UserOptions>) -> Self {
        Self { config, options, gates: Arc::default() }
    }

    pub(super) async fn gate(&self, stanza: &StanzaName) -> OwnedMutexGuard<()> {
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(gates.entry(stanza.clone()).or_default())
        };
        gate.lock_owned().await
    }

    /// The value of an option that counts for `expire`, or for what follows a backup.
    pub fn option(&self, stanza: &StanzaName, option: &str) -> Option<&str> {
        let options = self.options.get(stanza)?;
        options.get_for("expire", option).or_else(|| options.get_for("backup", option))
    }

    /// Whether it counts for that only, so that a plain `expire` would not see it.
    fn is_for_backup_only(&self, stanza: &StanzaName, option: &str) -> bool {
        let options = self.options.get(stanza);
        options.is_some_and(|options| options.get_for("expire", option).is_none())
            && self.option(stanza, option).is_some()
    }
}

/// Everything about one stanza.
#[derive(Debug, Clone)]
pub struct Ground {
    /// What `info` said.
    pub seen: Arc<Observation>,
    /// The backups.
    pub backups: Vec<Held>,
    /// What decides about them.
    pub rules: Rules,
    /// pgBackRest's options that count, as they are set, per repository.
    pub options: BTreeMap<RepoKey, Vec<(String, String)>>,
    /// Which repositories' counts the user has set, rather than Headrest.
    pub set_by_user: BTreeSet<RepoKey>,
    /// Something is set in a section of `backup`, where a plain `expire` does not look.
    for_backup_only: bool,
}

/// Why retention cannot be told, or a pin cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// `info` cannot be had.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The history cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be told whether a restore works with a backup.
    #[error("what a restore works with cannot be told: {0}")]
    Journal(#[from] JournalError),
    /// The backup must stay, or there is none.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// `retention.pins` is off.
    #[error("backups cannot be pinned: retention.pins is false in Headrest's configuration")]
    PinsOff,
    /// What a restore keeps is needed to end it.
    #[error("restore {0} stopped half way: what it keeps is needed to end it")]
    Unfinished(JobId),
    /// Backups are being removed.
    #[error("backups of stanza {0} are being removed at present")]
    Removing(StanzaName),
}

/// Refuses a repository that the stanza does not have.
pub(super) fn find_repo(seen: &Observation, wanted: Option<RepoKey>) -> Result<(), JobError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let known: Vec<String> = seen.stanza.repos.iter().map(|repo| repo.key.to_string()).collect();
    // Without a stanza none is listed; what is asked for fails by itself then.
    if known.is_empty() || seen.stanza.repos.iter().any(|repo| repo.key == wanted) {
        return Ok(());
    }
    let (stanza, known) = (&seen.stanza.name, known.join(", "));
    let message = format!("stanza {stanza} has no repository {wanted}; it has {known}");
    Err(problem("config-invalid", message, &["Name one of these, or none for every one."]))
}

/// Gathers everything.
pub(super) async fn gather(
    context: &Context,
    stanza: &StanzaName,
    freshness: Freshness,
) -> Result<Ground, RetentionError> {
    let seen = context.catalog.observe(stanza, freshness).await?;
    let repos: BTreeSet<RepoKey> = seen.stanza.repos.iter().map(|repo| repo.key).collect();
    let added = context.server_env(stanza);
    let mut counts = BTreeMap::new();
    let mut options: BTreeMap<RepoKey, Vec<(String, String)>> = BTreeMap::new();
    let mut set_by_user = BTreeSet::new();
    let mut for_backup_only = false;
    for repo in repos {
        let value = |name: &str| {
            let option = format!("repo{repo}-retention-{name}");
            let set = context.retention.option(stanza, &option).map(str::to_owned);
            let variable = format!("PGBACKREST_{}", option.to_uppercase().replace('-', "_"));
            (option, set.or_else(|| added.get(&variable).cloned()))
        };
        let found = ["full", "full-type", "diff", "archive", "archive-type"].map(value);
        for_backup_only |=
            found.iter().any(|(option, _)| context.retention.is_for_backup_only(stanza, option));
        let user = |name: &str| {
            context.retention.option(stanza, &format!("repo{repo}-retention-{name}")).is_some()
        };
        if ["full", "diff"].iter().any(|name| user(name)) {
            set_by_user.insert(repo);
        }
        counts.insert(repo, counts_of(&found.clone().map(|(_, value)| value)));
        let known = found.into_iter().filter_map(|(name, value)| Some((name, value?)));
        options.insert(repo, known.collect());
    }
    let rules = Rules {
        policy: context.retention.config.policy,
        timezone: context.retention.config.timezone.clone(),
        counts,
        pins: pins(context, stanza, &seen.stanza).await?,
        in_use: in_use(context, stanza).await?,
        holds: holds::holds(context, stanza).await?,
    };
    let backups =
        held(&seen.stanza, &super::sets::judge(&context.store, stanza, &seen.stanza).await?);
    Ok(Ground { seen, backups, rules, options, set_by_user, for_backup_only })
}

/// `full`, `full-type` and `diff` as counts. The largest possible count limits nothing.
fn counts_of(values: &[Option<String>; 5]) -> Counts {
    let number = |value: &Option<String>| {
        let number = value.as_ref().and_then(|text| text.trim().parse::<u32>().ok());
        number.filter(|n| *n < crate::pgbackrest::conf::ALL_FULLS)
    };
    let by_time = values[1].as_deref() == Some("time");
    let full = number(&values[0])
        .map(|n| if by_time { FullRetention::Days(n) } else { FullRetention::Count(n) });
    Counts { full, diff: number(&values[2]) }
}

/// The backups of all repositories.
fn held(stanza: &StanzaInfo, judgements: &Judgements) -> Vec<Held> {
    let one = |backup: &Backup| {
        let repo = backup.repo_key.unwrap_or(RepoKey::FIRST);
        let judgement = judgements.get(&(repo, backup.label.clone()));
        Held {
            label: backup.label.clone(),
            repo,
            stopped_at: backup.stopped_at,
            own_bytes: backup.repo_delta_bytes,
            bad: judgement.is_some_and(|judgement| judgement.state.is_bad()),
            needs: backup.prior.iter().chain(&backup.reference).cloned().collect(),
        }
    };
    stanza.backups.iter().map(one).collect()
}

async fn pins(
    context: &Context,
    stanza: &StanzaName,
    info: &StanzaInfo,
) -> Result<BTreeSet<BackupLabel>, StoreError> {
    let stored = context.store.pins(stanza.clone()).await?;
    let is_pinned = |backup: &&Backup| {
        let annotated = backup.annotations.contains_key(PIN_KEY);
        stored.get(&backup.label).copied().unwrap_or(annotated)
    };
    Ok(info.backups.iter().filter(is_pinned).map(|backup| backup.label.clone()).collect())
}

/// The backups that a restore works with, or will.
async fn in_use(
    context: &Context,
    stanza: &StanzaName,
) -> Result<BTreeMap<BackupLabel, String>, RetentionError> {
    let mut found = BTreeMap::new();
    for (job, _) in context.store.unfinished_jobs().await? {
        if let JobSpec::Restore(spec) = &job.spec
            && spec.stanza == *stanza
            && let Some(pinned) = &spec.pinned
        {
            found.insert(pinned.set.clone(), format!("restore {}", job.id));
        }
    }
    // One that was left half-done is needed to get out of it, whatever became of its job.
    // One that cannot be read may say so, too: then nothing is removed.
    if let Some(journal) = context.journals.read(stanza)?
        && !journal.data_is_whole()
    {
        found.insert(journal.set, format!("restore {}", journal.id));
    }
    Ok(found)
}

impl Ground {
    /// What stays and goes.
    pub fn plan(&self) -> Vec<RepoPlan> {
        retention::plan(&self.backups, &self.rules, clock::now())
    }

    /// The backups that a full would let go if it ended now, in the repository that backups go to.
    /// `hold` is what a restore before it would keep.
    pub fn after_full(&self, hold: Option<Hold>) -> Vec<(RepoKey, BackupLabel)> {
        let Some(repo) = self.seen.stanza.repos.iter().map(|repo| repo.key).min() else {
            return Vec::new();
        };
        let mut rules = self.rules.clone();
        rules.holds.extend(hold);
        retention::after_full(&self.backups, &rules, repo, clock::now())
    }

    /// Whether pgBackRest's own expire does exactly what the rules say.
    pub(super) fn is_pgbackrests_own(&self) -> bool {
        !self.rules.policy.is_set()
            && self.rules.pins.is_empty()
            && self.rules.in_use.is_empty()
            && self.rules.holds.is_empty()
            && !self.for_backup_only
            && !self.backups.iter().any(|backup| backup.bad)
    }

    /// What is set for a repository, such as `archive`.
    fn option(&self, repo: RepoKey, name: &str) -> Option<&str> {
        let wanted = format!("repo{repo}-retention-{name}");
        let mut options = self.options.get(&repo)?.iter();
        options.find(|(option, _)| *option == wanted).map(|(_, value)| value.trim())
    }

    /// Whether anything lets WAL go there.
    pub(super) fn limits_wal(&self, repo: RepoKey) -> bool {
        self.rules.policy.is_set()
            || self.rules.counts.get(&repo).is_some_and(Counts::limit)
            || self.counts_wal(repo)
    }

    /// Whether WAL goes by a count of its own.
    pub(super) fn counts_wal(&self, repo: RepoKey) -> bool {
        self.option(repo, "archive").is_some()
    }

    /// From which backup on all WAL is kept: as the user set it, or as the rules say.
    pub(super) fn wal_limit(&self, plan: &RepoPlan) -> Option<WalLimit> {
        let Some(count) = self.option(plan.repo, "archive") else { return plan.wal_limit(None) };
        // What is no number pgBackRest refuses itself.
        let count = count.parse().ok()?;
        let by = self.option(plan.repo, "archive-type").and_then(|text| text.parse().ok());
        plan.wal_limit(Some((count, by.unwrap_or(ArchiveType::Full))))
    }

    /// What removing one backup takes with it.
    pub fn removal(
        &self,
        label: &BackupLabel,
        repo: Option<RepoKey>,
    ) -> Result<Vec<(RepoKey, Removal)>, Refused> {
        retention::removal(&self.backups, &self.rules, label, repo)
    }
}

/// Pins, marks and the preview, for people; clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    context: Context,
}

/// What Headrest knows of backups.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Which are pinned.
    pub pins: BTreeSet<BackupLabel>,
    /// When each was verified.
    pub verified: BTreeMap<(RepoKey, BackupLabel), Verified>,
    /// What each is worth.
    pub judgements: Judgements,
}

impl Marks {
    /// What a backup is worth.
    pub fn judgement(&self, backup: &Backup) -> &Judgement {
        let repo = backup.repo_key.unwrap_or(RepoKey::FIRST);
        let known = self.judgements.get(&(repo, backup.label.clone()));
        known.unwrap_or(&Judgement::UNVERIFIED)
    }
}

impl Keeper {
    /// A keeper.
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// Whether backups may be pinned, and the policy.
    pub fn config(&self) -> &RetentionConfig {
        &self.context.retention.config
    }

    /// Everything that retention depends on, as old as a page may be.
    pub async fn look(&self, stanza: &StanzaName) -> Result<Ground, RetentionError> {
        gather(&self.context, stanza, Freshness::Within(FRESH_ENOUGH)).await
    }

    /// A backup with its databases, tablespaces and links; the inner error says why its manifest cannot be
    /// read.
    pub async fn details(
        &self,
        stanza: &StanzaName,
        backup: &Backup,
    ) -> Result<Result<Arc<Backup>, String>, Unavailable> {
        if let Some(known) = self.context.catalog.set(stanza, &backup.label) {
            return Ok(Ok(known));
        }
        let repo = backup.repo_key.unwrap_or(RepoKey::FIRST);
        super::sets::read_back(&self.context, stanza, repo, &backup.label).await
    }

    /// What Headrest knows of the backups that `info` lists.
    pub async fn marks(&self, stanza: &StanzaName, info: &StanzaInfo) -> Result<Marks, StoreError> {
        Ok(Marks {
            pins: pins(&self.context, stanza, info).await?,
            verified: self.context.store.verified(stanza.clone()).await?,
            judgements: super::sets::judge(&self.context.store, stanza, info).await?,
        })
    }

    /// Pins a backup, or takes its pin back, from now on. Answers what should be annotated, so that
    /// the repository says so, too.
    pub async fn set_pin(
        &self,
        stanza: &StanzaName,
        label: &BackupLabel,
        pinned: bool,
        by: &str,
    ) -> Result<AnnotateSpec, RetentionError> {
        if pinned && !self.context.retention.config.pins {
            return Err(RetentionError::PinsOff);
        }
        let gate = timeout(GATE_PATIENCE, self.context.retention.gate(stanza)).await;
        let _gate = gate.map_err(|_| RetentionError::Removing(stanza.clone()))?;
        // What was just removed cannot be pinned any more.
        let seen = self.context.catalog.observe(stanza, Freshness::New).await?;
        if !seen.stanza.backups.iter().any(|backup| backup.label == *label) {
            return Err(Refused::Unknown(label.clone()).into());
        }
        let now = clock::now();
        let store = &self.context.store;
        store.set_pin(stanza.clone(), label.clone(), pinned, by.to_owned(), now).await?;
        let action = if pinned { "backup.pin" } else { "backup.unpin" };
        let subject = format!("{stanza} {label}");
        store.audit(now, by.to_owned(), action, subject, String::new()).await?;
        let value = format!("{by}, {}", now.strftime("%Y-%m-%dT%H:%M:%SZ"));
        let pair = BTreeMap::from([(PIN_KEY.to_owned(), value)]);
        let (annotations, remove) = if pinned {
            (Annotations::parse(pair).unwrap_or_default(), Vec::new())
        } else {
            (Annotations::default(), vec![PIN_KEY.to_owned()])
        };
        Ok(AnnotateSpec { stanza: stanza.clone(), set: label.clone(), annotations, remove })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_stanza_does_not_wait_for_another() {
        let retention = Retention::default();
        let [main, other] = ["main", "other"].map(|name| name.parse::<StanzaName>().unwrap());
        let held = retention.gate(&main).await;
        let short = Duration::from_millis(50);
        assert!(timeout(short, retention.clone().gate(&main)).await.is_err(), "clones share it");
        assert!(timeout(GATE_PATIENCE, retention.gate(&other)).await.is_ok());
        drop(held);
        assert!(timeout(GATE_PATIENCE, retention.gate(&main)).await.is_ok());
    }

    #[test]
    fn options_become_counts() {
        let of = |full: &str, kind: Option<&str>, diff: Option<&str>| {
            let text = |text: &str| Some(text.to_owned());
            counts_of(&[text(full), kind.map(Into::into), diff.map(Into::into), None, None])
        };
        assert_eq!(of("2", None, None).full, Some(FullRetention::Count(2)));
        assert_eq!(of("14", Some("time"), None).full, Some(FullRetention::Days(14)));
        assert_eq!(of("14", Some("count"), Some("3")).diff, Some(3));
        assert!(!of("9999999", None, Some("9999999")).limit());
        assert!(!of("many", None, None).limit(), "pgBackRest refuses it itself");
    }
}
