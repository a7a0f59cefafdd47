//! Each check.

use jiff::{SignedDuration, Timestamp};

use super::{
    ArchivingFacts, Check, CheckId, CheckKey, FIRST_BACKUP, Facts, Level, RepositoryFacts,
    RestoreFacts, ServerFacts, TargetFacts, Thresholds, Up, span,
};

/// For how long a notification may wait.
const WAITS: SignedDuration = SignedDuration::from_hours(1);
/// How long a restore may wait for a decision, without the database, until that is a failure.
const DECISION_OVERDUE: SignedDuration = SignedDuration::from_hours(1);
/// For how long it is said that one was given up.
const GIVEN_UP: SignedDuration = SignedDuration::from_hours(24);

/// Every check that applies.
pub(super) fn all(facts: &Facts, thresholds: &Thresholds, now: Timestamp) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(server) = &facts.server {
        checks.push(postgres(server));
        checks.push(restore(facts.restore.as_ref(), now));
    }
    if let Some(why) = &facts.not_backed_up {
        checks.push(warn(CheckId::LastBackup, why.clone(), ""));
    } else {
        backups(facts, thresholds, now, &mut checks);
    }
    checks.extend(facts.disks.iter().map(|disk| disk_space(disk, thresholds)));
    match facts.disk_hangs {
        Some(true) => checks.push(fail(
            CheckId::DiskSpace,
            "a file system of PGDATA, state_dir or the repository does not answer".to_owned(),
            "Is a network file system away? Look at the system's log.",
        )),
        Some(false) => {
            checks.push(pass(CheckId::DiskSpace, "every file system answers".to_owned()));
        }
        None => {}
    }
    match &facts.supported {
        Some(Ok(())) => {
            checks.push(pass(CheckId::Versions, "pgBackRest supports this PostgreSQL".to_owned()));
        }
        Some(Err(why)) => checks.push(fail(
            CheckId::Versions,
            why.clone(),
            "Install a pgBackRest that supports this PostgreSQL.",
        )),
        None => {}
    }
    if !facts.targets.is_empty() {
        checks.push(notifications(&facts.targets, now));
    }
    checks
}

fn notifications(targets: &[TargetFacts], now: Timestamp) -> Check {
    let mut wrong = Vec::new();
    for TargetFacts { name, waiting, given_up_at } in targets {
        if let Some((count, since)) =
            waiting.filter(|(_, since)| now.duration_since(*since) > WAITS)
        {
            wrong.push(format!("{count} wait for {name}, the oldest since {since}"));
        }
        if let Some(at) = given_up_at.filter(|at| now.duration_since(*at) < GIVEN_UP) {
            wrong.push(format!("one for {name} was given up at {at}"));
        }
    }
    if wrong.is_empty() {
        return pass(CheckId::Notifications, "arrive".to_owned());
    }
    let hint =
        "GET /api/v1/notifications says why; POST /api/v1/notifications/NAME/test tries one.";
    warn(CheckId::Notifications, wrong.join("; "), hint)
}

