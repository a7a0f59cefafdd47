//! Whether a backup that was just made, and the one that it builds upon, can be read.

use tokio_util::sync::CancellationToken;

use super::super::catalog::Observation;
use super::super::context::Context;
use super::super::recorder::Recorder;
use super::super::{sets, verify};
use super::{Ended, problem};
use crate::domain::job::{BackupSpec, JobResult, Outcome};
use crate::domain::sets::State;
use crate::domain::{BackupLabel, BackupType, RepoKey, StanzaName};
use crate::pgbackrest::info;
use crate::pgbackrest::log::Level;
use crate::postgres::client::Connection;

/// Up to how many bytes of the database a new backup is verified at once.
const VERIFIED_AT_ONCE: u64 = 1 << 30;

/// The backup that a diff or incr would build upon, when its manifest cannot be read: pgBackRest would
/// fail then (exit code 29), and so would each later one until a full backup is made.
pub(super) async fn unreadable_prior(
    context: &Context,
    spec: &BackupSpec,
    seen: &Observation,
) -> Option<BackupLabel> {
    if spec.backup_type == BackupType::Full {
        return None;
    }
    let repo = spec.repo.or_else(|| seen.stanza.repos.iter().map(|repo| repo.key).min())?;
    let is_full = |backup: &&info::Backup| backup.label.backup_type() == BackupType::Full;
    let mut own = seen.stanza.backups.iter().filter(|backup| backup.repo_key == Some(repo)).rev();
    let prior = match spec.backup_type {
        BackupType::Diff => own.find(is_full),
        BackupType::Full | BackupType::Incr => own.next(),
    }?;
    let judgements = sets::judge(&context.store, &spec.stanza, &seen.stanza).await.ok()?;
    let judgement = judgements.get(&(repo, prior.label.clone()))?;
    (judgement.state == State::Unreadable).then(|| prior.label.clone())
}

/// Reads a new backup back: one whose manifest cannot be read, or that is damaged, is none.
pub(super) async fn read_back(
    context: &Context,
    spec: &BackupSpec,
    done: Ended,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Ended {
    let Some(JobResult::Backup(result)) = &done.result else { return done };
    let repo = result.repo.unwrap_or(RepoKey::FIRST);
    let label = &result.label;
    let failed = |error| Ended { result: done.result.clone(), ..Ended::failed(error) };
    match sets::read_back(context, &spec.stanza, repo, label).await {
        Ok(Ok(_)) => {}
        Ok(Err(why)) => {
            let message = format!(
                "backup {label} was made, but its manifest in repository {repo} cannot be read: {why}"
            );
            let hint = match names_with_line_breaks(context, &spec.stanza).await {
                Some(names) => format!(
                    "The name of database {names} has a line break in it, which pgBackRest cannot read \
                     back: rename it with ALTER DATABASE … RENAME TO …, then make a full backup."
                ),
                None => "Look at the repository's storage, and make a full backup.".to_owned(),
            };
            return failed(problem("backup-unreadable", message, &[&hint]));
        }
        Err(error) => {
            let text = format!("whether backup {label} can be read is not known: {error}");
            recorder.say(Level::Warn, text.clone()).await;
            let unknown = problem("backup-not-read-back", text, &["Verify it."]);
            let error = done.error.or(Some(unknown));
            return Ended { error, outcome: Some(Outcome::Warned), ..done };
        }
    }
    let is_small = result.size_bytes.is_some_and(|bytes| bytes <= VERIFIED_AT_ONCE);
    if !is_small || !verify::knows_sets(context) {
        return done;
    }
    let set = (&spec.stanza, repo, label);
    let wrong = verify::new_backup(context, set, recorder, cancel).await;
    let Some(wrong) = wrong else { return done };
    let message =
        format!("backup {label} was made, but what is in repository {repo} is wrong: {wrong}");
    let hint = "Look at the repository's storage, and make a full backup.";
    failed(problem("backup-damaged", message, &[hint]))
}

/// The databases whose names pgBackRest writes into a manifest that it cannot read.
async fn names_with_line_breaks(context: &Context, stanza: &StanzaName) -> Option<String> {
    context.server.as_ref().filter(|server| server.stanza == *stanza)?;
    let connection = Connection::open(&context.postgres.status().address?, || {}).await.ok()?;
    let databases = connection.catalogue().await.ok()?.databases;
    let names = databases.iter().filter(|database| database.name.contains(['\n', '\r']));
    let names: Vec<String> = names.map(|database| format!("{:?}", database.name)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}
