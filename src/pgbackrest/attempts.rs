//! The notes about what a recovering server's `restore_command` tried: one file of fixed size.
//!
//! [`super::archive_get`] writes them, in a process of its own that runs whether Headrest does or not;
//! `jobs::restore` reads them. The file is filled once and then overwritten in place, slot after slot,
//! so that notes can be taken when the disk is full. A slot carries a checksum: one that is being
//! written is passed over. Nothing is synced: after a power failure the server starts anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::domain::standstill::Attempt;

/// Bytes of a slot.
const SLOT: usize = 2048;
/// Slots in a file. A look needs the last few; the rest tells how recovery went.
const SLOTS: usize = 64;
/// Hexadecimal digits of a slot's checksum.
const CHECKSUM: usize = 16;
/// The most bytes of a failure's message that fit into a slot with everything else, also when each
/// becomes two in JSON.
pub const LONGEST_MESSAGE: usize = 700;

/// One note: an attempt, and of which run of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The run, as it stands in the server's `restore_command`.
    run: String,
    attempt: Attempt,
}

/// Makes the file as large as it will ever be.
pub fn prepare(path: &Path) -> io::Result<()> {
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&vec![b' '; SLOT * SLOTS])?;
    file.sync_all()
}

/// The attempts of one run of the server, in the order in which they began.
pub fn read(path: &Path, run: &str) -> io::Result<Vec<Attempt>> {
    let file = File::open(path)?;
    let own = notes(&file)?.into_iter().filter(|note| note.run == run);
    let mut attempts: Vec<Attempt> = own.map(|note| note.attempt).collect();
    attempts.sort_by_key(|attempt| attempt.number);
    Ok(attempts)
}

fn notes(file: &File) -> io::Result<Vec<Note>> {
    let mut bytes = vec![0; SLOT * SLOTS];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(bytes[..filled].chunks(SLOT).filter_map(parse).collect())
}

fn parse(slot: &[u8]) -> Option<Note> {
    let text = std::str::from_utf8(slot).ok()?.trim_end();
    let (checksum, json) = text.split_once(' ')?;
    (checksum == self::checksum(json)).then(|| serde_json::from_str(json).ok())?
}

fn checksum(json: &str) -> String {
    let digest = Sha256::digest(json);
    digest.iter().take(CHECKSUM / 2).fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// Takes notes for one attempt.
#[derive(Debug)]
pub struct Notebook {
    file: File,
    run: String,
}

impl Notebook {
    /// Opens the file, or makes one that grows.
    pub fn open(path: &Path, run: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self { file, run: run.to_owned() })
    }

    /// Notes that an attempt begins. Gives it the number after the newest one.
    pub fn begin(&self, attempt: &mut Attempt) -> io::Result<()> {
        // Only against an attempt of a server that is being ended; nobody waits for long.
        let _ = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        let newest = notes(&self.file)?.into_iter().map(|note| note.attempt.number).max();
        attempt.number = newest.unwrap_or(0) + 1;
        let written = self.write(attempt);
        let _ = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::Unlock);
        written
    }

    /// Notes how an attempt ended, where its beginning was noted.
    pub fn end(&self, attempt: &Attempt) -> io::Result<()> {
        self.write(attempt)
    }

    fn write(&self, attempt: &Attempt) -> io::Result<()> {
        let note = Note { run: self.run.clone(), attempt: attempt.clone() };
        let json = serde_json::to_string(&note)?;
        let mut slot = format!("{} {json}", checksum(&json)).into_bytes();
        if slot.len() >= SLOT {
            return Err(io::Error::other("a note does not fit into its slot"));
        }
        slot.resize(SLOT - 1, b' ');
        slot.push(b'\n');
        let place = attempt.number % SLOTS as u64;
        self.file.write_all_at(&slot, place * SLOT as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::standstill::{Failure, Outcome};

    fn attempt(file: &str) -> Attempt {
        let started_at = jiff::Timestamp::UNIX_EPOCH;
        Attempt { number: 0, file: file.to_owned(), started_at, took_ms: None, outcome: None }
    }

    #[test]
    fn the_newest_attempts_of_a_run_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attempts");
        prepare(&path).unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        assert_eq!(read(&path, "a").unwrap(), []);
        for number in 0..150u64 {
            let run = if number < 100 { "a" } else { "b" };
            let notebook = Notebook::open(&path, run).unwrap();
            let mut attempt = attempt(&format!("{number:024X}"));
            notebook.begin(&mut attempt).unwrap();
            assert_eq!(attempt.number, number + 1);
            let last = read(&path, run).unwrap().pop().unwrap();
            assert_eq!((last.number, last.outcome), (number + 1, None));
            attempt.outcome = Some(Outcome::Failed(Failure {
                exit_code: Some(101),
                message: "\"\n".repeat(LONGEST_MESSAGE / 2),
            }));
            notebook.end(&attempt).unwrap();
            assert_eq!(read(&path, run).unwrap().pop().unwrap(), attempt);
        }
        let numbers = |run| read(&path, run).unwrap().iter().map(|a| a.number).collect::<Vec<_>>();
        assert_eq!(numbers("b"), (101..=150).collect::<Vec<_>>());
        assert_eq!(numbers("a").len(), SLOTS - 50);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size, "it must not grow");
    }

    #[test]
    fn what_is_half_written_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attempts");
        let notebook = Notebook::open(&path, "a").unwrap();
        notebook.begin(&mut attempt("one")).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(3).position(|bytes| bytes == b"one").unwrap();
        bytes[at] = b'x';
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path, "a").unwrap(), []);
        assert!(read(&dir.path().join("none"), "a").is_err());
    }
}