fn backups(facts: &Facts, thresholds: &Thresholds, now: Timestamp, checks: &mut Vec<Check>) {
    let new = now.duration_since(facts.since) < FIRST_BACKUP;
    match &facts.repository {
        None => {}
        Some(Err(why)) => checks.push(fail(
            CheckId::Repository,
            why.clone(),
            "Run `pgbackrest info` by hand; Headrest's log has the whole message.",
        )),
        Some(Ok(repository)) => {
            checks.push(repository_check(repository, new));
            // What a repository that cannot be read holds is not known.
            if repository.troubles.is_empty() || repository.last_backup_at.is_some() {
                checks.extend(ages(facts, repository, thresholds, now, new));
            }
            checks.push(backup_sets(repository));
            checks.push(page_checksums(repository));
        }
    }
    let asked = facts.server.as_ref().filter(|server| server.up == Up::Writes);
    if let Some((server, archiving)) =
        asked.and_then(|server| Some((server, server.archiving.as_ref()?)))
    {
        let since = server.started_at.unwrap_or(facts.since).max(facts.since);
        checks.extend(archive(archiving, since, thresholds, now));
    }
    if let Some(wal) = &facts.wal {
        let (level, detail) = match (&wal.dropped, wal.missing.as_slice()) {
            (_, [_, ..]) => {
                (Level::Fail, format!("since the newest backup {}", wal.missing.join("; ")))
            }
            (Some(segment), []) => (
                Level::Fail,
                format!(
                    "PostgreSQL takes WAL segment {segment} for archived, but no repository has \
                     it (archive-push-queue-max?)"
                ),
            ),
            (None, []) if !wal.missing_before.is_empty() => (
                Level::Pass,
                format!(
                    "nothing is missing since the newest backup; before it {}, so some earlier \
                     moments cannot be restored to",
                    wal.missing_before.join("; ")
                ),
            ),
            (None, []) => (Level::Pass, "no WAL segment is missing".to_owned()),
        };
        let hint = "What was committed since the gap cannot be brought back until a new backup has \
                    ended: take one now.";
        checks.push(check(CheckId::WalGap, level, detail, hint));
    }
    match &facts.verified {
        Some((at, Some(why))) => checks.push(fail(
            CheckId::Verify,
            format!("the verification of {at} found: {why}"),
            "Look at its job; a full backup replaces what is damaged.",
        )),
        Some((at, None)) => checks.push(pass(CheckId::Verify, format!("whole at {at}"))),
        None => {}
    }
    match &facts.stop_file {
        Some(Some(path)) => checks.push(warn(
            CheckId::StopFile,
            format!("{path} is there: pgBackRest does nothing until `pgbackrest start`"),
            "Run `pgbackrest --stanza=STANZA start` when the reason is gone.",
        )),
        Some(None) => checks.push(pass(CheckId::StopFile, "there is none".to_owned())),
        None => {}
    }
    for schedule in &facts.schedules {
        let (level, detail) = match (&schedule.trouble, &schedule.overdue) {
            (Some(trouble), _) => (Level::Warn, trouble.text.clone()),
            (None, Some(why)) => (Level::Warn, why.clone()),
            (None, None) => (Level::Pass, "as it should".to_owned()),
        };
        let mut check =
            check(CheckId::Schedule, level, detail, "GET /api/v1/schedules/NAME has its past.");
        check.key.of = Some(schedule.name.clone());
        checks.push(check);
    }
}

fn postgres(server: &ServerFacts) -> Check {
    match &server.up {
        Up::Writes if !server.raised.is_empty() => warn(
            CheckId::Postgres,
            format!(
                "takes writes, and was started with {}: prepared transactions need more than is \
                 configured, or could have needed it after a crash",
                server.raised.join(", ")
            ),
            "Set these in postgresql.conf, or end the prepared transactions (pg_prepared_xacts), then \
             restart PostgreSQL.",
        ),
        Up::Writes => pass(CheckId::Postgres, "takes writes".to_owned()),
        Up::Busy(what) => pass(CheckId::Postgres, what.clone()),
        Up::Held(why) => warn(
            CheckId::Postgres,
            format!("stays down on purpose: {why}"),
            "POST /api/v1/processes/postgres/start starts it.",
        ),
        Up::Down(why) => fail(
            CheckId::Postgres,
            why.clone(),
            "GET /api/v1/processes/postgres/log has what it said last.",
        ),
    }
}

