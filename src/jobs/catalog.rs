//! `pgbackrest info`, remembered: what the repository holds, and when that was seen.
//!
//! A hundred callers cost one run: who asks while one is under way waits for it. Nothing is asked
//! on its own account; a page that nobody looks at costs the repository nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use crate::clock;
use crate::domain::{BackupLabel, RepoKey, StanzaName};
use crate::pgbackrest::command::Info;
use crate::pgbackrest::info::{self, Lock, StanzaInfo, Status};
use crate::pgbackrest::runner::Tool;

/// An answer younger than this is good enough for a page or a list.
pub const FRESH_ENOUGH: Duration = Duration::from_secs(10);
/// How long a caller waits for news before it gets what was seen last.
const STALE_AFTER: Duration = Duration::from_secs(2);
/// How long a caller waits when nothing was seen yet.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// How long a job waits for an answer of its own.
const JOB_PATIENCE: Duration = Duration::from_secs(120);
/// How many single sets are remembered.
const SETS_KEPT: usize = 256;

/// What `info` said.
#[derive(Debug, Clone)]
pub struct Observation {
    /// When the run that said it began.
    pub observed_at: Timestamp,
    began: Instant,
    /// The JSON, untouched.
    pub raw: Arc<[u8]>,
    /// The stanza of it.
    pub stanza: StanzaInfo,
}

impl Observation {
    /// How long ago that was.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }
}

/// `info` itself could not be had: the program is missing, failed, or answered no JSON. (A broken
/// repository is an answer: its status says so.)
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// What happened, in one line.
    pub reason: String,
    /// When the run that failed began.
    since: Option<Instant>,
}

impl Unavailable {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), since: None }
    }
}

/// How old an answer may be.
#[derive(Debug, Clone, Copy)]
pub enum Freshness {
    /// Seen within this time.
    Within(Duration),
    /// Seen by a run that began after now.
    New,
}

type Seen = Result<Arc<Observation>, Unavailable>;

/// A handle to the memory; clones share it.
#[derive(Debug, Clone)]
pub struct Catalog {
    tool: Arc<Tool>,
    slots: Arc<BTreeMap<StanzaName, Slot>>,
}

#[derive(Debug)]
struct Slot {
    last: watch::Sender<Option<Seen>>,
    /// Held while `info` runs.
    turn: Mutex<()>,
    sets: StdMutex<BTreeMap<BackupLabel, Arc<info::Backup>>>,
}

impl Catalog {
    /// A memory for these stanzas, empty.
    pub fn new(tool: Arc<Tool>, stanzas: impl IntoIterator<Item = StanzaName>) -> Self {
        let slot = || Slot {
            last: watch::channel(None).0,
            turn: Mutex::default(),
            sets: StdMutex::default(),
        };
        let slots = stanzas.into_iter().map(|stanza| (stanza, slot())).collect();
        Self { tool, slots: Arc::new(slots) }
    }

    /// What the repository holds, as fresh as wanted.
    pub async fn observe(&self, stanza: &StanzaName, freshness: Freshness) -> Seen {
        let asked = Instant::now();
        let good = move |seen: &Observation| match freshness {
            Freshness::Within(age) => seen.began.elapsed() <= age,
            Freshness::New => seen.began >= asked,
        };
        if let Some(Ok(seen)) = self.last(stanza)
            && good(&seen)
        {
            return Ok(seen);
        }
        let last = self.last(stanza);
        let (this, stanza) = (self.clone(), stanza.clone());
        // In a task of its own: a caller that goes away must not end the run others wait for.
        let work = tokio::spawn(async move {
            let Some(slot) = this.slots.get(&stanza) else {
                return Err(Unavailable::new(format!("stanza {stanza} is not configured")));
            };
            let _turn = slot.turn.lock().await;
            // While we waited for our turn somebody else asked: their answer, or failure, is ours.
            match slot.last.borrow().clone() {
                Some(Ok(seen)) if good(&seen) => return Ok(seen),
                Some(Err(error)) if error.since.is_some_and(|since| since >= asked) => {
                    return Err(error);
                }
                _ => {}
            }
            let began = Instant::now();
            let seen = this
                .run(&stanza)
                .await
                .map_err(|error| Unavailable { since: Some(began), ..error });
            slot.last.send_replace(Some(seen.clone()));
            seen
        });
        let patience = match (freshness, last) {
            // A repository that hangs must not make what was seen before disappear.
            (Freshness::Within(_), Some(Ok(seen))) => match timeout(STALE_AFTER, work).await {
                Ok(done) => return unpanicked(done),
                Err(_) => return Ok(seen),
            },
            (Freshness::Within(_), _) => FIRST_PATIENCE,
            (Freshness::New, _) => JOB_PATIENCE,
        };
        match timeout(patience, work).await {
            Ok(done) => unpanicked(done),
            Err(_) => Err(Unavailable::new(format!(
                "pgbackrest info did not answer within {} s",
                patience.as_secs()
            ))),
        }
    }

