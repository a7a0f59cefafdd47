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

use rustix::process::Signal;

use super::attempts::{LONGEST_MESSAGE, Notebook};
use super::log;
use crate::clock;
use crate::domain::standstill::{Attempt, Failure, Outcome};
use crate::process::{self, End, Watched};

/// What pgBackRest says when no repository has the file.
const NOT_FOUND: u8 = 1;
/// For everything else that is no answer. PostgreSQL in standby mode tries again after 1 to 125, and
/// ends itself after more (PostgreSQL source, `RestoreArchivedFile`): a pgBackRest that was killed, or
/// is being replaced, is tried again, and the restore says what it waits for.
const TRY_AGAIN: u8 = 125;
/// What a shell says of a program that SIGTERM ended: PostgreSQL is being stopped.
const STOPPING: u8 = 128 + 15;
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
        let [file, path] = self.wanted.as_slice() else { return TRY_AGAIN };
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
        let Some((program, options)) = self.program.split_first() else {
            return (failed(None, "no program is given"), TRY_AGAIN);
        };
        let wanted = [OsString::from(file), OsString::from(path)];
        let args = options.iter().chain(&wanted);
        let run = process::run_here(program, args, LOOK_EVERY, || self.has_ended());
        match run {
            Ok(Watched { end: Some(end), output }) => judge(end, &output),
            Ok(Watched { end: None, .. }) => (Outcome::Withheld, NOT_FOUND),
            Err(error) => (failed(None, &error.explain()), TRY_AGAIN),
        }
    }

    fn has_ended(&self) -> bool {
        fs::read_to_string(end_mark(&self.notes)).is_ok_and(|run| run == self.run)
    }
}

fn judge(end: End, output: &str) -> (Outcome, u8) {
    match end {
        End::Exited(0) => (Outcome::Found, 0),
        End::Exited(NOT_FOUND) => (Outcome::NotFound, NOT_FOUND),
        End::Exited(code) => (failed(Some(code), output), code.min(TRY_AGAIN)),
        End::Signalled { signal, .. } => {
            let code = if signal == Signal::TERM.as_raw() { STOPPING } else { TRY_AGAIN };
            (failed(None, &format!("pgbackrest {end}")), code)
        }
        End::Unseen => (failed(None, &format!("pgbackrest {end}")), TRY_AGAIN),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgbackrest::attempts;

    fn get(notes: &Path, script: &str) -> ArchiveGet {
        ArchiveGet {
            notes: notes.to_owned(),
            run: "run".to_owned(),
            withheld: vec!["000000010000000000000004".to_owned()],
            withhold_all: false,
            wanted: vec!["000000010000000000000005".to_owned(), "x".to_owned()],
            program: ["sh", "-c", script, "archive-get"].map(OsString::from).to_vec(),
        }
    }

    #[test]
    fn exit_codes_are_postgresqls_and_attempts_are_noted() {
        let dir = tempfile::tempdir().unwrap();
        let notes = dir.path().join("main.attempts");
        let failure = |exit_code, message: &str| {
            Outcome::Failed(Failure { exit_code, message: message.to_owned() })
        };
        let error = "P00  ERROR: [062]: stop file exists\\n                 HINT: start it";
        let long = format!("echo {}; exit 2", "\\\"".repeat(3000));
        let cases = [
            ("exit 0", 0, Outcome::Found),
            ("test $1 = 000000010000000000000005 -a $2 = x", 0, Outcome::Found),
            ("exit 1", 1, Outcome::NotFound),
            (
                &*format!("printf '2026-11-20 11:12:56.346 {error}\\n'; exit 62"),
                62,
                failure(Some(62), "stop file exists\nHINT: start it"),
            ),
            ("echo no >&2; exit 200", 125, failure(Some(200), "no")),
            ("kill -9 $$", 125, failure(None, "pgbackrest was ended by signal 9 (SIGKILL)")),
            ("kill -15 $$", 143, failure(None, "pgbackrest was ended by signal 15 (SIGTERM)")),
        ];
        for (number, (script, code, outcome)) in cases.into_iter().enumerate() {
            assert_eq!(get(&notes, script).run(), code, "{script}");
            let noted = attempts::read(&notes, "run").unwrap();
            let last = noted.last().unwrap();
            assert_eq!((noted.len(), last.outcome.as_ref()), (number + 1, Some(&outcome)));
            assert!(last.took_ms.is_some());
        }
        assert_eq!(get(&notes, &long).run(), 2);
        let noted = attempts::read(&notes, "run").unwrap();
        let Some(Outcome::Failed(failure)) = &noted.last().unwrap().outcome else { panic!() };
        assert_eq!(failure.message.len(), LONGEST_MESSAGE);
        let missing = ArchiveGet { program: vec!["/no/such".into()], ..get(&notes, "") };
        assert_eq!(missing.run(), 125);
    }

    #[test]
    fn what_is_withheld_is_not_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let notes = dir.path().join("main.attempts");
        let asked = dir.path().join("asked");
        let plain = get(&notes, &format!("touch {}; exit 0", asked.display()));
        let withheld =
            ArchiveGet { wanted: vec![plain.withheld[0].clone(), "x".into()], ..plain.clone() };
        let all = ArchiveGet { withhold_all: true, ..plain.clone() };
        assert_eq!((withheld.run(), all.run()), (1, 1));
        fs::write(end_mark(&notes), "another").unwrap();
        assert!(!asked.exists());
        assert_eq!(plain.run(), 0);
        assert!(asked.exists());
        fs::write(end_mark(&notes), "run").unwrap();
        assert_eq!(plain.run(), 1);
        // Also one that is under way is ended.
        fs::remove_file(end_mark(&notes)).unwrap();
        let slow = get(&notes, "exec sleep 60");
        let mark = end_mark(&notes);
        let began = Instant::now();
        std::thread::scope(|scope| {
            let run = scope.spawn(|| slow.run());
            while attempts::read(&notes, "run").unwrap().last().unwrap().outcome.is_some() {}
            fs::write(&mark, "run").unwrap();
            assert_eq!(run.join().unwrap(), 1);
        });
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn notes_that_cannot_be_taken_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let notes = dir.path().join("no/such/directory/main.attempts");
        for (script, code) in [("exit 0", 0), ("exit 1", 1), ("exit 62", 62)] {
            assert_eq!(get(&notes, script).run(), code);
        }
    }
}
