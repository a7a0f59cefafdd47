//! The events of a job: that it began, that it waits, how it ended.

use super::super::job::{Job, JobError, JobKind, JobResult, JobSpec, JobState, Outcome, Trigger};
use super::super::restore::Awaiting;
use super::{Audience, Event, EventKind, Severity};

/// The event of the state that a job is in now, if anybody may want to hear of it.
pub fn of_job(job: &Job) -> Option<Event> {
    let kind = kind_of(job.spec.kind(), job.state)?;
    let again = job.tried_again && matches!(job.state, JobState::Failed | JobState::Interrupted);
    let audience = if again { Audience::Readers } else { Audience::All };
    let at = match job.state {
        JobState::Queued | JobState::Running | JobState::Cancelling => job.started_at,
        JobState::Succeeded
        | JobState::Warned
        | JobState::Failed
        | JobState::Cancelled
        | JobState::Interrupted => job.finished_at,
    };
    let happened = match job.state.outcome() {
        None => "has begun",
        Some(Outcome::Succeeded) => "succeeded",
        Some(Outcome::Warned) => "succeeded, with something to look at",
        Some(Outcome::Failed) => "failed",
        Some(Outcome::Cancelled) => "was cancelled",
        Some(Outcome::Interrupted) => "was interrupted by the end of Headrest",
    };
    let mut summary = format!("{} of {} {happened}", what(job), job.spec.stanza());
    if let (JobState::Failed | JobState::Warned, Some(error)) = (job.state, &job.error) {
        summary.push_str(": ");
        summary.push_str(&error.message);
    }
    let at = at.unwrap_or(job.created_at);
    let mut words = detail(job);
    if again {
        words.insert_str(0, "Its schedule will try it again.\n");
        // Before the reason, which may be cut.
        summary = summary.replacen(happened, &format!("{happened} and will be tried again"), 1);
    }
    let event = about(job, kind, at, &summary).with_detail(&words);
    let severity = if again { Severity::Warning } else { event.severity };
    Some(Event { severity, audience, ..event })
}

/// The event of a restore that has begun to wait, since `at`.
pub fn of_wait(job: &Job, awaiting: Awaiting, at: jiff::Timestamp) -> Event {
    let reason = match awaiting {
        Awaiting::Target => "its target is reached; look, then promote, retarget or abandon it",
        Awaiting::Gap => "WAL is missing; bring it back, or promote without it",
        Awaiting::End => "the WAL ends before its target; promote there, retarget or abandon it",
        Awaiting::Repository => "the repository does not give WAL; make it answer, or abandon it",
        Awaiting::StopFile => "pgBackRest is stopped; run `pgbackrest start`",
        Awaiting::Disk => "the disk is full; free space there",
        Awaiting::Directory => "the place of a tablespace is not there; make it",
        Awaiting::Role => "the role that Headrest connects as does not exist at its target",
        Awaiting::Destroyed => {
            "a database or tablespace would be destroyed; retarget, promote or abandon it"
        }
        Awaiting::Standstill => "nothing moves, and the reason is not known; look at its log",
    };
    let summary = format!("{} of {} waits: {reason}", what(job), job.spec.stanza());
    about(job, EventKind::RestoreWaiting, at, &summary)
}

fn about(job: &Job, kind: EventKind, at: jiff::Timestamp, summary: &str) -> Event {
    let schedule = match &job.trigger {
        Trigger::Schedule(name) => Some(name.clone()),
        Trigger::Api | Trigger::Dashboard | Trigger::ShortRoute | Trigger::Event(_) => None,
    };
    Event {
        stanza: Some(job.spec.stanza().clone()),
        job: Some(job.id),
        schedule,
        ..Event::new(kind, at, format!("job:{}", job.id), summary)
    }
}