fn restore(restore: Option<&RestoreFacts>, now: Timestamp) -> Check {
    let id = CheckId::Restore;
    match restore {
        None => pass(id, "none is under way".to_owned()),
        Some(RestoreFacts { job, given_up: Some(why), .. }) => fail(
            id,
            format!("restore {job} was given up half way, and PGDATA is no database: {why}"),
            "Correct the cause and restore again: POST /api/v1/stanzas/STANZA/restores.",
        ),
        Some(RestoreFacts { job, waits: Some((since, what, advice)), .. }) => {
            let waited = now.duration_since(*since);
            let level = if waited >= DECISION_OVERDUE { Level::Fail } else { Level::Warn };
            check(id, level, format!("restore {job} waits for {}: {what}", span(waited)), advice)
        }
        Some(RestoreFacts { job, phase, .. }) => {
            pass(id, format!("restore {job} is in phase {phase}: {}", phase.describe()))
        }
    }
}

fn repository_check(repository: &RepositoryFacts, new: bool) -> Check {
    if repository.troubles.is_empty() && !repository.missing.is_empty() {
        let detail = format!("the stanza does not exist: {}", repository.missing.join("; "));
        let level = if new { Level::Warn } else { Level::Fail };
        let hint = "POST /api/v1/stanzas/STANZA creates it.";
        return check(CheckId::Repository, level, detail, hint);
    }
    if repository.troubles.is_empty() {
        return pass(CheckId::Repository, "can be read and is sound".to_owned());
    }
    fail(
        CheckId::Repository,
        repository.troubles.join("; "),
        "Is it mounted, reachable, and readable for the server's user? Is the cipher pass right?",
    )
}

fn ages(
    facts: &Facts,
    repository: &RepositoryFacts,
    thresholds: &Thresholds,
    now: Timestamp,
    new: bool,
) -> Vec<Check> {
    // One that is under way may take long.
    let cap = |level: Level| if facts.backing_up { level.min(Level::Warn) } else { level };
    let age = |id, what: &str, at: Option<Timestamp>, limits| match at {
        Some(at) => {
            let age = now.duration_since(at);
            let detail = format!("the newest {what} ended {} ago", span(age));
            check(
                id,
                cap(above(age, limits)),
                detail,
                "POST /api/v1/stanzas/STANZA/backups takes one.",
            )
        }
        None if new || facts.backing_up => warn(id, format!("there is no {what} yet"), ""),
        None => {
            fail(id, format!("there is no {what}"), "Take one; if that fails, its job says why.")
        }
    };
    vec![
        age(CheckId::LastBackup, "backup", repository.last_backup_at, thresholds.last_backup),
        age(CheckId::LastFull, "full backup", repository.last_full_at, thresholds.last_full),
    ]
}

fn backup_sets(repository: &RepositoryFacts) -> Check {
    let bad = &repository.bad_sets;
    if bad.is_empty() {
        return pass(CheckId::BackupSets, "nothing is known against any backup".to_owned());
    }
    let shown = bad.iter().take(3).map(|set| format!("backup {}: {}", set.label, set.why));
    let mut detail = shown.collect::<Vec<_>>().join("; ");
    if bad.len() > 3 {
        detail = format!("{detail}; and {} more", bad.len() - 3);
    }
    warn(
        CheckId::BackupSets,
        format!("cannot be restored: {detail}"),
        "Take a full backup. No good backup goes for these, and a restore takes another; POST \
         /api/v1/stanzas/STANZA/expire with \"set\" removes one.",
    )
}

fn page_checksums(repository: &RepositoryFacts) -> Check {
    match &repository.damaged {
        Some(label) => warn(
            CheckId::PageChecksums,
            format!("backup {label} found damaged pages in the database"),
            "GET /api/v1/stanzas/STANZA/backups/LABEL names the files; older backups may hold them \
             undamaged.",
        ),
        None => pass(CheckId::PageChecksums, "the newest backup found no damaged page".to_owned()),
    }
}