    /// What was seen last, however old. Never runs anything.
    pub fn last(&self, stanza: &StanzaName) -> Option<Seen> {
        self.slots.get(stanza).and_then(|slot| slot.last.borrow().clone())
    }

    /// One backup with what only `info --set` answers (its databases, tablespaces and links), when its manifest
    /// was read before.
    pub fn set(&self, stanza: &StanzaName, label: &BackupLabel) -> Option<Arc<info::Backup>> {
        let sets = self.slots.get(stanza)?.sets.lock().unwrap_or_else(PoisonError::into_inner);
        sets.get(label).cloned()
    }

    /// Reads the manifest of a backup from its repository, now. The inner error says why it cannot be
    /// read, although the repository can.
    pub async fn manifest(
        &self,
        stanza: &StanzaName,
        repo: RepoKey,
        label: &BackupLabel,
    ) -> Result<Result<Arc<info::Backup>, String>, Unavailable> {
        let missing = || Unavailable::new(format!("stanza {stanza} is not configured"));
        let slot = self.slots.get(stanza).ok_or_else(missing)?;
        let command = Info { stanza, set: Some(label), repo: Some(repo), json: true };
        let stanzas = self.ask(&command).await?.1;
        let found = info::find(&stanzas, stanza).or_else(|| stanzas.first());
        let Some(found) = found else {
            return Err(Unavailable::new("the repository is not there"));
        };
        if let Some(backup) = found.backups.iter().find(|backup| backup.label == *label) {
            return Ok(Ok(slot.keep(backup.clone())));
        }
        let listed = found.repos.iter().find(|known| known.key == repo);
        let (code, message) = listed.map_or((found.status.code, &found.status.message), |listed| {
            (listed.status.code, &listed.status.message)
        });
        match info::manifest_problem(code, message) {
            Some(problem) => Ok(Err(problem)),
            None => Err(Unavailable::new(message.clone())),
        }
    }

    /// `info` as text for people.
    pub async fn text(&self, stanza: &StanzaName) -> Result<String, Unavailable> {
        let (raw, _) = self.capture(&Info { stanza, set: None, repo: None, json: false }).await?;
        Ok(String::from_utf8_lossy(&raw).into_owned())
    }

    async fn run(&self, stanza: &StanzaName) -> Seen {
        let (observed_at, began) = (clock::now(), Instant::now());
        let (raw, stanzas) = self.ask(&Info { stanza, set: None, repo: None, json: true }).await?;
        let stanza = info::find(&stanzas, stanza)
            // "[invalid]" stands for a repository that cannot be read.
            .or_else(|| stanzas.first())
            .cloned()
            .unwrap_or_else(|| missing(stanza));
        Ok(Arc::new(Observation { observed_at, began, raw: raw.into(), stanza }))
    }

    async fn ask(&self, command: &Info<'_>) -> Result<(Vec<u8>, Vec<StanzaInfo>), Unavailable> {
        let (raw, stderr) = self.capture(command).await?;
        let stanzas = info::parse(&raw).map_err(|error| {
            let said = if stderr.is_empty() { String::new() } else { format!(" ({stderr})") };
            Unavailable::new(format!("{}{said}", crate::telemetry::chain(&error)))
        })?;
        Ok((raw, stanzas))
    }

    async fn capture(&self, command: &Info<'_>) -> Result<(Vec<u8>, String), Unavailable> {
        let captured = self
            .tool
            .capture(&command.invocation(), &BTreeMap::new())
            .await
            .map_err(|error| Unavailable::new(crate::telemetry::chain(&error)))?;
        if captured.end.is_success() {
            return Ok((captured.stdout, captured.stderr));
        }
        let said = if captured.stderr.is_empty() {
            String::from_utf8_lossy(&captured.stdout).lines().next().unwrap_or_default().to_owned()
        } else {
            captured.stderr
        };
        Err(Unavailable::new(format!("pgbackrest info {}: {said}", captured.end)))
    }
}

impl Slot {
    fn keep(&self, backup: info::Backup) -> Arc<info::Backup> {
        let backup = Arc::new(backup);
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if sets.len() >= SETS_KEPT {
            sets.pop_first();
        }
        sets.insert(backup.label.clone(), Arc::clone(&backup));
        backup
    }
}

fn unpanicked(done: Result<Seen, tokio::task::JoinError>) -> Seen {
    done.unwrap_or_else(|panic| Err(Unavailable::new(panic.to_string())))
}

/// A stanza that `info` does not list at all: its repository is not there (seen with 2.45).
fn missing(stanza: &StanzaName) -> StanzaInfo {
    StanzaInfo {
        name: stanza.to_string(),
        status: Status {
            code: 1,
            message: "missing stanza path".to_owned(),
            lock: Lock::default(),
        },
        cipher: None,
        repos: Vec::new(),
        databases: Vec::new(),
        archives: Vec::new(),
        backups: Vec::new(),
        skipped_backups: 0,
    }
}