/// What is told of such a job in such a state.
pub fn kind_of(kind: JobKind, state: JobState) -> Option<EventKind> {
    match (kind, state) {
        (JobKind::Backup, JobState::Running) => Some(EventKind::BackupStarted),
        (JobKind::Backup, JobState::Succeeded) => Some(EventKind::BackupSucceeded),
        (JobKind::Backup, JobState::Warned) => Some(EventKind::BackupWarned),
        (JobKind::Backup, JobState::Failed) => Some(EventKind::BackupFailed),
        (JobKind::Backup, JobState::Cancelled) => Some(EventKind::BackupCancelled),
        (JobKind::Backup, JobState::Interrupted) => Some(EventKind::BackupInterrupted),
        (JobKind::Restore, JobState::Running) => Some(EventKind::RestoreStarted),
        (JobKind::Restore, JobState::Succeeded) => Some(EventKind::RestoreSucceeded),
        (JobKind::Restore, JobState::Warned) => Some(EventKind::RestoreWarned),
        (JobKind::Restore, JobState::Failed) => Some(EventKind::RestoreFailed),
        (JobKind::Restore, JobState::Cancelled) => Some(EventKind::RestoreCancelled),
        (JobKind::Restore, JobState::Interrupted) => Some(EventKind::RestoreInterrupted),
        (JobKind::Check, JobState::Succeeded | JobState::Warned) => Some(EventKind::CheckSucceeded),
        (JobKind::Check, JobState::Failed) => Some(EventKind::CheckFailed),
        (JobKind::Verify, JobState::Succeeded | JobState::Warned) => {
            Some(EventKind::VerifySucceeded)
        }
        (JobKind::Verify, JobState::Failed) => Some(EventKind::VerifyFailed),
        (JobKind::Check, JobState::Running) => Some(EventKind::CheckStarted),
        (JobKind::Verify, JobState::Running) => Some(EventKind::VerifyStarted),
        (JobKind::Expire, JobState::Running) => Some(EventKind::ExpireStarted),
        (JobKind::Expire, JobState::Succeeded | JobState::Warned) => {
            Some(EventKind::ExpireSucceeded)
        }
        (JobKind::Expire, JobState::Failed) => Some(EventKind::ExpireFailed),
        // Nobody learns anything of these: whoever asked for a change of notes waits for the answer,
        // and without a stanza checks and backups fail, which is told.
        (
            JobKind::StanzaCreate | JobKind::Annotate,
            JobState::Running
            | JobState::Succeeded
            | JobState::Warned
            | JobState::Failed
            | JobState::Cancelled
            | JobState::Interrupted,
        )
        | (
            JobKind::Check | JobKind::Verify | JobKind::Expire,
            JobState::Cancelled | JobState::Interrupted,
        )
        | (
            JobKind::Backup
            | JobKind::Restore
            | JobKind::Check
            | JobKind::StanzaCreate
            | JobKind::Verify
            | JobKind::Expire
            | JobKind::Annotate,
            JobState::Queued | JobState::Cancelling,
        ) => None,
    }
}

fn what(job: &Job) -> String {
    match (&job.spec, &job.result) {
        (JobSpec::Backup(_), Some(JobResult::Backup(result))) => {
            format!("{} backup", result.backup_type.as_str())
        }
        (JobSpec::Backup(spec), _) => format!("{} backup", spec.backup_type.as_str()),
        (JobSpec::Restore(_), _) => "restore".to_owned(),
        (JobSpec::Check { .. }, _) => "check".to_owned(),
        (JobSpec::StanzaCreate { .. }, _) => "stanza-create".to_owned(),
        (JobSpec::Verify(_), _) => "verify".to_owned(),
        (JobSpec::Expire(_), _) => "expire".to_owned(),
        (JobSpec::Annotate(_), _) => "annotate".to_owned(),
    }
}

fn detail(job: &Job) -> String {
    let mut lines = Vec::new();
    match &job.result {
        Some(JobResult::Backup(result)) => {
            lines.push(format!("backup {}", result.label));
            lines.extend(result.size_bytes.map(|bytes| format!("database {bytes} bytes")));
            let added = result.repo_delta_bytes;
            lines.extend(added.map(|bytes| format!("added to the repository {bytes} bytes")));
            if result.page_errors {
                lines.push("page checksum errors were found".to_owned());
            }
        }
        Some(JobResult::Restore(result)) => {
            lines.extend(result.set.as_ref().map(|set| format!("from backup {set}")));
            lines.extend(result.last_commit_at.map(|at| format!("last transaction {at}")));
        }
        Some(JobResult::Verify(result)) => {
            lines.extend(result.errors.iter().chain(&result.wal_gaps).take(20).cloned());
        }
        Some(JobResult::Expire(result)) => {
            lines.push(format!("{} backups are left", result.kept));
        }
        None => {}
    }
    if let (Some(started), Some(finished)) = (job.started_at, job.finished_at) {
        lines.push(format!("took {} s", finished.duration_since(started).as_secs()));
    }
    if let Some(error) = &job.error {
        lines.extend(error_lines(error));
    }
    lines.push(format!("job {}, asked for by {} ({})", job.id, job.by, job.trigger));
    lines.join("\n")
}

