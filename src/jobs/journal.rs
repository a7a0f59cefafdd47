//! The restore journal's file: one per stanza, on disk before the phase it names begins.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::domain::StanzaName;
use crate::domain::restore::{JOURNAL_FORMAT, Journal};

/// Where journals are kept.
#[derive(Debug, Clone)]
pub struct Journals {
    directory: PathBuf,
}

/// Why a journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file operation failed.
    #[error("cannot {operation} the restore journal {}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file makes no sense. It is never ignored: it may say that PGDATA is half restored.
    #[error(
        "the restore journal {} cannot be read ({reason}); it may say that PGDATA is half \
         restored. Look at it, and move it away only when you know that PGDATA is sound",
        path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Journals {
    /// Journals below the state directory.
    pub fn in_state_dir(state_dir: &Path) -> Result<Self, JournalError> {
        let directory = state_dir.join("restore");
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(JournalError::File {
                    operation: "make a directory for",
                    path: directory,
                    source,
                })
            }
            Ok(()) | Err(_) => Ok(Self { directory }),
        }
    }

    /// The journal of a stanza, `None` when it never had a restore.
    pub fn read(&self, stanza: &StanzaName) -> Result<Option<Journal>, JournalError> {
        let path = self.path(stanza);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(JournalError::File { operation: "read", path, source }),
        };
        let journal: Journal = serde_json::from_slice(&text).map_err(|error| {
            JournalError::Broken { path: path.clone(), reason: error.to_string() }
        })?;
        if journal.format > JOURNAL_FORMAT {
            let reason = format!("format {} is of a later version of Headrest", journal.format);
            return Err(JournalError::Broken { path, reason });
        }
        Ok(Some(journal))
    }

    /// Writes a journal: when this returns it has reached the disk, whole.
    pub fn write(&self, journal: &Journal) -> Result<(), JournalError> {
        let path = self.path(&journal.stanza);
        let temporary = path.with_extension("json.tmp");
        let failed = |operation| {
            let path = path.clone();
            move |source| JournalError::File { operation, path, source }
        };
        let text = serde_json::to_vec_pretty(journal).map_err(|error| JournalError::Broken {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let mut file = fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed("create"))?;
        file.write_all(&text).map_err(failed("write"))?;
        file.sync_all().map_err(failed("sync"))?;
        fs::rename(&temporary, &path).map_err(failed("rename"))?;
        sync_directory(&self.directory).map_err(failed("sync the directory of"))
    }

    /// Where the server's `restore_command` notes its attempts.
    pub fn attempts_path(&self, stanza: &StanzaName) -> PathBuf {
        self.directory.join(format!("{stanza}.attempts"))
    }

    /// A directory for WAL that is kept during a restore.
    pub fn kept_wal_dir(&self, journal: &Journal) -> PathBuf {
        self.directory.join(format!("{}-{}-wal", journal.stanza, journal.id))
    }

    /// A directory for the histories of all timelines that the server has been on. PostgreSQL gives
    /// a new timeline the first number of which it finds no history, so none may be missing; and
    /// none of another cluster may be among them.
    pub fn histories_dir(&self, stanza: &StanzaName, system_id: Option<&str>) -> PathBuf {
        let system_id = system_id.unwrap_or("unknown");
        self.directory.join(format!("{stanza}-{system_id}-histories"))
    }

    /// Every directory with kept WAL of a stanza.
    pub fn kept_wal_dirs(&self, stanza: &StanzaName) -> Vec<PathBuf> {
        let ours = |name: &str| name.starts_with(&format!("{stanza}-")) && name.ends_with("-wal");
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(ours));
        // "main-2-…" is of another stanza than "main"; an id has 36 characters.
        let length = stanza.as_str().len() + 1 + 36 + 4;
        named.filter(|e| e.file_name().len() == length).map(|entry| entry.path()).collect()
    }

    /// Tries to take the lock that every `pgbackrest restore` of this stanza, and its workers,
    /// hold as an open descriptor. `None` means that one of them still lives.
    pub fn try_lock(&self, stanza: &StanzaName) -> Result<Option<OwnedFd>, JournalError> {
        let path = self.lock_path(stanza);
        let failed = |source| JournalError::File { operation: "lock", path: path.clone(), source };
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file.into())),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// The file of that lock.
    pub fn lock_path(&self, stanza: &StanzaName) -> PathBuf {
        self.directory.join(format!("{stanza}.lock"))
    }

    fn path(&self, stanza: &StanzaName) -> PathBuf {
        self.directory.join(format!("{stanza}.json"))
    }
}

/// Makes what happened to a directory's entries durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
