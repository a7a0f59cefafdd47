//! Verification: what pgBackRest reads again of a repository, and whether the WAL is without a gap,
//! which it does not look at.
//!
//! The verdict comes from the report and from the listing of the archive, never from the exit code.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;

use super::catalog::{FRESH_ENOUGH, Freshness, Observation};
use super::context::Context;
use super::plans::{self, Look};
use super::recorder::Recorder;
use super::retention::{Ground, find_repo, gather};
use super::worker::{Ended, follow, judge, problem};
use crate::clock;
use crate::domain::archive::Segments;
use crate::domain::job::{JobResult, Outcome, VerifyResult, VerifySpec};
use crate::domain::sets::Verified;
use crate::domain::{BackupLabel, RepoKey, SegmentSize, StanzaName, WalSegment};
use crate::pgbackrest::command::Verify;
use crate::pgbackrest::exit::Context as ExitContext;
use crate::pgbackrest::info::Backup;
use crate::pgbackrest::log::Level;
use crate::pgbackrest::runner::{Sink, Stream};
use crate::pgbackrest::verify::{BackupReport, Reader, Report, Status};
use crate::process::inspect::ProcessIdentity;

/// Lines of a result.
const LINES: usize = 100;

pub(super) async fn run(
    context: &Context,
    spec: &VerifySpec,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Ended {
    let seen = match context.catalog.observe(&spec.stanza, Freshness::New).await {
        Ok(seen) => seen,
        Err(error) => {
            return Ended::failed(problem("repository-unavailable", error.to_string(), &[]));
        }
    };
    if let Err(error) = find_repo(&seen, spec.repo) {
        return Ended::failed(error);
    }
    let repos: Vec<RepoKey> = seen.stanza.repos.iter().map(|repo| repo.key).collect();
    let repos: Vec<RepoKey> =
        repos.into_iter().filter(|repo| spec.repo.is_none_or(|wanted| wanted == *repo)).collect();
    let is_there = |backup: &Backup| {
        spec.set.as_ref().is_none_or(|set| *set == backup.label)
            && repos.contains(&backup.repo_key.unwrap_or(RepoKey::FIRST))
    };
    if let Some(set) = &spec.set
        && !seen.stanza.backups.iter().any(is_there)
    {
        let message = format!("there is no backup {set}");
        return Ended::failed(problem("backup-not-found", message, &[]));
    }
    if repos.is_empty() {
        let message = format!("there is nothing to verify: {}", seen.stanza.status.message);
        return Ended::failed(problem("stanza-not-created", message, &[]));
    }
    let mut found = Findings::default();
    let mut stopped = None;
    for repo in &repos {
        match report(context, spec, *repo, recorder, cancel).await {
            Ok(report) => found.add(spec, *repo, &seen, &report),
            // What was found in another one is still true.
            Err(ended) => stopped = stopped.or(Some((*repo, ended))),
        }
        if cancel.is_cancelled() || context.shutdown.is_cancelled() {
            break;
        }
    }
    if let Some((repo, ended)) = stopped {
        if found.error_count == 0 {
            return ended;
        }
        let why = ended.error.map_or_else(|| "it ended early".to_owned(), |error| error.message);
        found.error(format!("repository {repo} was not verified: {why}"));
    }
    match plans::look_now(context, &spec.stanza).await {
        Ok(look) => match gather(context, &spec.stanza, Freshness::Within(FRESH_ENOUGH)).await {
            Ok(ground) => found.add_gaps(spec, &seen, &look, &repos, &ground),
            Err(error) => found.error(format!("what retention keeps cannot be told: {error}")),
        },
        Err(error) => found.error(format!("the WAL archive cannot be listed: {error}")),
    }
    finish(context, spec, found, recorder).await
}

/// Whether this pgBackRest can verify one set alone.
pub(super) fn knows_sets(context: &Context) -> bool {
    context.version.as_ref().is_some_and(|version| version.verifies_one_set())
}

/// Verifies a backup that was just made; answers what is wrong with it. What could not be looked at says
/// nothing.
pub(super) async fn new_backup(
    context: &Context,
    (stanza, repo, label): (&StanzaName, RepoKey, &BackupLabel),
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Option<String> {
    let (set, only) = (Some(label.clone()), Some(repo));
    let spec = VerifySpec { stanza: stanza.clone(), set, repo: only };
    let report = match report(context, &spec, repo, recorder, cancel).await {
        Ok(report) => report,
        Err(ended) => {
            let why = ended.error.map_or_else(|| "it ended early".to_owned(), |e| e.message);
            recorder.say(Level::Warn, format!("backup {label} was not verified: {why}")).await;
            return None;
        }
    };
    let reported = report.backups.iter().find(|backup| backup.label == label.as_str());
    let good = reported.and_then(BackupReport::verdict)?;
    let found = vec![(repo, label.clone(), Verified { at: clock::now(), good })];
    if let Err(error) = context.store.set_verified(stanza.clone(), found).await {
        tracing::error!("{}", crate::telemetry::chain(&error));
    }
    if good { None } else { wrong_with(reported) }
}

/// Runs `verify` of one repository.
async fn report(
    context: &Context,
    spec: &VerifySpec,
    repo: RepoKey,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Result<Report, Ended> {
    let set = spec.set.as_ref().filter(|_| knows_sets(context));
    let invocation = Verify { stanza: &spec.stanza, repo, set }.invocation();
    recorder.next_command();
    let mut sink = Reading { recorder, reader: Reader::new() };
    let ended = follow(context, &spec.stanza, &invocation, cancel, &mut sink).await;
    let report = sink.reader.finish();
    judge(context, ExitContext::Verify, ended, recorder, cancel)?;
    Ok(report)
}

/// Reads the report, and records what is no part of it.
struct Reading<'a> {
    recorder: &'a mut Recorder,
    reader: Reader,
}

impl Sink for Reading<'_> {
    async fn started(&mut self, process: ProcessIdentity) {
        self.recorder.started(process).await;
    }

    async fn lines(&mut self, stream: Stream, mut lines: Vec<String>) {
        if stream == Stream::Out {
            lines.retain(|line| self.reader.push(line));
        }
        self.recorder.lines(stream, lines).await;
    }
}

#[derive(Default)]
struct Findings {
    errors: Vec<String>,
    error_count: u64,
    gaps: Vec<String>,
    expired: Vec<String>,
    backups: u64,
    files: u64,
    segments: u64,
    /// The backups that were looked at, and whether each is good; nothing when that was not seen.
    verdicts: Vec<(RepoKey, BackupLabel, Option<bool>)>,
}

impl Findings {
    fn error(&mut self, line: String) {
        self.error_count += 1;
        if self.errors.len() < LINES {
            self.errors.push(line);
        }
    }

    fn add(&mut self, spec: &VerifySpec, repo: RepoKey, seen: &Observation, report: &Report) {
        let whole = spec.set.is_none();
        let wanted: Vec<&BackupLabel> = seen
            .stanza
            .backups
            .iter()
            .filter(|backup| backup.repo_key.unwrap_or(RepoKey::FIRST) == repo)
            .map(|backup| &backup.label)
            .filter(|label| spec.set.as_ref().is_none_or(|set| set == *label))
            .collect();
        // A file stands in the directory of the backup that copied it.
        let mut places: BTreeSet<String> = wanted.iter().map(|l| format!("{l}/")).collect();
        for label in &wanted {
            places.extend(seen.stanza.needs(label).iter().map(|needed| format!("{needed}/")));
        }
        let concerns = |line: &str| whole || places.iter().any(|place| line.contains(place));
        let files: Vec<&String> = report.files.iter().filter(|line| concerns(line)).collect();
        for line in &files {
            self.error(format!("repository {repo}: {line}"));
        }
        if whole {
            self.error_count += report.bad_files.saturating_sub(report.files.len() as u64);
        }
        for archive in &report.archives {
            self.segments += archive.checked;
        }
        let before = self.error_count;
        for label in wanted {
            let reported = report.backups.iter().find(|backup| backup.label == label.as_str());
            if let Some(wrong) = wrong_with(reported) {
                self.error(format!("repository {repo}: backup {label}: {wrong}"));
            }
            self.backups += 1;
            self.files += reported.map_or(0, |reported| reported.checked);
            self.verdicts.push((repo, label.clone(), reported.and_then(BackupReport::verdict)));
        }
        let told = self.error_count > before || !files.is_empty();
        match report.status {
            None => self.error(format!("repository {repo}: pgbackrest verify gave no report")),
            Some(Status::Error) if whole && !report.notes.is_empty() => {
                self.error(format!("repository {repo}: {}", report.notes.join("; ")));
            }
            Some(Status::Error) if whole && !told => {
                self.error(format!("repository {repo}: pgbackrest verify found errors"));
            }
            Some(Status::Error | Status::Ok) => {}
        }
    }

    /// Adds what is missing of the WAL: of each backup's own, and between the backups.
    fn add_gaps(
        &mut self,
        spec: &VerifySpec,
        seen: &Observation,
        look: &Look,
        repos: &[RepoKey],
        ground: &Ground,
    ) {
        let own = |repo: RepoKey| look.ground.catalogue.sets.iter().any(|set| set.repo == repo);
        for repo in repos {
            // The others are looked at all the same, so that is no error there.
            if own(*repo) && !look.ground.archives.contains_key(repo) {
                self.error(format!("repository {repo}: the WAL archive cannot be listed"));
            }
        }
        let size = look.ground.catalogue.segment_size;
        let backups = seen.stanza.backups.iter();
        let mut verdicts = std::mem::take(&mut self.verdicts);
        for backup in backups {
            let repo = backup.repo_key.unwrap_or(RepoKey::FIRST);
            let is_it = |(r, label, _): &&mut (RepoKey, BackupLabel, Option<bool>)| {
                *r == repo && *label == backup.label
            };
            let Some(verdict) = verdicts.iter_mut().find(is_it) else { continue };
            // Those of a cluster that the stanza had before have their own archive.
            let sets = &look.ground.catalogue.sets;
            let ours = sets.iter().any(|set| set.label == backup.label && set.repo == repo);
            let Some(archive) = look.ground.archives.get(&repo).filter(|_| ours) else { continue };
            for missing in missing_of(backup, &archive.segments, size) {
                verdict.2 = Some(false);
                self.gaps.push(format!(
                    "repository {repo}: WAL segment {missing} is missing, which backup {} needs to \
                     become consistent",
                    backup.label
                ));
            }
        }
        self.verdicts = verdicts;
        if spec.set.is_some() {
            return;
        }
        let newest = look.windows.iter().map(|window| window.timeline).max();
        for window in look.windows.iter() {
            let current = window.is_current
                || (look.ground.catalogue.current.is_none() && Some(window.timeline) == newest);
            if !current || spec.repo.is_some_and(|repo| repo != window.repo) {
                continue;
            }
            let kept_from = kept_from(ground, seen, window.repo, size);
            for gap in &window.gaps {
                let line = format!("repository {}: {gap}", window.repo);
                let is_expired = kept_from.is_some_and(|from| gap.last.number() < from.number());
                let lines = if is_expired { &mut self.expired } else { &mut self.gaps };
                // What a backup needs was told with the backup.
                if is_expired || gap.first != gap.last || !told(lines, &gap.first) {
                    lines.push(line);
                }
            }
        }
    }
}

fn told(lines: &[String], segment: &WalSegment) -> bool {
    let name = segment.to_string();
    lines.iter().any(|line| line.contains(&name))
}

fn wrong_with(told: Option<&BackupReport>) -> Option<String> {
    let Some(told) = told else { return Some("verify does not mention it".to_owned()) };
    if told.is_valid() {
        return None;
    }
    let bad = told.bad;
    let counts = [
        (bad.missing, "missing"),
        (bad.checksum, "with a wrong checksum"),
        (bad.size, "of a wrong size"),
        (bad.other, "that cannot be read"),
    ];
    let counts: Vec<String> = counts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{number} files {what}"))
        .collect();
    let status = if told.status.is_empty() { "no status" } else { &told.status };
    Some(if counts.is_empty() {
        status.to_owned()
    } else {
        format!("{status}: {}", counts.join(", "))
    })
}

/// The segments that a backup needs to become consistent and the archive does not have.
fn missing_of(backup: &Backup, archive: &Segments, size: SegmentSize) -> Vec<WalSegment> {
    let parse = |name: &Option<String>| WalSegment::parse(name.as_deref()?, size).ok();
    let (Some(first), Some(last)) = (parse(&backup.archive_start), parse(&backup.archive_stop))
    else {
        return Vec::new();
    };
    if first.timeline() != last.timeline() {
        return Vec::new();
    }
    let numbers = first.number()..=last.number();
    let segments = numbers.filter_map(|n| WalSegment::numbered(first.timeline(), n, size));
    segments.filter(|segment| !archive.has(*segment)).take(LINES).collect()
}

/// Before which segment retention lets WAL go that no backup needs to become consistent: where the
/// oldest backup begins of which all WAL is kept. `None` when it lets none go.
fn kept_from(
    ground: &Ground,
    seen: &Observation,
    repo: RepoKey,
    size: SegmentSize,
) -> Option<WalSegment> {
    let plans = ground.plan();
    let limit = ground.wal_limit(plans.iter().find(|plan| plan.repo == repo)?)?;
    let oldest = seen.stanza.backups.iter().find(|backup| {
        backup.label == limit.from && backup.repo_key.unwrap_or(RepoKey::FIRST) == repo
    })?;
    WalSegment::parse(oldest.archive_start.as_deref()?, size).ok()
}

async fn finish(
    context: &Context,
    spec: &VerifySpec,
    found: Findings,
    recorder: &mut Recorder,
) -> Ended {
    let at = clock::now();
    let verified = found.verdicts.into_iter();
    // What could not be seen is no verdict: a backup that counts as damaged may go.
    let verified = verified.filter_map(|(repo, label, good)| Some((repo, label, good?)));
    let verified = verified.map(|(repo, label, good)| (repo, label, Verified { at, good }));
    if let Err(error) = context.store.set_verified(spec.stanza.clone(), verified.collect()).await {
        tracing::warn!("{}", crate::telemetry::chain(&error));
    }
    for line in found.errors.iter().chain(&found.gaps) {
        recorder.say(Level::Error, line.clone()).await;
    }
    for line in &found.expired {
        recorder.say(Level::Info, format!("{line}, as retention has it")).await;
    }
    let named = |lines: &[String]| lines.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    let error = match (found.error_count, found.gaps.len()) {
        (0, 0) => None,
        (0, _) => Some(problem(
            "wal-gap",
            named(&found.gaps),
            &[
                "Nothing after the gap can be restored from a backup before it. Take a full backup now.",
            ],
        )),
        (count, gaps) => {
            let mut message = format!("{count} errors: {}", named(&found.errors));
            if gaps > 0 {
                message.push_str("; ");
                message.push_str(&named(&found.gaps));
            }
            let hint = "Take a full backup now, and find out what happened to the repository's \
                        storage. What is damaged goes in its time; no good backup goes for it.";
            Some(problem("verify-errors", message, &[hint]))
        }
    };
    let result = VerifyResult {
        good: error.is_none(),
        backups: found.backups,
        files: found.files,
        segments: found.segments,
        errors: found.errors,
        error_count: found.error_count,
        wal_gaps: found.gaps,
        wal_expired: found.expired,
    };
    let outcome = if error.is_none() { Outcome::Succeeded } else { Outcome::Failed };
    Ended { result: Some(JobResult::Verify(result)), error, ..Ended::with(outcome) }
}