fn error_lines(error: &JobError) -> Vec<String> {
    let mut lines = vec![error.message.clone()];
    match (error.exit_code, &error.exit_name) {
        (Some(code), Some(name)) => lines.push(format!("{}: exit code {code}, {name}", error.code)),
        (Some(code), None) => lines.push(format!("{}: exit code {code}", error.code)),
        (None, _) => lines.push(error.code.clone()),
    }
    lines.extend(error.hints.iter().cloned());
    lines
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::super::BackupType;
    use super::super::super::job::{
        BackupSpec, ExpireSpec, JobEvent, JobId, RestoreSpec, VerifySpec,
    };
    use super::super::super::recovery::RecoveryTarget;
    use super::super::Severity;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn job(spec: JobSpec, state: JobState) -> Job {
        let trigger = Trigger::Schedule("nightly".into());
        let mut job = Job::queued(JobId::new(at(0)), spec, trigger, "t".into(), at(0));
        if !matches!(state, JobState::Queued) {
            job.apply(JobEvent::Start, at(1)).unwrap();
        }
        if state == JobState::Cancelling {
            job.apply(JobEvent::Cancel, at(2)).unwrap();
        }
        if let Some(outcome) = state.outcome() {
            job.apply(JobEvent::Finish(outcome), at(61)).unwrap();
        }
        job
    }

    fn specs() -> [JobSpec; 6] {
        let stanza = || "main".parse().unwrap();
        let backup = BackupSpec::plain(stanza(), BackupType::Full);
        [
            JobSpec::Backup(backup),
            JobSpec::Restore(RestoreSpec::new(stanza(), RecoveryTarget::Latest)),
            JobSpec::Check { stanza: stanza() },
            JobSpec::StanzaCreate { stanza: stanza() },
            JobSpec::Verify(VerifySpec { stanza: stanza(), set: None, repo: None }),
            JobSpec::Expire(ExpireSpec { stanza: stanza(), set: None, repo: None, dry_run: false }),
        ]
    }

    #[test]
    fn every_state_of_every_job_is_told_or_not() {
        let mut told = Vec::new();
        for spec in specs() {
            for state in JobState::ALL {
                let event = of_job(&job(spec.clone(), *state));
                told.extend(event.map(|event| event.kind.as_str()));
            }
        }
        let expect = [
            "backup.started",
            "backup.succeeded",
            "backup.warned",
            "backup.failed",
            "backup.cancelled",
            "backup.interrupted",
            "restore.started",
            "restore.succeeded",
            "restore.warned",
            "restore.failed",
            "restore.cancelled",
            "restore.interrupted",
            "check.started",
            "check.succeeded",
            "check.succeeded",
            "check.failed",
            "verify.started",
            "verify.succeeded",
            "verify.succeeded",
            "verify.failed",
            "expire.started",
            "expire.succeeded",
            "expire.succeeded",
            "expire.failed",
        ];
        assert_eq!(told, expect);
    }

    #[test]
    fn a_failure_says_why_and_what_to_do() {
        let mut failed = job(specs()[0].clone(), JobState::Failed);
        failed.error = Some(JobError {
            code: "lock-held".into(),
            exit_code: Some(50),
            exit_name: Some("LockAcquireError".into()),
            message: "unable to acquire lock".into(),
            hints: vec!["is another pgBackRest process running?".into()],
            retryable: true,
        });
        let event = of_job(&failed).unwrap();
        assert_eq!(event.summary, "full backup of main failed: unable to acquire lock");
        assert_eq!((event.severity, event.at), (Severity::Critical, at(61)));
        assert_eq!(event.schedule.as_deref(), Some("nightly"));
        assert_eq!(event.subject, format!("job:{}", failed.id));
        for part in ["took 60 s", "LockAcquireError", "another pgBackRest", "schedule:nightly"] {
            assert!(event.detail.contains(part), "{part} is not in {}", event.detail);
        }
    }

    #[test]
    fn a_try_that_is_not_the_last_is_no_alarm() {
        for (state, last) in [
            (JobState::Failed, Severity::Critical),
            (JobState::Interrupted, Severity::Warning),
            (JobState::Succeeded, Severity::Info),
        ] {
            let mut job = job(specs()[0].clone(), state);
            let event = of_job(&job).unwrap();
            assert_eq!((event.severity, event.audience), (last, Audience::All), "{state}");
            assert!(!event.summary.contains("again"), "{}", event.summary);
            job.tried_again = true;
            let event = of_job(&job).unwrap();
            let failed = state != JobState::Succeeded;
            let expect = if failed { Audience::Readers } else { Audience::All };
            assert_eq!(event.audience, expect, "{state}");
            assert!(event.severity <= Severity::Warning);
            assert_eq!(event.summary.contains("will be tried again"), failed);
        }
    }

    #[test]
    fn a_restore_that_waits_says_for_what() {
        let restore = job(specs()[1].clone(), JobState::Running);
        for (awaiting, part) in [
            (Awaiting::Target, "reached"),
            (Awaiting::Gap, "missing"),
            (Awaiting::End, "ends"),
            (Awaiting::Repository, "repository"),
            (Awaiting::StopFile, "pgbackrest start"),
            (Awaiting::Disk, "disk"),
            (Awaiting::Directory, "place"),
            (Awaiting::Role, "role"),
            (Awaiting::Destroyed, "destroyed"),
            (Awaiting::Standstill, "not known"),
        ] {
            let event = of_wait(&restore, awaiting, at(5));
            assert_eq!((event.kind, event.at), (EventKind::RestoreWaiting, at(5)));
            assert!(event.summary.contains(part), "{}", event.summary);
        }
    }
}
