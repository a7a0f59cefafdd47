//! What a job says while it runs: parsed, bounded, stored, and only then told.
//!
//! File-by-file lines become progress and are not kept. Of a job that says too much the beginning
//! and the end are kept.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

use super::context::Wake;
use crate::clock;
use crate::domain::BackupLabel;
use crate::domain::job::{JobId, JobState, Progress};
use crate::domain::restore::{Awaiting, Phase};
use crate::pgbackrest::log::{Level, LineParser, LogLine, Milestone, milestone};
use crate::pgbackrest::runner::{Sink, Stream};
use crate::process::inspect::ProcessIdentity;
use crate::store::{NewEvent, Store};

/// Lines kept from the beginning.
const KEPT_LINES: usize = 10_000;
/// Bytes kept from the beginning.
const KEPT_BYTES: usize = 2 << 20;
/// Lines kept from the end.
const TAIL_LINES: usize = 200;
/// How often progress is stored at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Lines kept of an error's text, and hints.
const MOST_ERROR_LINES: usize = 50;

/// What the lines told about the run, best effort.
#[derive(Debug, Default, Clone)]
pub struct Heard {
    /// The first `ERROR: [NNN]: text`, with the further lines of its text.
    pub error: Option<(i32, String)>,
    /// Its hints.
    pub error_hints: Vec<String>,
    /// The new backup's label.
    pub new_label: Option<BackupLabel>,
    /// The last lines on standard error.
    pub stderr: Vec<String>,
}

impl Heard {
    /// A further line of an error: of its text, or of a hint.
    fn more_of_the_error(&mut self, text: &str) {
        let Some((_, message)) = &mut self.error else { return };
        if let Some(hint) = text.strip_prefix("HINT: ") {
            if self.error_hints.len() < MOST_ERROR_LINES {
                self.error_hints.push(hint.to_owned());
            }
            return;
        }
        let into = self.error_hints.last_mut().unwrap_or(message);
        if into.lines().count() < MOST_ERROR_LINES {
            into.push('\n');
            into.push_str(text);
        }
    }
}

/// Records one job.
#[derive(Debug)]
pub struct Recorder {
    job: JobId,
    store: Store,
    wake: Wake,
    parsers: [LineParser; 2],
    kept_lines: usize,
    kept_bytes: usize,
    tail: VecDeque<NewEvent>,
    dropped: u64,
    began: Instant,
    progress: Progress,
    phase: Option<Phase>,
    progress_stored: Option<Instant>,
    /// It has changed since, and was not stored because that was only just done.
    progress_unstored: bool,
    /// What the current command told.
    pub heard: Heard,
}

impl Recorder {
    /// A recorder for a job.
    pub fn new(job: JobId, store: Store, wake: Wake) -> Self {
        Self {
            job,
            store,
            wake,
            parsers: [LineParser::new(), LineParser::new()],
            kept_lines: 0,
            kept_bytes: 0,
            tail: VecDeque::new(),
            dropped: 0,
            began: Instant::now(),
            progress: Progress::default(),
            phase: None,
            progress_stored: None,
            progress_unstored: false,
            heard: Heard::default(),
        }
    }

    /// Forgets what the last command told, before the next one.
    pub fn next_command(&mut self) {
        self.parsers = [LineParser::new(), LineParser::new()];
        self.heard = Heard::default();
        self.began = Instant::now();
    }

    /// A line of our own.
    pub async fn say(&mut self, level: Level, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(job.id = %self.job, "{text}");
        let event = log_event(level, None, text);
        self.store_events(vec![event]).await;
    }

    /// The phase of a restore.
    pub async fn phase(&mut self, phase: Phase) {
        self.phase = Some(phase);
        let progress = Progress { phase: Some(phase.to_string()), ..Progress::default() };
        self.progress = progress;
        self.began = Instant::now();
        let data = serde_json::json!({ "phase": phase, "text": phase.describe() });
        let events = vec![
            event("phase", data.to_string()),
            log_event(Level::Info, None, format!("phase {phase}: {}", phase.describe())),
        ];
        self.store_all(true, events).await;
    }

