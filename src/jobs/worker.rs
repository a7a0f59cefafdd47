//! Carrying out jobs with pgbackrest: backup, check and stanza-create here, the others each in its
//! own module, with what all of them need: `command`, `follow`, `judge`.

mod made;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::catalog::{Freshness, Observation};
use super::context::Context;
use super::recorder::Recorder;
use crate::domain::job::{
    BackupResult, BackupSpec, ExpireSpec, JobError, JobResult, JobSpec, Outcome,
};
use crate::domain::{BackupLabel, BackupType, StanzaName};
use crate::pgbackrest::command::{Backup, Check, Invocation, StanzaCreate, archive_command};
use crate::pgbackrest::exit::{self, Context as ExitContext};
use crate::pgbackrest::info::{self, BackupKind};
use crate::pgbackrest::log::Level;
use crate::pgbackrest::runner::{Sink, Stopping};
use crate::postgres::client::Connection;
use crate::postgres::supervisor::Archiving;
use crate::process::{End, SpawnError};
use made::{read_back, unreadable_prior};

/// How often a running backup's size is asked for, where `info` knows it.
const SIZE_EVERY: Duration = Duration::from_secs(2);
/// How carrying out a job ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ended {
    /// How; `None` when it goes on at the next start of Headrest.
    pub(super) outcome: Option<Outcome>,
    pub(super) result: Option<JobResult>,
    pub(super) error: Option<JobError>,
    /// What should be done next.
    pub(super) follow_up: Option<JobSpec>,
}

impl Ended {
    pub(super) fn with(outcome: Outcome) -> Self {
        Self { outcome: Some(outcome), result: None, error: None, follow_up: None }
    }

    pub(super) fn failed(error: JobError) -> Self {
        Self { error: Some(error), ..Self::with(Outcome::Failed) }
    }
}

/// An error of our own making.
pub(super) fn problem(code: &str, message: impl Into<String>, hints: &[&str]) -> JobError {
    JobError {
        code: code.to_owned(),
        exit_code: None,
        exit_name: None,
        message: message.into(),
        hints: hints.iter().map(|hint| (*hint).to_owned()).collect(),
        retryable: false,
    }
}

