//! What `pgbackrest verify --output=text --verbose` says, read tolerantly.
//!
//! There is no JSON of it, and its exit code is 0 whatever it finds (2.45 to 2.60). The report comes
//! twice, as a log line and as the answer; what comes last counts. `status: ok` does not mean that
//! all is well: a missing manifest is `ok`, a missing WAL segment is not even noticed. Pure.

use super::log::{Level, LineParser};

/// Damaged files that are remembered by name.
const NAMED: usize = 100;

/// The word of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `ok`
    Ok,
    /// `error`, or any other word.
    Error,
}

/// How many files are bad, by what is wrong with them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bad {
    /// Not there.
    pub missing: u64,
    /// Not what they were.
    pub checksum: u64,
    /// Too short or too long.
    pub size: u64,
    /// Not readable, not decompressible and the like.
    pub other: u64,
}

impl Bad {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.missing + self.checksum + self.size + self.other
    }
}

/// One archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveReport {
    /// Such as `15-1`.
    pub id: String,
    /// Segments looked at.
    pub checked: u64,
    /// Segments that are good.
    pub valid: u64,
    /// The others.
    pub bad: Bad,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupReport {
    /// Its label.
    pub label: String,
    /// `valid`, `invalid`, `manifest missing` or `in-progress`.
    pub status: String,
    /// Files looked at.
    pub checked: u64,
    /// Files that are good.
    pub valid: u64,
    /// The others.
    pub bad: Bad,
}

impl BackupReport {
    /// Whether nothing is wrong with it.
    pub fn is_valid(&self) -> bool {
        self.status == "valid" && self.bad.total() == 0
    }

    /// Whether it is good, or damaged; nothing when that was not seen: files that could not be read
    /// may be good.
    pub fn verdict(&self) -> Option<bool> {
        let damaged = self.bad.missing + self.bad.checksum + self.bad.size > 0;
        match self.status.as_str() {
            "manifest missing" => Some(false),
            _ if damaged => Some(false),
            _ => self.is_valid().then_some(true),
        }
    }
}

/// Everything that was said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The word; nothing when the report did not come.
    pub status: Option<Status>,
    /// The archives.
    pub archives: Vec<ArchiveReport>,
    /// The backups.
    pub backups: Vec<BackupReport>,
    /// What is wrong with which file, the first hundred.
    pub files: Vec<String>,
    /// How many there are.
    pub bad_files: u64,
    /// Other lines of the report.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether everything that was looked at is good.
    pub fn is_good(&self) -> bool {
        self.status == Some(Status::Ok)
            && self.bad_files == 0
            && self.backups.iter().all(BackupReport::is_valid)
            && self.archives.iter().all(|archive| archive.bad.total() == 0)
    }
}

/// Reads the output line by line, so that a report of any length takes no memory.
#[derive(Debug, Default)]
pub struct Reader {
    lines: LineParser,
    in_report: bool,
    /// Which of the two the next line of counts belongs to.
    last_is_backup: bool,
    report: Report,
}

impl Reader {
    /// A reader at the begin.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a line. Answers whether it is one of the log, and not of the answer.
    pub fn push(&mut self, line: &str) -> bool {
        let answer_begins = line.starts_with("stanza: ");
        let begins = line.starts_with(|c: char| c.is_ascii_digit());
        let was_answer = self.in_report && !begins && is_of_answer(line);
        let Some(said) = self.lines.push(line) else { return false };
        let text = said.text.as_str();
        if text.starts_with("stanza: ") {
            self.in_report = true;
        } else if begins {
            self.in_report = false;
        }
        if !self.in_report {
            self.finding(text, said.level);
        } else if !self.line_of_report(text) && !text.starts_with("stanza: ") {
            let note = text.to_owned();
            if self.report.notes.len() < NAMED && !self.report.notes.contains(&note) {
                self.report.notes.push(note);
            }
        }
        !(answer_begins || was_answer)
    }

    /// The report.
    pub fn finish(self) -> Report {
        self.report
    }

    fn finding(&mut self, text: &str, level: Level) {
        let is_one = ["file missing ", "invalid checksum ", "invalid size ", "invalid result "];
        let missing = text.starts_with("manifest missing for ");
        if level == Level::Error || missing || is_one.iter().any(|start| text.starts_with(start)) {
            self.report.bad_files += 1;
            if self.report.files.len() < NAMED {
                self.report.files.push(text.to_owned());
            }
        }
    }

    fn line_of_report(&mut self, text: &str) -> bool {
        if let Some(word) = text.strip_prefix("status: ") {
            self.report.status = Some(if word == "ok" { Status::Ok } else { Status::Error });
            return true;
        }
        if let Some(rest) = text.strip_prefix("archiveId: ") {
            let mut parts = rest.split(", ");
            let id = parts.next().unwrap_or_default().to_owned();
            let (checked, valid) = numbers(rest, "total WAL checked: ", "total valid WAL: ");
            let archive = ArchiveReport { id, checked, valid, bad: Bad::default() };
            self.last_is_backup = false;
            self.report.archives.retain(|known| known.id != archive.id);
            self.report.archives.push(archive);
            return true;
        }
        if let Some(rest) = text.strip_prefix("backup: ") {
            let label = rest.split(", ").next().unwrap_or_default().to_owned();
            let status = word(rest, "status: ").unwrap_or_default().to_owned();
            let (checked, valid) = numbers(rest, "total files checked: ", "total valid files: ");
            let backup = BackupReport { label, status, checked, valid, bad: Bad::default() };
            self.last_is_backup = true;
            self.report.backups.retain(|known| known.label != backup.label);
            self.report.backups.push(backup);
            return true;
        }
        let counts = ["missing: ", "checksum invalid: ", "size invalid: ", "other: "];
        if !counts.iter().any(|start| text.starts_with(start)) {
            return false;
        }
        let number = |name| word(text, name).and_then(|n| n.parse().ok()).unwrap_or(0);
        let bad = Bad {
            missing: number(counts[0]),
            checksum: number(counts[1]),
            size: number(counts[2]),
            other: number(counts[3]),
        };
        if self.last_is_backup {
            if let Some(backup) = self.report.backups.last_mut() {
                backup.bad = bad;
            }
        } else if let Some(archive) = self.report.archives.last_mut() {
            archive.bad = bad;
        }
        true
    }
}

