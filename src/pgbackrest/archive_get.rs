//! `headrest archive-get`: the `restore_command` of a server that recovers for a restore.
//!
//! Runs `pgbackrest archive-get`, and notes what came of it ([`super::attempts`]), because nothing else
//! tells the end of the archive from a gap, a stop file or a repository that is away. It runs in the
//! server's own process group and environment, needs no running Headrest, and no trouble with
//! its notes changes its exit code. No runtime and no configuration: it is started for every segment.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::attempts::{LONGEST_MESSAGE, Notebook};
use super::log;
use crate::clock;
use crate::domain::standstill::{Attempt, Failure, Outcome};
use crate::process::{self, End, Watched};

/// What pgBackRest says when no repository has the file.
const NOT_FOUND: u8 = 1;
/// For PostgreSQL: 126 and above end recovery.
const LAST_THAT_MAY_BE_TRIED_AGAIN: u8 = 125;
/// As a shell says it of a program that cannot be started.
const NOT_STARTED: u8 = 127;
/// How often it is asked whether recovery was ended meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What to do, as it stands in the server's `restore_command`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct ArchiveGet {
    /// Where the attempts are noted.
    #[arg(long)]
    notes: PathBuf,
    /// The run of the server, for the notes.
    #[arg(long)]
    run: String,
    /// Files that recovery must not get.
    #[arg(long = "withhold")]
    withheld: Vec<String>,
    /// Whether recovery gets no file at all.
    #[arg(long)]
    withhold_all: bool,
    /// The wanted file, and where it goes.
    #[arg(num_args = 2, required = true)]
    wanted: Vec<String>,
    /// pgBackRest and its options; the wanted file and where it goes are added.
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// The file that says that recovery has been ended, for a run of the server: nothing more is fetched
/// for it, so that its promotion waits for no repository.
pub fn end_mark(notes: &Path) -> PathBuf {
    notes.with_extension("ended")
}

impl ArchiveGet {
    /// Runs it; the answer is the exit code, as PostgreSQL wants it.
    pub fn run(&self) -> u8 {
        let [file, path] = self.wanted.as_slice() else { return LAST_THAT_MAY_BE_TRIED_AGAIN };
        let mut attempt = Attempt {
            number: 0,
            file: file.clone(),
            started_at: clock::now(),
            took_ms: None,
            outcome: None,
        };
        let began = Instant::now();
        let notebook = Notebook::open(&self.notes, &self.run);
        let noted = notebook.as_ref().is_ok_and(|notebook| notebook.begin(&mut attempt).is_ok());
        let (outcome, code) = self.get(file, path);
        attempt.outcome = Some(outcome);
        attempt.took_ms = u64::try_from(began.elapsed().as_millis()).ok();
        if let Ok(notebook) = notebook
            && noted
        {
            // There is nobody to tell, and the code must not change.
            let _ = notebook.end(&attempt);
        }
        code
    }

    fn get(&self, file: &str, path: &str) -> (Outcome, u8) {
        let is_withheld = self.withheld.iter().any(|name| name == file);
        if self.withhold_all || is_withheld || self.has_ended() {
            return (Outcome::Withheld, NOT_FOUND);
        }
        let (program, options) = match self.program.split_first() {
            Some((program, options)) => (program, options),
            None => return (failed(None, "no program is given"), NOT_STARTED),
        };
        let wanted = [OsString::from(file), OsString::from(path)];
        let args = options.iter().chain(&wanted);
        let run = process::run_here(program, args, LOOK_EVERY, || self.has_ended());
        match run {
            Ok(Watched { end: Some(end), output }) => judge(end, output),
            Ok(Watched { end: None, .. }) => (Outcome::Withheld, NOT_FOUND),
            Err(error) => (failed(None, &error.explain()), NOT_STARTED),
        }
    }

    fn has_ended(&self) -> bool {
        fs::read_to_string(end_mark(&self.notes)).is_ok_and(|run| run == self.run)
    }
}

fn judge(end: End, output: String) -> (Outcome, u8) {
    match end {
        End::Exited(0) => (Outcome::Found, 0),
        End::Exited(NOT_FOUND) => (Outcome::NotFound, NOT_FOUND),
        End::Exited(code) => (failed(Some(code), &output), code),
        // As a shell does it: PostgreSQL ends recovery, and its own SIGTERM is no failure.
        End::Signalled { signal, .. } => {
            let code = u8::try_from(signal).map_or(u8::MAX, |signal| signal.saturating_add(128));
            (failed(None, &format!("pgbackrest archive-get {end}")), code)
        }
        End::Unseen => (failed(None, &end.to_string()), LAST_THAT_MAY_BE_TRIED_AGAIN),
    }
}

fn failed(exit_code: Option<u8>, said: &str) -> Outcome {
    let shown = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    let mut message: String = log::errors_of(said).chars().map(shown).collect();
    if message.len() > LONGEST_MESSAGE {
        let mut end = LONGEST_MESSAGE;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
    }
    Outcome::Failed(Failure { exit_code, message })
}
