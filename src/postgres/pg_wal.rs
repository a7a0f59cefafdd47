//! What is in `pg_wal` that the archive may not have; and the one change that a restore makes there:
//! its end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::domain::timeline::History;
use crate::domain::{Lsn, SegmentSize, Timeline, WalSegment};

/// What is in `pg_wal`, as far as the archive may not have it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PgWal {
    /// Files whose turn to be archived has come, in order.
    pub ready: Vec<PathBuf>,
    /// Segments the archiver was not told of yet: above all the one being written.
    pub without_status: Vec<PathBuf>,
    /// Segments that PostgreSQL takes for archived. That is no proof: `archive-push-queue-max` drops
    /// them and says that all is well.
    pub done: Vec<PathBuf>,
}

impl PgWal {
    /// Looks through a `pg_wal`, of a server that is down or running.
    pub fn read(pg_wal: &Path, size: SegmentSize) -> io::Result<Self> {
        let mut found = Self::default();
        let status = pg_wal.join("archive_status");
        for entry in fs::read_dir(pg_wal)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let has = |ending: &str| status.join(format!("{name}{ending}")).exists();
            if has(".ready") {
                found.ready.push(path);
            } else if let Ok(segment) = WalSegment::parse(name, size)
                && begins_with_own_page(&path, segment)?
            {
                let is_done = has(".done");
                if is_done { &mut found.done } else { &mut found.without_status }.push(path);
            }
        }
        // History files first ("0000000A.history" sorts before its segments), then in WAL order.
        found.ready.sort();
        found.without_status.sort();
        found.done.sort();
        Ok(found)
    }

    /// The segments that PostgreSQL does not take for archived.
    pub fn segments(&self, size: SegmentSize) -> impl Iterator<Item = WalSegment> + '_ {
        let all = self.ready.iter().chain(&self.without_status);
        all.filter_map(move |path| segment_of(path, size))
    }
}

/// Marks a file, durably, as one that a server should archive, or as one that it should not, because it
/// is archived or is no whole segment. One that has a status keeps it.
pub fn set_status(pg_wal: &Path, name: &str, ready: bool) -> io::Result<()> {
    let directory = pg_wal.join("archive_status");
    fs::create_dir_all(&directory)?;
    let [done, to_do] = ["done", "ready"].map(|end| directory.join(format!("{name}.{end}")));
    if !done.exists() && !to_do.exists() {
        File::create(if ready { to_do } else { done })?.sync_all()?;
    }
    File::open(&directory)?.sync_all()
}

/// Copies a segment up to a position, durably; behind it there are zeroes, as in an unfinished one.
pub fn copy_until(from: &Path, to: &Path, end: Lsn, size: SegmentSize) -> io::Result<()> {
    let temporary = to.with_extension("headrest-tmp");
    let length = end.get() % size.get();
    let mut copy = File::create(&temporary)?;
    io::copy(&mut File::open(from)?.take(length), &mut copy)?;
    io::copy(&mut io::repeat(0).take(size.get() - length), &mut copy)?;
    copy.sync_all()?;
    let mode = fs::metadata(from)?.permissions();
    fs::set_permissions(&temporary, mode)?;
    fs::rename(&temporary, to)?;
    to.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Makes the WAL in a recovering cluster's `pg_wal` end at a position: what is written there after it
/// is overwritten with zeroes, as an unfinished segment has them, and later segments are removed.
/// Nothing is lost by it: they are copies of what the archive has, or the restore keeps. The server
/// must be down. Can be done again.
pub fn cut(pg_wal: &Path, end: Lsn, size: SegmentSize) -> io::Result<()> {
    // The segment of the first byte that must not be there.
    let last = end.get() / size.get();
    for entry in fs::read_dir(pg_wal)? {
        let path = entry?.path();
        let Some(segment) = segment_of(&path, size) else { continue };
        if segment.number() > last {
            fs::remove_file(&path)?;
        } else if segment.number() == last {
            let mut file = OpenOptions::new().write(true).open(&path)?;
            let from = end.get() - segment.start().get();
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(from))?;
            io::copy(&mut io::repeat(0).take(length.saturating_sub(from)), &mut file)?;
            file.sync_all()?;
        }
    }
    File::open(pg_wal)?.sync_all()
}

/// Whether nothing was ever written in a segment behind a position: where the next record's length
/// would stand, or the next page's header, there are zeroes (PostgreSQL source, `xlogrecord.h`).
pub fn is_unwritten_at(path: &Path, segment: WalSegment, at: Lsn) -> io::Result<bool> {
    if at < segment.start() || at >= segment.end() {
        return Ok(false);
    }
    // Records begin at multiples of 8.
    let from = (at.get() - segment.start().get()).next_multiple_of(8);
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut next = [1; 16];
    let length = file.read(&mut next)?;
    Ok(next[..length].iter().all(|byte| *byte == 0))
}