pub(super) async fn backup(
    context: &Context,
    spec: &BackupSpec,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Ended {
    let seen = context.catalog.observe(&spec.stanza, Freshness::New).await.ok();
    let unreadable = match &seen {
        Some(seen) => unreadable_prior(context, spec, seen).await,
        None => None,
    };
    let before = known_labels(seen);
    if let Some(label) = &unreadable {
        let text = format!(
            "nothing can be built upon backup {label}, whose manifest cannot be read: making a full"
        );
        recorder.say(Level::Warn, text).await;
    }
    let backup_type = if unreadable.is_some() { BackupType::Full } else { spec.backup_type };
    let invocation = Backup {
        stanza: &spec.stanza,
        repo: spec.repo,
        backup_type,
        annotations: &spec.annotations,
        options: &spec.options,
    }
    .invocation();
    let (sizes, _stop_sizes) = follow_sizes(context, &spec.stanza);
    let run = command(context, &spec.stanza, &invocation, recorder, cancel, sizes);
    let ended = run.await;
    let after = context.catalog.observe(&spec.stanza, Freshness::New).await;
    match judge(context, ExitContext::Backup, ended, recorder, cancel) {
        Err(ended) => ended,
        Ok(()) => match after {
            Ok(seen) => {
                let done =
                    finished_backup(spec, &before, unreadable.as_ref(), &seen, recorder).await;
                let done = read_back(context, spec, done, recorder, cancel).await;
                // Nothing may go for a backup that cannot be used.
                if done.outcome == Some(Outcome::Failed) {
                    return done;
                }
                then_expire(context, spec, done, recorder, cancel).await
            }
            Err(error) => Ended {
                error: Some(problem(
                    "repository-unavailable",
                    format!("the backup ended well, but then: {error}"),
                    &["Look at GET /api/v1/stanzas/STANZA/backups."],
                )),
                ..Ended::with(Outcome::Warned)
            },
        },
    }
}

/// What pgBackRest does by itself after a backup (`expire-auto`), done here because it knows nothing
/// of pins. The backup is done, whatever comes of it.
async fn then_expire(
    context: &Context,
    spec: &BackupSpec,
    done: Ended,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Ended {
    let options = context.retention.options.get(&spec.stanza);
    let auto = options.and_then(|options| options.get_for("backup", "expire-auto"));
    if done.result.is_none() || auto == Some("n") {
        return done;
    }
    let expire =
        ExpireSpec { stanza: spec.stanza.clone(), set: None, repo: spec.repo, dry_run: false };
    match super::expire::run(context, &expire, recorder, cancel).await.error {
        None => done,
        Some(error) => {
            let message = format!("the backup is done, but expiring failed: {}", error.message);
            recorder.say(Level::Warn, message.clone()).await;
            let error = not_expired(done.error, error, message);
            Ended { error: Some(error), outcome: Some(Outcome::Warned), ..done }
        }
    }
}

/// The one error of a backup after which expiring failed. It has that one's code, for nothing else
/// tells of that, and the words of both.
fn not_expired(before: Option<JobError>, expire: JobError, mut message: String) -> JobError {
    let mut hints = expire.hints;
    if let Some(before) = before {
        message = format!("{message}; and {}", before.message);
        hints.extend(before.hints);
    }
    JobError { code: "expire-failed".to_owned(), message, hints, ..expire }
}

pub(super) async fn check(
    context: &Context,
    stanza: &StanzaName,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Ended {
    let invocation = Check { stanza }.invocation();
    let ended = command(context, stanza, &invocation, recorder, cancel, None).await;
    match judge(context, ExitContext::Check, ended, recorder, cancel) {
        Ok(()) => match archives_elsewhere(context, stanza).await {
            None => Ended::with(Outcome::Succeeded),
            Some(message) => Ended {
                error: Some(problem(
                    "archiving-misconfigured",
                    message,
                    &[
                        "Remove archive_mode and archive_command from postgresql.auto.conf and from \
                       postgres.args, and restart PostgreSQL.",
                    ],
                )),
                ..Ended::with(Outcome::Warned)
            },
        },
        Err(ended) => ended,
    }
}

/// How the supervised server's archiving differs from what Headrest has set. That segments arrive
/// `check` has just seen; but perhaps by another way, which a restore would not find.
async fn archives_elsewhere(context: &Context, stanza: &StanzaName) -> Option<String> {
    let server = context.server.as_ref().filter(|server| server.stanza == *stanza)?;
    if server.archiving != Archiving::Ours {
        return None;
    }
    let address = context.postgres.status().address?;
    let connection = Connection::open(&address, || {}).await.ok()?;
    let (mode, command) = connection.archiving().await.ok()?;
    let ours = archive_command(&context.tool.binary.display().to_string(), stanza);
    if mode != "off" && command == ours {
        return None;
    }
    Some(format!(
        "archiving works, but it is not as Headrest has set it: archive_mode is {mode} and \
         archive_command is {command:?}, not {ours:?}"
    ))
}

pub(super) async fn stanza_create(
    context: &Context,
    stanza: &StanzaName,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Ended {
    let invocation = StanzaCreate { stanza }.invocation();
    let ended = command(context, stanza, &invocation, recorder, cancel, None).await;
    // What the repository holds has changed, whatever came of it.
    let _ = context.catalog.observe(stanza, Freshness::New).await;
    match judge(context, ExitContext::StanzaCreate, ended, recorder, cancel) {
        Ok(()) => Ended::with(Outcome::Succeeded),
        Err(ended) => ended,
    }
}

type Sizes = tokio::sync::mpsc::Receiver<(u64, u64)>;

/// Asks `info` for the sizes of a running backup, where the version tells them (2.48 and later).
fn follow_sizes(
    context: &Context,
    stanza: &StanzaName,
) -> (Option<Sizes>, Option<tokio_util::sync::DropGuard>) {
    if !context.version.as_ref().is_some_and(|version| version.reports_lock_size()) {
        return (None, None);
    }
    let (tell, sizes) = tokio::sync::mpsc::channel(1);
    let (catalog, stanza) = (context.catalog.clone(), stanza.clone());
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            tokio::time::sleep(SIZE_EVERY).await;
            let Ok(seen) = catalog.observe(&stanza, Freshness::Within(SIZE_EVERY / 2)).await else {
                continue;
            };
            let lock = &seen.stanza.status.lock.backup;
            if let Some(sizes) = lock.size_complete_bytes.zip(lock.size_bytes)
                && tell.send(sizes).await.is_err()
            {
                return;
            }
        }
    }));
    (Some(sizes), Some(guard))
}