    /// A restore has begun to wait for somebody.
    pub async fn waits(&mut self, awaiting: Awaiting) {
        let data = serde_json::json!({
            "state": JobState::Running, "outcome": null, "awaiting": awaiting,
        });
        self.store_events(vec![event("state", data.to_string())]).await;
    }

    /// How far it is.
    pub async fn progress(&mut self, change: impl FnOnce(&mut Progress)) {
        let before = self.progress.clone();
        change(&mut self.progress);
        self.progress_unstored |= before != self.progress;
        if self.progress_unstored {
            self.store_progress().await;
        }
    }

    /// What it stands at and waits for, told at once: nothing else may come for a long time.
    pub async fn stands_at(&mut self, text: &str) {
        if self.progress.phase.as_deref() != Some(text) || self.progress_unstored {
            self.progress.phase = Some(text.to_owned());
            self.store_all(true, vec![progress_event(&self.progress)]).await;
        }
    }

    /// Stores what was held back, and how far the job came. Call at the end of a job.
    pub async fn finish(&mut self, done: bool) {
        self.progress.eta_s = None;
        if done && self.progress.percent_hundredths.is_some() {
            self.progress.percent_hundredths = Some(10_000);
        }
        if self.progress != Progress::default() {
            self.store_all(true, vec![progress_event(&self.progress)]).await;
        }
        if self.dropped > 0 {
            let text = format!("… {} lines were not kept here; the last ones follow", self.dropped);
            let mut events = vec![log_event(Level::Warn, None, text)];
            events.extend(self.tail.drain(..));
            self.dropped = 0;
            self.store_events(events).await;
        }
    }

    fn hear(&mut self, stream: Stream, line: &LogLine) -> bool {
        match milestone(line) {
            Some(Milestone::FileProgress { percent, .. }) => {
                self.progress.percent_hundredths = Some(percent);
                self.progress.eta_s = eta(self.began.elapsed(), percent);
                return false;
            }
            Some(Milestone::NewBackupLabel(label)) => self.heard.new_label = Some(label),
            Some(Milestone::Error { code, message }) if self.heard.error.is_none() => {
                self.heard.error = Some((code, message));
            }
            None if line.level == Level::Detail && is_about_one_file(&line.text) => return false,
            _ if line.level == Level::Error => self.heard.more_of_the_error(&line.text),
            _ => {}
        }
        if stream == Stream::Err && self.heard.stderr.len() < 20 {
            self.heard.stderr.push(line.text.clone());
        }
        true
    }

    /// Keeps a line if there is room, else as one of the last.
    fn keep(&mut self, line: LogLine, into: &mut Vec<NewEvent>) {
        let event = log_event(line.level, line.process, line.text);
        if self.kept_lines < KEPT_LINES && self.kept_bytes < KEPT_BYTES {
            self.kept_lines += 1;
            self.kept_bytes += event.text.len();
            into.push(event);
            return;
        }
        self.dropped += 1;
        self.tail.push_back(event);
        if self.tail.len() > TAIL_LINES {
            self.tail.pop_front();
        }
    }

    async fn store_progress(&mut self) {
        // A hundred times or so, however long it takes.
        let every = PROGRESS_EVERY.max(self.began.elapsed() / 100);
        if self.progress_stored.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        self.store_all(true, vec![progress_event(&self.progress)]).await;
    }

    async fn store_events(&mut self, events: Vec<NewEvent>) {
        if !events.is_empty() {
            self.store_all(false, events).await;
        }
    }

