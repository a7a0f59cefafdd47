//! What is looked at on file systems, which may hang: off the async threads, one look at a time, and
//! never waited for long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::space;
use crate::domain::health::Disk;
use crate::jobs::context::ServerSide;
use crate::pgbackrest::conf::{DEFAULT_LOCK_PATH, DEFAULT_REPOSITORY};

/// How long a look is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// A look that takes longer hangs.
const HANGS_AFTER: Duration = Duration::from_secs(30);

/// What was seen.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) disks: Vec<Disk>,
    /// The stop file that is there.
    pub(super) stop_file: Option<String>,
    /// Files whose turn to be archived has come.
    pub(super) ready: u64,
}

/// The look that is under way, and what was seen last.
#[derive(Debug, Default)]
pub(super) struct Machine {
    look: Option<(Instant, JoinHandle<Seen>)>,
    last: Option<Seen>,
}

impl Machine {
    /// What was seen last, a moment ago or, when a file system hangs, longer ago; and whether one
    /// hangs.
    pub(super) async fn look(&mut self, side: &ServerSide) -> (Option<Seen>, bool) {
        let (began, look) = self.look.get_or_insert_with(|| {
            let (places, locks) = (places(side), stop_files(side));
            let archive_status = side.data_dir.join("pg_wal/archive_status");
            let look = tokio::task::spawn_blocking(move || Seen {
                stop_file: locks.into_iter().find(|path| Path::new(path).exists()),
                ready: ready(&archive_status),
                disks: space::disks(places),
            });
            (Instant::now(), look)
        });
        let hangs = match timeout(PATIENCE, look).await {
            Ok(done) => {
                // A look that panicked saw nothing.
                self.last = done.ok().or(self.last.take());
                self.look = None;
                false
            }
            Err(_) => began.elapsed() >= HANGS_AFTER,
        };
        (self.last.clone(), hangs)
    }
}

/// The places whose file systems must not be full.
fn places(side: &ServerSide) -> Vec<(String, PathBuf)> {
    let mut places = vec![
        ("PGDATA".to_owned(), side.data_dir.clone()),
        // It may be a link.
        ("pg_wal".to_owned(), side.data_dir.join("pg_wal/.")),
        ("state_dir".to_owned(), side.state_dir.clone()),
    ];
    let options = &side.user_options;
    for key in options.repo_keys() {
        let option = |name: &str| options.get(&format!("repo{key}-{name}"));
        let local = option("type").is_none_or(|kind| kind == "posix") && option("host").is_none();
        if local {
            let path = option("path").unwrap_or(DEFAULT_REPOSITORY);
            let name = if key == "1" { String::new() } else { format!(" {key}") };
            places.push((format!("repository{name}"), PathBuf::from(path)));
        }
    }
    places
}

/// The stop files of the stanza, and of all (pgBackRest command reference, "Stop Command").
fn stop_files(side: &ServerSide) -> Vec<String> {
    let locks = Path::new(side.user_options.get("lock-path").unwrap_or(DEFAULT_LOCK_PATH));
    let names = [format!("{}.stop", side.stanza), "all.stop".to_owned()];
    names.iter().map(|name| locks.join(name).display().to_string()).collect()
}

fn ready(archive_status: &Path) -> u64 {
    let entries = std::fs::read_dir(archive_status).into_iter().flatten().flatten();
    let ready = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".ready"));
    u64::try_from(ready.count()).unwrap_or(u64::MAX)
}
