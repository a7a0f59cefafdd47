//! The records at the end of what a recovering server has replayed, read with `pg_waldump`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use super::install::Binaries;
use crate::domain::drops::{Record, What};
use crate::domain::{Lsn, SegmentSize, WalSegment};
use crate::process::lines::LineSplitter;
use crate::process::{CaptureError, End, Program, stop};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How many bytes back are read, at most.
const MOST_BYTES: u64 = 1 << 30;
/// How long that may take.
const PATIENCE: Duration = Duration::from_mins(5);
/// `pg_database`: it is shared, so it is in the global tablespace.
const PG_DATABASE: &str = "rel 1664/0/1262 ";

/// How many bytes of what it says are kept.
const MOST_SAID: usize = 4 << 10;

/// Why the records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WaldumpError {
    /// `pg_waldump` was not started, or took too long.
    #[error(transparent)]
    Program(#[from] CaptureError),
    /// It came to no good end.
    #[error("pg_waldump {end}: {said}")]
    Failed {
        /// Its end.
        end: End,
        /// What it said.
        said: String,
    },
}

/// The last records before a position that is in `last`, oldest first: of the segments that `pg_wal`
/// has without a gap on that timeline. Of a transaction's records without meaning here only the first is
/// kept.
pub async fn last_records(
    binaries: &Binaries,
    env: &BTreeMap<String, String>,
    pg_wal: &Path,
    last: WalSegment,
    end: Lsn,
    size: SegmentSize,
) -> Result<Vec<Record>, WaldumpError> {
    let mut first = last;
    for _ in 1..MOST_BYTES / size.get() {
        match first.previous() {
            Some(before) if pg_wal.join(before.to_string()).exists() => first = before,
            Some(_) | None => break,
        }
    }
    let start =
        WalSegment::numbered(first.timeline(), first.number(), size).unwrap_or(first).start();
    let mut program = Program::new(binaries.program("pg_waldump"));
    program.env.clone_from(env);
    program.env.insert("LC_ALL".to_owned(), "C".to_owned());
    program.args = vec![
        format!("--path={}", pg_wal.display()),
        format!("--timeline={}", first.timeline()),
        format!("--start={start}"),
        format!("--end={end}"),
    ];
    let mut child = program.spawn().map_err(CaptureError::from)?;
    let (mut records, mut said) = (Records::default(), String::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let read = async {
        let (Some(mut out), Some(mut err)) = (out, err) else { return };
        let errors = async {
            let mut buffer = vec![0; 4 << 10];
            while let Ok(n) = err.read(&mut buffer).await
                && n > 0
            {
                if said.len() < MOST_SAID {
                    said.push_str(&String::from_utf8_lossy(&buffer[..n]));
                }
            }
        };
        let lines = async {
            let (mut buffer, mut splitter) = (vec![0; 64 << 10], LineSplitter::new());
            while let Ok(n) = out.read(&mut buffer).await
                && n > 0
            {
                records.keep(&splitter.feed(&buffer[..n]));
            }
            records.keep(&splitter.finish().into_iter().collect::<Vec<_>>());
        };
        tokio::join!(errors, lines);
    };
    let ended = timeout(PATIENCE, async {
        read.await;
        child.wait().await
    });
    let ended = ended.await;
    match ended {
        Ok(end) if end.is_success() => Ok(records.kept),
        Ok(end) => Err(WaldumpError::Failed { end, said: said.trim().to_owned() }),
        Err(_) => {
            stop::stop(&mut child, Duration::from_secs(1), &CancellationToken::new()).await;
            let program = binaries.program("pg_waldump").display().to_string();
            Err(CaptureError::TimedOut { program, patience: PATIENCE }.into())
        }
    }
}

/// Records that are kept, and the transactions that were seen.
#[derive(Default)]
struct Records {
    kept: Vec<Record>,
    seen: HashSet<u32>,
}

impl Records {
    fn keep(&mut self, lines: &[String]) {
        for record in lines.iter().filter_map(|line| parse(line)) {
            let is_first = record.xid != 0 && self.seen.insert(record.xid);
            if is_first || record.what != What::Other {
                self.kept.push(record);
            }
        }
    }
}

/// Reads a line such as
/// `rmgr: Database len (rec/tot): 38/ 38, tx: 729, lsn: 0/08448FC8, prev …, desc: DROP dir 1663/24577`.
fn parse(line: &str) -> Option<Record> {
    let rmgr = line.strip_prefix("rmgr: ")?.split_whitespace().next()?;
    let field = |name: &str| line.split_once(name).map(|(_, rest)| rest.trim_start());
    let xid = field("tx:")?.split(',').next()?.trim().parse().ok()?;
    let lsn = field("lsn: ")?.split(',').next()?.parse().ok()?;
    let desc = field("desc: ")?;
    let word = desc.split_whitespace().next().unwrap_or_default();
    let what = match (rmgr, word) {
        ("Transaction", "COMMIT" | "COMMIT_PREPARED" | "PREPARE" | "ABORT_PREPARED") => {
            What::Commit
        }
        ("Transaction", "ABORT") => What::Abort,
        ("XLOG", "CHECKPOINT_SHUTDOWN" | "END_OF_RECOVERY") => What::ServerEnd,
        // "DROP dir 1663/24577", with a pair for each tablespace.
        ("Database", "DROP") => {
            let pair = desc.split_whitespace().find(|word| word.contains('/'))?;
            What::DropDatabase(pair.split_once('/')?.1.parse().ok()?)
        }
        ("Tablespace", "DROP") => {
            What::DropTablespace(desc.split_whitespace().nth(1)?.parse().ok()?)
        }
        ("Heap", "INPLACE") if desc.contains(PG_DATABASE) => What::MarkDatabase,
        _ => What::Other,
    };
    Some(Record { lsn, xid, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_lines() {
        // Of PostgreSQL 15: DROP DATABASE, then DROP TABLESPACE.
        let text = "\
rmgr: Heap        len (rec/tot):    160/   160, tx:          0, lsn: 0/08448E40, prev 0/08448CA8, desc: INPLACE off 7, blkref #0: rel 1664/0/1262 blk 0
rmgr: Heap        len (rec/tot):     54/    54, tx:        729, lsn: 0/08448EE0, prev 0/08448E40, desc: DELETE off 7 flags 0x00 KEYS_UPDATED , blkref #0: rel 1664/0/1262 blk 0
rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/08448F50, prev 0/08448F18, desc: CHECKPOINT_ONLINE redo 0/8448F18; tli 3; prev tli 3; fpw true; xid 0:730; oid 32768; online
rmgr: Database    len (rec/tot):     38/    38, tx:        729, lsn: 0/08448FC8, prev 0/08448F50, desc: DROP dir 1663/24577
rmgr: Transaction len (rec/tot):     98/    98, tx:        729, lsn: 0/08448FF0, prev 0/08448FC8, desc: COMMIT 2026-11-29 21:19:55.334018 UTC; dropped stats: 1/24577/0; inval msgs: catcache 21 catcache 21; sync
rmgr: Tablespace  len (rec/tot):     30/    30, tx:        731, lsn: 0/08449458, prev 0/08449420, desc: DROP 24581
rmgr: Heap        len (rec/tot):     54/    54, tx:        732, lsn: 0/08449500, prev 0/08449458, desc: INPLACE off 7, blkref #0: rel 1663/5/1259 blk 0
pg_waldump: error: error in WAL record at 0/8449058: invalid record length";
        let mut records = Records::default();
        records.keep(&text.lines().map(str::to_owned).collect::<Vec<_>>());
        let told: Vec<(u64, u32, What)> =
            records.kept.iter().map(|r| (r.lsn.get(), r.xid, r.what.clone())).collect();
        let expect = [
            (0x0844_8E40, 0, What::MarkDatabase),
            (0x0844_8EE0, 729, What::Other),
            (0x0844_8FC8, 729, What::DropDatabase(24577)),
            (0x0844_8FF0, 729, What::Commit),
            (0x0844_9458, 731, What::DropTablespace(24581)),
            (0x0844_9500, 732, What::Other),
        ];
        assert_eq!(told, expect);
    }
}