    async fn store_all(&mut self, with_progress: bool, events: Vec<NewEvent>) {
        let progress = with_progress.then(|| (self.progress.clone(), self.phase));
        if with_progress {
            self.progress_unstored = false;
            self.progress_stored = Some(Instant::now());
        }
        match self.store.append_events(self.job, progress, events).await {
            Ok(last) => self.wake.stored(last),
            // A full disk must not end a backup or, worse, a restore.
            Err(error) => {
                let error = crate::telemetry::chain(&error);
                tracing::error!(job.id = %self.job, "cannot store what a job says: {error}");
            }
        }
    }
}

impl Sink for Recorder {
    async fn started(&mut self, process: ProcessIdentity) {
        let text = serde_json::json!(process).to_string();
        if let Err(error) = self.store.set_job_process(self.job, text).await {
            tracing::error!(job.id = %self.job, %error, "cannot note a job's process: {error}");
        }
    }

    async fn lines(&mut self, stream: Stream, lines: Vec<String>) {
        let mut events = Vec::new();
        let before = self.progress.percent_hundredths;
        for line in lines {
            let Some(line) = self.parsers[usize::from(stream == Stream::Err)].push(&line) else {
                continue;
            };
            if self.hear(stream, &line) {
                self.keep(line, &mut events);
            }
        }
        self.store_events(events).await;
        self.progress_unstored |= self.progress.percent_hundredths != before;
        if self.progress_unstored {
            self.store_progress().await;
        }
    }
}

/// A recorder that also takes the sizes of a running backup.
pub(super) struct WithSizes<'a> {
    pub(super) recorder: &'a mut Recorder,
    pub(super) sizes: Option<mpsc::Receiver<(u64, u64)>>,
}

impl Sink for WithSizes<'_> {
    async fn started(&mut self, process: ProcessIdentity) {
        self.recorder.started(process).await;
    }

    async fn lines(&mut self, stream: Stream, lines: Vec<String>) {
        self.recorder.lines(stream, lines).await;
    }

    async fn tick(&mut self) {
        let Some(Ok((done, total))) = self.sizes.as_mut().map(mpsc::Receiver::try_recv) else {
            return;
        };
        let elapsed = self.recorder.began.elapsed();
        self.recorder
            .progress(|progress| {
                progress.bytes_done = Some(done);
                progress.bytes_total = Some(total);
                let percent = done.saturating_mul(10_000).checked_div(total).unwrap_or(0);
                let percent = u32::try_from(percent.min(10_000)).unwrap_or(10_000);
                progress.percent_hundredths = Some(percent);
                progress.eta_s = eta(elapsed, percent);
            })
            .await;
    }
}

/// Whether a detail is one of those that pgBackRest prints for every file or directory. There are
/// thousands of them and they tell nobody anything.
fn is_about_one_file(text: &str) -> bool {
    const EACH: [&str; 14] = [
        "backup file ",
        "check '",
        "create link ",
        "create path ",
        "hardlink ",
        "match file ",
        "reference ",
        "remove ",
        "restore file ",
        "restore zeroed file ",
        "store zero-length file ",
        "sync path ",
        "update mode ",
        "update ownership ",
    ];
    EACH.iter().any(|start| text.starts_with(start))
}

/// Seconds left at the pace so far; unknown at the very beginning.
fn eta(elapsed: Duration, percent_hundredths: u32) -> Option<u64> {
    let left = 10_000u32.saturating_sub(percent_hundredths);
    (percent_hundredths >= 100 && elapsed >= Duration::from_secs(1))
        .then(|| elapsed.as_secs().saturating_mul(left.into()) / u64::from(percent_hundredths))
}

fn log_event(level: Level, process: Option<u16>, text: String) -> NewEvent {
    NewEvent { level: Some(level.as_str()), process, ..event("log", text) }
}

fn progress_event(progress: &Progress) -> NewEvent {
    event("progress", serde_json::json!(progress).to_string())
}

/// An event of another kind than a log line.
pub fn event(kind: &'static str, text: String) -> NewEvent {
    NewEvent { at: clock::now(), kind, level: None, process: None, text }
}