/// Runs a command for a job.
pub(super) async fn command(
    context: &Context,
    stanza: &StanzaName,
    invocation: &Invocation,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
    sizes: Option<Sizes>,
) -> Result<End, SpawnError> {
    recorder.next_command();
    let mut sink = super::recorder::WithSizes { recorder, sizes };
    follow(context, stanza, invocation, cancel, &mut sink).await
}

/// Runs a command whose lines go to `sink`.
pub(super) async fn follow<S: Sink>(
    context: &Context,
    stanza: &StanzaName,
    invocation: &Invocation,
    cancel: &CancellationToken,
    sink: &mut S,
) -> Result<End, SpawnError> {
    let stop = cancel.child_token();
    let stopping = Stopping { cancel: stop.clone(), hurry: context.hurry.clone() };
    let env = context.server_env(stanza);
    let run = context.tool.follow(invocation, &env, None, &stopping, sink);
    tokio::pin!(run);
    let shutdown = async {
        context.shutdown.cancelled().await;
        stop.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = &mut run => ended,
        () = shutdown => Ok(End::Unseen),
    }
}

/// Says what an ending means; `Ok` when the command succeeded.
pub(super) fn judge(
    context: &Context,
    what: ExitContext,
    ended: Result<End, SpawnError>,
    recorder: &Recorder,
    cancel: &CancellationToken,
) -> Result<(), Ended> {
    let heard = &recorder.heard;
    let end = match ended {
        Ok(end) if end.is_success() => return Ok(()),
        Ok(end) => end,
        Err(error) => {
            return Err(Ended::failed(problem(
                "pgbackrest-not-started",
                error.explain(),
                &["Install pgBackRest, or correct pgbackrest.bin in Headrest's configuration."],
            )));
        }
    };
    if cancel.is_cancelled() {
        let message = format!("cancelled; pgbackrest {end}");
        let error = JobError { retryable: true, ..problem("cancelled", message, &[]) };
        return Err(Ended { error: Some(error), ..Ended::with(Outcome::Cancelled) });
    }
    if context.shutdown.is_cancelled() {
        let message = format!("Headrest was stopped while it ran; pgbackrest {end}");
        let error = JobError { retryable: true, ..problem("interrupted", message, &[]) };
        return Err(Ended { error: Some(error), ..Ended::with(Outcome::Interrupted) });
    }
    Err(Ended::failed(error_of(what, end, heard)))
}

/// The problem behind an exit code, in pgBackRest's words where it said any.
pub(super) fn error_of(what: ExitContext, end: End, heard: &super::recorder::Heard) -> JobError {
    let said = heard.error.as_ref().map(|(_, message)| message.clone());
    let said = said.or_else(|| heard.stderr.last().cloned());
    match end {
        End::Exited(code) => {
            let known = exit::lookup(i32::from(code), what);
            let known = said.as_deref().map_or(known, |message| known.refine(message));
            let mut hints = heard.error_hints.clone();
            hints.push(known.hint.to_owned());
            JobError {
                code: known.problem.as_str().to_owned(),
                exit_code: Some(i32::from(code)),
                exit_name: Some(known.name.to_owned()),
                message: said.unwrap_or_else(|| format!("pgbackrest {end}")),
                hints,
                retryable: known.retryable,
            }
        }
        End::Signalled { .. } | End::Unseen => JobError {
            retryable: true,
            ..problem(
                "interrupted",
                format!("pgbackrest {end}"),
                &["Somebody or the kernel (out of memory?) ended it; look at the system's log."],
            )
        },
    }
}

