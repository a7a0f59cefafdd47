//! Carrying out retention: `expire --set` for each root of what goes, then the WAL.
//!
//! What went is what `info` does not list any more; an exit code alone says nothing.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;

use super::catalog::Freshness;
use super::context::Context;
use super::recorder::Recorder;
use super::retention::{Ground, RetentionError, find_repo, gather};
use super::sets::read_back;
use super::worker::{Ended, command, judge, problem};
use crate::domain::job::{ExpireResult, ExpireSpec, JobError, JobResult, Outcome, Removed};
use crate::domain::retention::{Held, Refused, Removal, RepoPlan};
use crate::domain::{BackupLabel, RepoKey};
use crate::pgbackrest::command::{Expire, Limits};
use crate::pgbackrest::exit::Context as ExitContext;
use crate::pgbackrest::info::StanzaStatus;
use crate::pgbackrest::log::Level;

type Labels = BTreeSet<(RepoKey, BackupLabel)>;

pub(super) async fn run(
    context: &Context,
    spec: &ExpireSpec,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Ended {
    let _gate = tokio::select! {
        gate = context.retention.gate(&spec.stanza) => gate,
        () = cancel.cancelled() => return not_begun("cancelled", Outcome::Cancelled),
        () = context.shutdown.cancelled() => return not_begun("interrupted", Outcome::Interrupted),
    };
    let mut ground = match gather(context, &spec.stanza, Freshness::New).await {
        Ok(ground) => ground,
        Err(error) => return Ended::failed(from_error(&error)),
    };
    if let Err(error) = find_repo(&ground.seen, spec.repo) {
        return Ended::failed(error);
    }
    let status = &ground.seen.stanza.status;
    if matches!(status.meaning(), StanzaStatus::Other(_)) && ground.backups.is_empty() {
        return Ended::failed(problem("repository-unavailable", status.message.clone(), &[]));
    }
    let calls = match decided(context, &mut ground, spec, recorder, cancel).await {
        Ok(calls) => calls,
        Err(ended) => return ended,
    };
    let planned: Labels = calls
        .iter()
        .flat_map(|(repo, removal)| removal.removes.iter().map(|label| (*repo, label.clone())))
        .collect();
    let done = if spec.set.is_none() && ground.is_pgbackrests_own() {
        let expire = Expire {
            stanza: &spec.stanza,
            repo: spec.repo,
            set: None,
            dry_run: spec.dry_run,
            limits: Limits::Configured,
        };
        one(context, &expire, recorder, cancel).await
    } else {
        carry_out(context, spec, &calls, recorder, cancel).await
    };
    finish(context, &ground, spec, planned, done).await
}

/// It was ended while it waited for a pin to be set.
fn not_begun(code: &str, outcome: Outcome) -> Ended {
    let error = problem(code, "ended before any backup was removed", &[]);
    Ended { error: Some(JobError { retryable: true, ..error }), ..Ended::with(outcome) }
}

/// The sets to remove, decided when every backup for whose sake something goes has been read: one that
/// cannot be read counts for nothing.
async fn decided(
    context: &Context,
    ground: &mut Ground,
    spec: &ExpireSpec,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Result<Vec<(RepoKey, Removal)>, Ended> {
    let mut read = Labels::new();
    loop {
        let calls =
            calls(ground, spec).map_err(|refused| Ended::failed(from_error(&refused.into())))?;
        let unread: Vec<_> = relied_on(ground, spec, &calls).difference(&read).cloned().collect();
        let mut found = false;
        for (repo, label) in unread {
            if cancel.is_cancelled() || context.shutdown.is_cancelled() {
                return Err(not_begun("cancelled", Outcome::Cancelled));
            }
            let answer = read_back(context, &spec.stanza, repo, &label).await.map_err(|error| {
                let message = format!(
                    "cannot remove anything: whether backup {label} of repository {repo} can be read \
                     is not known: {error}"
                );
                let error = problem("repository-unavailable", message, &[]);
                Ended::failed(JobError { retryable: true, ..error })
            })?;
            if let Err(why) = answer {
                let text = format!(
                    "backup {label} of repository {repo} counts for nothing: its manifest cannot be \
                     read: {why}"
                );
                recorder.say(Level::Warn, text).await;
                found = true;
            }
            read.insert((repo, label));
        }
        if !found {
            return Ok(calls);
        }
        *ground = gather(context, &spec.stanza, Freshness::New)
            .await
            .map_err(|error| Ended::failed(from_error(&error)))?;
    }
}

/// The backups for whose sake others, or WAL, may go: those that stay for themselves.
fn relied_on(ground: &Ground, spec: &ExpireSpec, calls: &[(RepoKey, Removal)]) -> Labels {
    let plans = ground.plan().into_iter();
    let plans = plans.filter(|plan| spec.repo.is_none_or(|repo| repo == plan.repo));
    let concerned = plans.filter(|plan| {
        calls.iter().any(|(repo, _)| *repo == plan.repo) || ground.counts_wal(plan.repo)
    });
    let of_plan = |plan: RepoPlan| {
        let known = |label: &BackupLabel| {
            let is_it = |held: &&Held| held.repo == plan.repo && held.label == *label;
            ground.backups.iter().find(is_it).is_some_and(|held| held.bad)
        };
        let relied = plan.verdicts.iter().filter(|verdict| verdict.stays_for_itself());
        let relied = relied.filter(|verdict| !known(&verdict.label));
        relied.map(|verdict| (plan.repo, verdict.label.clone())).collect::<Vec<_>>()
    };
    concerned.flat_map(of_plan).collect()
}

/// The sets to remove.
fn calls(ground: &Ground, spec: &ExpireSpec) -> Result<Vec<(RepoKey, Removal)>, Refused> {
    if let Some(label) = &spec.set {
        return ground.removal(label, spec.repo);
    }
    let plans = ground.plan().into_iter();
    let plans = plans.filter(|plan| spec.repo.is_none_or(|repo| repo == plan.repo));
    let calls = plans.flat_map(|plan| {
        let repo = plan.repo;
        plan.removals.into_iter().map(move |removal| (repo, removal))
    });
    Ok(calls.collect())
}

async fn carry_out(
    context: &Context,
    spec: &ExpireSpec,
    calls: &[(RepoKey, Removal)],
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Result<(), Ended> {
    for (at, (repo, removal)) in calls.iter().enumerate() {
        let labels: Vec<&str> = removal.removes.iter().map(BackupLabel::as_str).collect();
        let verb = if spec.dry_run { "would remove" } else { "removing" };
        recorder.say(Level::Info, format!("repository {repo}: {verb} {}", labels.join(", "))).await;
        let expire = Expire {
            stanza: &spec.stanza,
            repo: Some(*repo),
            set: Some(&removal.set),
            dry_run: spec.dry_run,
            limits: Limits::Nothing,
        };
        one(context, &expire, recorder, cancel).await?;
        let percent = u32::try_from((at + 1) * 10_000 / calls.len()).unwrap_or(10_000);
        recorder.progress(|progress| progress.percent_hundredths = Some(percent)).await;
    }
    // Of one set that was named only itself goes: of the others, those that go next may still be
    // there.
    if spec.dry_run || spec.set.is_some() {
        return Ok(());
    }
    // As it is now, whatever was removed: how far back all WAL is to be kept.
    let now = gather(context, &spec.stanza, Freshness::New).await;
    let now = now.map_err(|error| Ended::failed(from_error(&error)))?;
    for plan in now.plan().iter().filter(|plan| spec.repo.is_none_or(|repo| repo == plan.repo)) {
        let Some(limit) = now.wal_limit(plan).filter(|_| now.limits_wal(plan.repo)) else {
            continue;
        };
        let expire = Expire {
            stanza: &spec.stanza,
            repo: Some(plan.repo),
            set: None,
            dry_run: false,
            limits: Limits::Wal { count: limit.count, by: limit.by },
        };
        one(context, &expire, recorder, cancel).await?;
    }
    Ok(())
}

async fn one(
    context: &Context,
    expire: &Expire<'_>,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Result<(), Ended> {
    let ended = command(context, expire.stanza, &expire.invocation(), recorder, cancel, None).await;
    judge(context, ExitContext::Expire, ended, recorder, cancel)
}

/// Compares what is there with what was.
async fn finish(
    context: &Context,
    before: &Ground,
    spec: &ExpireSpec,
    planned: Labels,
    done: Result<(), Ended>,
) -> Ended {
    let was: Labels = before.backups.iter().map(|b| (b.repo, b.label.clone())).collect();
    let freed = |gone: &Labels| {
        let gone = before.backups.iter().filter(|b| gone.contains(&(b.repo, b.label.clone())));
        gone.filter_map(|backup| backup.own_bytes).sum()
    };
    let result = |gone: Labels| ExpireResult {
        dry_run: spec.dry_run,
        kept: (was.len() - gone.len()) as u64,
        freed_bytes: freed(&gone),
        removed: gone.into_iter().map(|(repo, label)| Removed { label, repo }).collect(),
    };
    if spec.dry_run {
        let ended = done.map_or_else(|ended| ended, |()| Ended::with(Outcome::Succeeded));
        return Ended { result: Some(JobResult::Expire(result(planned))), ..ended };
    }
    let after = match context.catalog.observe(&spec.stanza, Freshness::New).await {
        Ok(after) => after,
        Err(error) => {
            let message = format!("what was removed cannot be told: {error}");
            let unknown = Ended::failed(problem("repository-unavailable", message, &[]));
            return done.map_or_else(|ended| ended, |()| unknown);
        }
    };
    let left: Labels = after
        .stanza
        .backups
        .iter()
        .map(|backup| (backup.repo_key.unwrap_or(RepoKey::FIRST), backup.label.clone()))
        .collect();
    // A repository that cannot be read any more has not lost its backups.
    let readable = |repo: RepoKey| {
        let is_it = |known: &&crate::pgbackrest::info::RepoInfo| known.key == repo;
        let known = after.stanza.repos.iter().find(is_it);
        known.is_some_and(|known| !matches!(known.status.meaning(), StanzaStatus::Other(_)))
    };
    let gone: Labels = was.difference(&left).filter(|(repo, _)| readable(*repo)).cloned().collect();
    let there: Vec<String> = planned
        .intersection(&left)
        .map(|(repo, label)| format!("{label} in repository {repo}"))
        .collect();
    let forgotten = gone.iter().cloned().collect();
    if let Err(error) = context.store.forget_backups(spec.stanza.clone(), forgotten).await {
        tracing::warn!("{}", crate::telemetry::chain(&error));
    }
    let own_way = spec.set.is_none() && before.is_pgbackrests_own();
    let ended = match done {
        Err(ended) => ended,
        Ok(()) if there.is_empty() || own_way => Ended::with(Outcome::Succeeded),
        Ok(()) => Ended::failed(problem(
            "expire-incomplete",
            format!("pgbackrest ended well, but info still lists {}", there.join(", ")),
            &["Look at the job's log."],
        )),
    };
    Ended { result: Some(JobResult::Expire(result(gone))), ..ended }
}

fn from_error(error: &RetentionError) -> JobError {
    let code = match error {
        RetentionError::Unavailable(_) => "repository-unavailable",
        RetentionError::Store(_) => "internal",
        RetentionError::Refused(Refused::Unknown(_)) => "backup-not-found",
        RetentionError::Refused(Refused::Pinned(_)) => "backup-pinned",
        RetentionError::Refused(
            Refused::InUse(..) | Refused::AfterRestore(..) | Refused::LastFull(..),
        ) => "backup-in-use",
        RetentionError::Journal(_)
        | RetentionError::PinsOff
        | RetentionError::Unfinished(_)
        | RetentionError::Removing(_) => "refused",
    };
    problem(code, error.to_string(), &[])
}