/// The answer is indented by two or four, what continues a log line by more.
fn is_of_answer(line: &str) -> bool {
    line.len() - line.trim_start().len() < 8
}

/// What follows a name, up to the next comma.
fn word<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split(", ").find_map(|part| part.strip_prefix(name)).map(str::trim)
}

fn numbers(text: &str, first: &str, second: &str) -> (u64, u64) {
    let number = |name| word(text, name).and_then(|n| n.parse().ok()).unwrap_or(0);
    (number(first), number(second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> (Report, usize) {
        let mut reader = Reader::new();
        let logged = text.lines().filter(|line| reader.push(line)).count();
        (reader.finish(), logged)
    }

    /// What the fixture of that name says, for every version the same.
    fn all(name: &str) -> Vec<Report> {
        let of = |version: &str| {
            let path = format!(
                "{}/tests/fixtures/pgbackrest/{version}/verify-{name}.txt",
                env!("CARGO_MANIFEST_DIR")
            );
            let text = std::fs::read_to_string(&path).unwrap();
            let (report, logged) = read(&text);
            let answer = text.lines().skip_while(|line| !line.starts_with("stanza: "));
            let answer = answer.take_while(|line| !line.starts_with('2')).count();
            assert_eq!(logged, text.lines().count() - answer, "{path}: what is of the log");
            report
        };
        let versions: &[&str] =
            if name == "set" { &["2.55.1", "2.60.0"] } else { &["2.45", "2.55.1", "2.60.0"] };
        versions.iter().map(|version| of(version)).collect()
    }

    #[test]
    fn what_is_good() {
        for report in all("good") {
            assert!(report.is_good(), "{report:?}");
            assert_eq!((report.archives.len(), report.backups.len()), (1, 2));
            assert_eq!((report.archives[0].checked, report.archives[0].valid), (8, 8));
            assert!(report.backups.iter().all(|b| b.checked > 900 && b.checked == b.valid));
            assert!(report.notes.is_empty(), "{:?}", report.notes);
        }
        for report in all("set") {
            assert!(report.is_good() && report.backups.len() == 1, "{report:?}");
        }
        // pgBackRest does not see it: gaps are looked for elsewhere.
        for report in all("missing-wal") {
            assert!(report.is_good(), "{report:?}");
            assert_eq!(report.archives[0].checked, 7);
        }
    }

    #[test]
    fn files_of_backups() {
        let bad = |missing, checksum| Bad { missing, checksum, ..Bad::default() };
        for (name, expect, word) in [
            ("missing-file", bad(1, 0), "file missing '"),
            ("truncated-file", bad(0, 1), "invalid checksum '"),
            ("corrupt-file", bad(0, 1), "invalid checksum '"),
        ] {
            for report in all(name) {
                assert!(!report.is_good(), "{name}");
                assert_eq!(report.status, Some(Status::Error), "{name}");
                // The diff needs the file, too.
                for backup in &report.backups {
                    assert_eq!((backup.bad, backup.status.as_str()), (expect, "invalid"), "{name}");
                }
                assert_eq!(report.bad_files, 1);
                assert!(report.files[0].starts_with(word), "{:?}", report.files);
                assert!(report.files[0].contains("F/pg_data/base/1/"), "{:?}", report.files);
            }
        }
        for report in all("missing-bundle") {
            assert!(!report.is_good() && report.backups[0].bad.missing > 100, "{report:?}");
            assert_eq!(report.bad_files, 15);
        }
    }

    #[test]
    fn segments() {
        for name in ["corrupt-wal", "truncated-wal"] {
            for report in all(name) {
                assert!(!report.is_good(), "{name}");
                let archive = &report.archives[0];
                assert_eq!((archive.checked, archive.valid, archive.bad.other), (8, 7, 1));
                let named = format!("{}/0000000100000000/000000010000000000000004-", archive.id);
                assert!(report.files[0].contains(&named), "{:?}", report.files);
                assert!(report.backups.iter().all(BackupReport::is_valid));
            }
        }
    }

    #[test]
    fn what_pgbackrest_calls_ok_and_is_not() {
        for report in all("missing-manifest") {
            assert_eq!(report.status, Some(Status::Ok));
            assert_eq!(report.backups[0].status, "manifest missing");
            assert!(!report.is_good());
        }
        for report in all("missing-backup-info") {
            assert!(!report.is_good());
            assert_eq!(report.notes, ["No usable backup.info file"]);
        }
        assert!(!read("").0.is_good(), "no report is no good report");
    }

    proptest! {
        #[test]
        fn any_text_is_safe(lines in proptest::collection::vec("(stanza: |status: |backup: |archiveId: |missing: |  )?\\PC{0,40}", 0..20)) {
            let (report, _) = read(&lines.join("\n"));
            prop_assert!(report.files.len() <= NAMED && report.notes.len() <= NAMED);
        }
    }
}