fn known_labels(seen: Option<std::sync::Arc<Observation>>) -> BTreeSet<BackupLabel> {
    seen.map(|seen| seen.stanza.backups.iter().map(|backup| backup.label.clone()).collect())
        .unwrap_or_default()
}

/// Finds the new backup in `info`: log lines only say where to look first.
async fn finished_backup(
    spec: &BackupSpec,
    before: &BTreeSet<BackupLabel>,
    unreadable: Option<&BackupLabel>,
    seen: &Observation,
    recorder: &mut Recorder,
) -> Ended {
    let backups = &seen.stanza.backups;
    let named = recorder.heard.new_label.clone();
    let new = backups.iter().find(|backup| Some(&backup.label) == named.as_ref()).or_else(|| {
        let new = backups.iter().filter(|backup| !before.contains(&backup.label));
        new.max_by_key(|backup| backup.stopped_at)
    });
    let Some(backup) = new else {
        return Ended {
            error: Some(problem(
                "backup-not-listed",
                "pgbackrest ended well, but info lists no new backup",
                &["Look at the job's log and at `pgbackrest info`."],
            )),
            ..Ended::with(Outcome::Warned)
        };
    };
    let result = result_of(backup, spec.backup_type);
    let mut warnings = Vec::new();
    if result.backup_type != spec.backup_type {
        warnings.push(format!(
            "a {} was asked for and a {} was made, because there was no backup to build upon{}",
            spec.backup_type,
            result.backup_type,
            unreadable.map_or(String::new(), |label| {
                format!(": the manifest of {label} cannot be read")
            })
        ));
    }
    if result.page_errors {
        warnings.push("page checksum errors were found in the database; see the log".to_owned());
    }
    for warning in &warnings {
        recorder.say(Level::Warn, warning.clone()).await;
    }
    let outcome = if warnings.is_empty() { Outcome::Succeeded } else { Outcome::Warned };
    let code = if result.page_errors { "page-checksum-errors" } else { "became-full" };
    let error = (!warnings.is_empty()).then(|| problem(code, warnings.join("; "), &[]));
    Ended { result: Some(JobResult::Backup(result)), error, ..Ended::with(outcome) }
}

fn result_of(backup: &info::Backup, wanted: BackupType) -> BackupResult {
    BackupResult {
        label: backup.label.clone(),
        backup_type: match backup.kind {
            BackupKind::Known(known) => known,
            BackupKind::Other(_) => wanted,
        },
        repo: backup.repo_key,
        size_bytes: backup.size_bytes,
        delta_bytes: backup.delta_bytes,
        repo_delta_bytes: backup.repo_delta_bytes,
        page_errors: backup.error == Some(true),
        started_at: backup.started_at,
        stopped_at: backup.stopped_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_expire_is_not_hidden_by_what_the_backup_found() {
        let pages = problem("page-checksum-errors", "damaged pages".to_owned(), &["look"]);
        let expire = problem("lock-held", "a lock".to_owned(), &["wait"]);
        let both = not_expired(Some(pages), expire.clone(), "expiring failed".to_owned());
        assert_eq!(both.code, "expire-failed");
        assert_eq!(both.message, "expiring failed; and damaged pages");
        assert_eq!(both.hints, ["wait", "look"]);
        let one = not_expired(None, expire, "expiring failed".to_owned());
        assert_eq!((one.message.as_str(), one.hints.len()), ("expiring failed", 1));
    }
}