fn archive(
    archiving: &ArchivingFacts,
    server_since: Timestamp,
    thresholds: &Thresholds,
    now: Timestamp,
) -> Vec<Check> {
    if !archiving.enabled {
        return vec![fail(
            CheckId::ArchiveMode,
            "archive_mode is off: nothing that is committed is backed up".to_owned(),
            "Restart PostgreSQL through Headrest: POST /api/v1/processes/postgres/restart.",
        )];
    }
    let mut checks = vec![pass(CheckId::ArchiveMode, "on".to_owned())];
    checks.push(match &archiving.foreign_command {
        None => pass(CheckId::ArchiveCommand, "pgBackRest's".to_owned()),
        Some(live) => fail(
            CheckId::ArchiveCommand,
            format!("archive_command is {live:?}, which is not the one that Headrest gave"),
            "Restart PostgreSQL through Headrest: POST /api/v1/processes/postgres/restart.",
        ),
    });
    checks.push(match &archiving.failing {
        None => pass(CheckId::Archiver, "nothing fails".to_owned()),
        Some((since, segment)) => {
            let span_of = now.duration_since(*since);
            let level = if span_of >= thresholds.archiver_fail { Level::Fail } else { Level::Warn };
            let detail = format!("WAL segment {segment} cannot be archived, for {}", span(span_of));
            let hint = "GET /api/v1/processes/postgres/log has pgBackRest's own message.";
            check(CheckId::Archiver, level, detail, hint)
        }
    });
    let ready = archiving.ready;
    let (warns, fails) = thresholds.wal_ready;
    let level = match ready {
        _ if ready >= fails => Level::Fail,
        _ if ready >= warns => Level::Warn,
        _ => Level::Pass,
    };
    let hint = "Archiving is slower than the server writes, or stuck; pg_wal grows meanwhile.";
    checks.push(check(CheckId::WalReady, level, format!("{ready} WAL files wait"), hint));
    // Without something to archive there is nothing to be late.
    if archiving.timeout.is_positive() && archiving.heartbeat.is_positive() {
        let since = archiving.last_archived_at.unwrap_or(server_since).max(server_since);
        let age = now.duration_since(since);
        let unit = archiving.timeout.max(archiving.heartbeat);
        let limits = (unit * sign(thresholds.wal_age.0), unit * sign(thresholds.wal_age.1));
        let detail = format!("nothing was archived for {}", span(age));
        checks.push(check(CheckId::WalAge, above(age, limits), detail, hint));
    }
    checks
}

fn sign(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn disk_space(disk: &super::Disk, thresholds: &Thresholds) -> Check {
    let percent = disk.free_bytes.saturating_mul(100).checked_div(disk.total_bytes).unwrap_or(100);
    let (warns, fails) = thresholds.disk_free;
    let level = match percent {
        _ if percent < u64::from(fails) => Level::Fail,
        _ if percent < u64::from(warns) => Level::Warn,
        _ => Level::Pass,
    };
    let mib = disk.free_bytes >> 20;
    let detail = format!("{percent} % ({mib} MiB) free for {}", disk.what);
    let hint = "PostgreSQL stops when the file system of its WAL is full.";
    let mut check = check(CheckId::DiskSpace, level, detail, hint);
    check.key.of = Some(disk.what.clone());
    check
}

fn above(age: SignedDuration, (warns, fails): (SignedDuration, SignedDuration)) -> Level {
    match age {
        _ if age >= fails => Level::Fail,
        _ if age >= warns => Level::Warn,
        _ => Level::Pass,
    }
}

fn check(id: CheckId, level: Level, detail: String, hint: &'static str) -> Check {
    let hint = if level == Level::Pass { "" } else { hint };
    Check { key: CheckKey { id, of: None }, level, detail, hint }
}

fn pass(id: CheckId, detail: String) -> Check {
    check(id, Level::Pass, detail, "")
}

fn warn(id: CheckId, detail: String, hint: &'static str) -> Check {
    check(id, Level::Warn, detail, hint)
}

fn fail(id: CheckId, detail: String, hint: &'static str) -> Check {
    check(id, Level::Fail, detail, hint)
}