/// The segment that a path names.
pub fn segment_of(path: &Path, size: SegmentSize) -> Option<WalSegment> {
    WalSegment::parse(path.file_name()?.to_str()?, size).ok()
}

/// Whether a segment was written to as what its name says. A recycled one still begins with the page
/// of its former life (`XLogPageHeaderData`: magic, info, timeline, then the page's own address at
/// byte 8), which may be the same stretch of another timeline. Only the segment in which a timeline
/// branched off begins with a copy of its parent's pages.
pub(super) fn begins_with_own_page(path: &Path, segment: WalSegment) -> io::Result<bool> {
    let mut header = [0; 16];
    let mut file = match File::open(path) {
        // A running server removes and renames under our eyes.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    let timeline = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    let mut address = [0; 8];
    address.copy_from_slice(&header[8..]);
    let address = u64::from_ne_bytes(address);
    let own = timeline == segment.timeline().get();
    let ours = own || begins_in(path, segment)?;
    Ok(ours && address == segment.start().get())
}

/// Whether this is the segment in which its timeline branched off, by the history beside it.
fn begins_in(path: &Path, segment: WalSegment) -> io::Result<bool> {
    let history = path.with_file_name(history_name(segment.timeline()));
    let text = match fs::read_to_string(history) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        text => text?,
    };
    let parent = History::parse(&text).ok().and_then(|history| history.parent());
    // Where it branched off exactly between two segments nothing was copied.
    let in_it = |at: Lsn| segment.start() < at && at < segment.end();
    Ok(parent.is_some_and(|(_, at)| in_it(at)))
}

/// The file name of a timeline's history.
pub fn history_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_segment(path: &Path, timeline: u32, address: u64) {
        let mut page = vec![0u8; 8192];
        page[4..8].copy_from_slice(&timeline.to_ne_bytes());
        page[8..16].copy_from_slice(&address.to_ne_bytes());
        fs::write(path, page).unwrap();
    }

    #[test]
    fn only_what_the_archive_does_not_have_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("archive_status")).unwrap();
        let size = SegmentSize::DEFAULT;
        let address = |number: u64| number * size.get();
        write_segment(&at("000000010000000000000003"), 1, address(3));
        fs::write(at("archive_status/000000010000000000000003.done"), "").unwrap();
        write_segment(&at("000000010000000000000004"), 1, address(4));
        fs::write(at("archive_status/000000010000000000000004.ready"), "").unwrap();
        write_segment(&at("000000010000000000000005"), 1, address(5));
        // Just promoted: still a copy of the old timeline's.
        write_segment(&at("000000020000000000000005"), 1, address(5));
        // Recycled from the same stretch of the old timeline.
        write_segment(&at("000000020000000000000006"), 1, address(6));
        // Recycled, not yet written to.
        write_segment(&at("000000010000000000000006"), 1, address(2));
        fs::write(at("00000002.history"), "1\t0/5000100\tno recovery target specified\n").unwrap();
        fs::write(at("archive_status/00000002.history.ready"), "").unwrap();
        let found = PgWal::read(dir.path(), size).unwrap();
        assert_eq!(found.ready, [at("000000010000000000000004"), at("00000002.history")]);
        let unfinished = [at("000000010000000000000005"), at("000000020000000000000005")];
        assert_eq!(found.without_status, unfinished);
        assert_eq!(found.done, [at("000000010000000000000003")]);
        set_status(dir.path(), "000000010000000000000005", false).unwrap();
        set_status(dir.path(), "000000010000000000000005", true).unwrap();
        set_status(dir.path(), "000000020000000000000005", true).unwrap();
        let found = PgWal::read(dir.path(), size).unwrap();
        assert_eq!(found.without_status, Vec::<PathBuf>::new());
        assert!(found.ready.contains(&at("000000020000000000000005")));
    }

    #[test]
    fn wal_is_cut_at_a_position() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let size = SegmentSize::MIN;
        let length = usize::try_from(size.get()).unwrap();
        for name in ["000000010000000000000002", "000000010000000000000003"] {
            fs::write(at(name), vec![7; length]).unwrap();
        }
        fs::write(at("000000020000000000000004"), vec![7; length]).unwrap();
        fs::write(at("00000002.history"), "1\t0/300000\tx\n").unwrap();
        for _ in 0..2 {
            cut(dir.path(), Lsn::new(3 * size.get() + 100), size).unwrap();
            let cut = fs::read(at("000000010000000000000003")).unwrap();
            assert_eq!(cut.len(), length);
            assert!(cut[..100].iter().all(|b| *b == 7) && cut[100..].iter().all(|b| *b == 0));
            assert_eq!(fs::read(at("000000010000000000000002")).unwrap(), vec![7; length]);
            assert!(!at("000000020000000000000004").exists() && at("00000002.history").exists());
        }
        // At a boundary nothing of the next segment is left.
        cut(dir.path(), Lsn::new(3 * size.get()), size).unwrap();
        assert!(fs::read(at("000000010000000000000003")).unwrap().iter().all(|b| *b == 0));
    }
}
