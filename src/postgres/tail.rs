//! The server's output: a file it writes to, followed line by line.
//!
//! A file and not a pipe, because the server outlives Headrest (kill -9, an upgrade): with a pipe
//! its lines would be lost from then on, and `archive-push` would fail whenever it has something to
//! say. The file is emptied when it has grown; the lines themselves go on to Headrest's own log.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::process::lines::LineSplitter;

/// Lines kept in memory.
const KEPT_LINES: usize = 2000;
/// Size at which the file is emptied.
const EMPTY_AT: u64 = 16 << 20;
/// How much of an existing file is read back after a restart of Headrest.
const READ_BACK: u64 = 64 << 10;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A server that waits for WAL says so ten times a second (with our `wal_retrieve_retry_interval`).
/// Said once it is enough, until it says something else: of everything else nothing would be left.
const SAID_ONCE: &str = "waiting for WAL to become available";

/// The last lines of a process, with growing ids.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    lines: Arc<Mutex<Lines>>,
    /// How often the file was read to its end.
    rounds: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Lines {
    next_id: u64,
    kept: VecDeque<(u64, String)>,
}

impl Ring {
    /// The lines after the one with id `after`, oldest first, with their ids.
    pub fn after(&self, after: u64) -> Vec<(u64, String)> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.kept.iter().filter(|(id, _)| *id > after).cloned().collect()
    }

    /// The id of the newest line.
    pub fn newest(&self) -> u64 {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).next_id
    }

    /// Why a server ended, by what it said after the line with id `after`: its first FATAL or PANIC
    /// that is not about one client, with what belongs to it (DETAIL, HINT). What comes later is what
    /// follows from it.
    pub fn cause(&self, after: u64) -> Option<String> {
        let lines = self.after(after);
        let texts: Vec<&str> = lines.iter().map(|(_, line)| line.as_str()).collect();
        let first = texts.iter().position(|line| {
            let fatal = ["FATAL:", "PANIC:"].iter().find_map(|word| line.split_once(word));
            fatal.is_some_and(|(_, message)| !is_about_a_client(message))
        })?;
        let mut cause = said(texts[first]).to_owned();
        let process = process_of(texts[first]);
        let own = texts[first + 1..].iter().filter(|line| process_of(line) == process);
        let parts = own.map(|line| said(line)).take_while(|said| {
            ["DETAIL:", "HINT:", "CONTEXT:", "STATEMENT:"].iter().any(|word| said.contains(word))
        });
        for part in parts.filter(|said| said.contains("DETAIL:") || said.contains("HINT:")) {
            cause.push('\n');
            cause.push_str(part);
        }
        Some(cause)
    }

    /// Waits until everything that was written before now is here. Bounded, for when nobody
    /// follows the file.
    pub async fn caught_up(&self) {
        let mut rounds = self.rounds.subscribe();
        // The round under way may have passed it already; the next one has not.
        let target = *rounds.borrow() + 2;
        let _ = timeout(LOOK_EVERY * 5, rounds.wait_for(|round| *round >= target)).await;
    }

    /// Adds a line. PostgreSQL's continuation lines begin with a tab and belong to the last one.
    fn push(&self, line: String) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if line.starts_with('\t')
            && let Some((_, last)) = lines.kept.back_mut()
        {
            if last.len() < 16 << 10 {
                last.push('\n');
                last.push_str(&line);
            }
            return;
        }
        lines.next_id += 1;
        let id = lines.next_id;
        lines.kept.push_back((id, line));
        if lines.kept.len() > KEPT_LINES {
            lines.kept.pop_front();
        }
    }
}

/// The file that a server's output goes to.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
}

impl OutputFile {
    /// The file at this path.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Opens it for a child to write to.
    pub fn for_child(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)
    }

    /// Follows it until `stop`, into `ring` and into our own log.
    pub async fn follow(&self, ring: Ring, stop: CancellationToken) {
        let mut reader = match Follower::open(&self.path) {
            Ok(reader) => reader,
            Err(error) => {
                let path = self.path.display();
                tracing::error!(%error, "cannot follow the server's output in {path}: {error}");
                return;
            }
        };
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Lines of before the start were logged before; here they are only remembered.
        while let Ok(lines) = reader.more()
            && !lines.is_empty()
        {
            for line in lines {
                ring.push(line);
            }
        }
        let mut before = String::new();
        loop {
            let last = tokio::select! {
                _ = tick.tick() => false,
                () = stop.cancelled() => true,
            };
            loop {
                let lines = reader.more().unwrap_or_default();
                if lines.is_empty() {
                    break;
                }
                for line in lines {
                    let said = said(&line);
                    if said.contains(SAID_ONCE) && said == before {
                        continue;
                    }
                    said.clone_into(&mut before);
                    tracing::info!(target: "postgres", "{line}");
                    ring.push(line);
                }
            }
            ring.rounds.send_modify(|round| *round += 1);
            if last {
                return;
            }
        }
    }
}

/// Whether a FATAL ends one connection and not the server.
fn is_about_a_client(message: &str) -> bool {
    const OF_CLIENTS: [&str; 13] = [
        "the database system is ",
        "terminating ",
        "role \"",
        "database \"",
        "password authentication failed",
        "peer authentication failed",
        "no pg_hba.conf entry",
        "pg_hba.conf rejects connection",
        "canceling authentication",
        "sorry, too many clients",
        "remaining connection slots",
        "connection to client lost",
        "unsupported frontend protocol",
    ];
    OF_CLIENTS.iter().any(|start| message.trim_start().starts_with(start))
}

/// The process that wrote a line, by PostgreSQL's default `log_line_prefix`.
fn process_of(line: &str) -> Option<&str> {
    line.split_once(" [")?.1.split_once("] ").map(|(pid, _)| pid)
}

/// What a line says, without when and by which process (`log_line_prefix`, by default `%m [%p] `).
fn said(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, said)| said)
}

struct Follower {
    file: File,
    position: u64,
    splitter: LineSplitter,
}

impl Follower {
    fn open(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
        let position = file.metadata()?.len().saturating_sub(READ_BACK);
        Ok(Self { file, position, splitter: LineSplitter::new() })
    }

    /// The lines written since the last call, at most some 64 KiB at once; none when there is
    /// nothing new.
    fn more(&mut self) -> io::Result<Vec<String>> {
        let size = self.file.metadata()?.len();
        if size < self.position {
            self.position = 0;
        }
        if size == self.position {
            // Read to the end, so nothing is lost but what is written in this very moment. The
            // server appends, so it goes on at the new end.
            if size > EMPTY_AT {
                self.file.set_len(0)?;
                self.position = 0;
            }
            return Ok(Vec::new());
        }
        let mut buffer = vec![0; 64 << 10];
        self.file.seek(SeekFrom::Start(self.position))?;
        let n = self.file.read(&mut buffer)?;
        self.position += n as u64;
        Ok(self.splitter.feed(&buffer[..n]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuation_lines_are_joined_and_old_lines_go() {
        let ring = Ring::default();
        ring.push("ERROR:  no".into());
        ring.push("\tDETAIL".into());
        assert_eq!(ring.after(0), [(1, "ERROR:  no\n\tDETAIL".to_owned())]);
        for n in 0..KEPT_LINES {
            ring.push(n.to_string());
        }
        let lines = ring.after(0);
        assert_eq!((lines.len(), lines[0].0), (KEPT_LINES, 2));
        assert_eq!(ring.after(KEPT_LINES as u64 + 1).len(), 0);
    }

    #[test]
    fn the_cause_is_the_first_that_ended_the_server() {
        let ring = Ring::default();
        let line =
            |pid: u32, said: &str| ring.push(format!("2026-11-20 10:00:00.001 UTC [{pid}] {said}"));
        line(1, "FATAL:  of another start");
        let start = ring.newest();
        line(3, "FATAL:  the database system is starting up");
        line(4, "FATAL:  role \"x\" does not exist");
        assert_eq!(ring.cause(start), None);
        line(2, "FATAL:  could not create directory \"/ts\"");
        line(1, "LOG:  something in between");
        line(2, "DETAIL:  It is not there.");
        ring.push("\tReally.".to_owned());
        line(2, "HINT:  Create it.");
        line(2, "CONTEXT:  WAL redo at 0/1");
        line(1, "LOG:  startup process (PID 2) exited with exit code 1");
        line(1, "FATAL:  a consequence");
        let expect = "FATAL:  could not create directory \"/ts\"\nDETAIL:  It is not there.\n\tReally.\n\
                      HINT:  Create it.";
        assert_eq!(ring.cause(start).as_deref(), Some(expect));
        ring.push("FATAL:  without a prefix".to_owned());
        assert_eq!(ring.cause(ring.newest() - 1).as_deref(), Some("FATAL:  without a prefix"));
    }

    #[test]
    fn a_file_that_was_emptied_is_followed_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "one\ntwo\nthr").unwrap();
        let mut follower = Follower::open(&path).unwrap();
        assert_eq!(follower.more().unwrap(), ["one", "two"]);
        std::fs::write(&path, "x\n").unwrap();
        assert_eq!(follower.more().unwrap(), ["thrx"]);
        assert!(follower.more().unwrap().is_empty());
    }

    #[tokio::test]
    async fn waiting_for_wal_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let waits = |pid: u32, at: &str| {
            format!("2026-11-20 10:00:00.00{pid} UTC [{pid}] LOG:  {SAID_ONCE} at {at}\n")
        };
        let (ring, stop) = (Ring::default(), CancellationToken::new());
        let output = OutputFile::at(path.clone());
        let follow = tokio::spawn({
            let (ring, stop) = (ring.clone(), stop.clone());
            async move { output.follow(ring, stop).await }
        });
        ring.caught_up().await;
        let text = [waits(1, "0/5"), waits(2, "0/5"), "same\nsame\n".into(), waits(3, "0/5")];
        std::fs::write(&path, text.concat() + &waits(3, "0/6")).unwrap();
        ring.caught_up().await;
        stop.cancel();
        follow.await.unwrap();
        let said: Vec<String> =
            ring.after(0).iter().map(|(_, line)| said(line).to_owned()).collect();
        let at = |at: &str| format!("LOG:  {SAID_ONCE} at {at}");
        assert_eq!(said, [at("0/5"), "same".into(), "same".into(), at("0/5"), at("0/6")]);
    }
}
