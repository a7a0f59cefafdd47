//! pgBackRest's console log: lines to levels, lines to milestones.
//!
//! Log lines are for people and for progress and never decide success: the exit code and `info`
//! do. Unknown text is therefore never an error here. This module must not store lines, drop any,
//! or read a clock; times are those of the log, without a zone (we run pgBackRest with `TZ=UTC`).

use std::{fmt, str::FromStr};

use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};

use crate::domain::backup::{BackupLabel, BackupType};

/// Level of a log line, most serious first, so `level <= Level::Warn` selects warnings and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Also pgBackRest's `ASSERT` and `PROTOCOL`.
    Error,
    Warn,
    Info,
    Detail,
    Debug,
    Trace,
}

/// A word that is no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a log level: error, warn, info, detail, debug or trace")]
pub struct InvalidLevel;

impl Level {
    const ALL: [Self; 6] =
        [Self::Error, Self::Warn, Self::Info, Self::Detail, Self::Debug, Self::Trace];

    /// pgBackRest's word in options, as in `--log-level-console=detail`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Detail => "detail",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// The word in a log line.
    fn from_line(word: &str) -> Option<Self> {
        match word {
            "ASSERT" | "PROTOCOL" => Some(Self::Error),
            _ if word.bytes().any(|b| !b.is_ascii_uppercase()) => None,
            _ => Self::ALL.into_iter().find(|level| level.as_str().eq_ignore_ascii_case(word)),
        }
    }
}

impl FromStr for Level {
    type Err = InvalidLevel;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|level| level.as_str() == value).ok_or(InvalidLevel)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// To the millisecond, in pgBackRest's zone; absent on stderr and in early errors.
    pub time: Option<DateTime>,
    /// 0 is the main process (`P00`), 1 and up are workers; absent on stderr.
    pub process: Option<u16>,
    pub level: Level,
    /// The message, without blanks around it.
    pub text: String,
}

/// Turns complete lines into [`LogLine`]s.
///
/// Every line that is not blank gives exactly one `LogLine`, at once:
/// - a line with a level, as `2026-11-20 11:12:56.346 P00   INFO: text`, `P00  ERROR: text` or, on
///   stderr, `WARN: text`, gives its parts;
/// - an indented line (`HINT: …`) continues the message before it and takes over time, process and
///   level of that one;
/// - any other line is not pgBackRest's own (ssh, the dynamic linker) and is a warning.
#[derive(Debug, Default)]
pub struct LineParser {
    last: Option<(Option<DateTime>, Option<u16>, Level)>,
}

impl LineParser {
    /// A parser at the start of a stream. Use one for each stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads one line without its newline; `None` for a blank one.
    pub fn push(&mut self, line: &str) -> Option<LogLine> {
        let text = line.trim();
        if text.is_empty() {
            return None;
        }
        let indented = line.starts_with([' ', '\t']);
        let (time, process, level, text) = match (header(line), self.last) {
            (Some(header), _) if !indented => header,
            (_, Some((time, process, level))) if indented => (time, process, level, text),
            _ => (None, None, Level::Warn, text),
        };
        self.last = Some((time, process, level));
        Some(LogLine { time, process, level, text: text.trim().to_owned() })
    }
}

type Header<'a> = (Option<DateTime>, Option<u16>, Level, &'a str);

/// `[YYYY-MM-DD HH:MM:SS.mmm ][PNN ]LEVEL: text`.
fn header(line: &str) -> Option<Header<'_>> {
    let (time, rest) = match line.split_at_checked(24) {
        Some((stamp, rest)) if has_stamp_shape(stamp) => (stamp.trim_end().parse().ok(), rest),
        _ => (None, line),
    };
    let (process, rest) = match rest.strip_prefix('P').and_then(|rest| rest.split_once(' ')) {
        Some((digits, rest)) if !digits.starts_with('+') && digits.parse::<u16>().is_ok() => {
            (digits.parse().ok(), rest)
        }
        _ => (None, rest),
    };
    let (word, text) = rest.trim_start().split_once(':')?;
    Some((time, process, Level::from_line(word)?, text))
}

fn has_stamp_shape(stamp: &str) -> bool {
    let shape = b"dddd-dd-dd dd:dd:dd.ddd ";
    stamp.len() == shape.len()
        && stamp
            .bytes()
            .zip(shape)
            .all(|(b, s)| if *s == b'd' { b.is_ascii_digit() } else { b == *s })
}

/// Which way the files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressKind {
    Backup,
    Restore,
}

/// How a command says that it ended. Best effort: the exit code decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutcome {
    Completed {
        /// Milliseconds; absent with `--no-log-timestamp`.
        duration_ms: Option<u64>,
    },
    Aborted {
        /// The code that will be the exit code.
        code: i32,
    },
    Terminated {
        /// Such as `SIGTERM`; absent when a child process passed the signal on.
        signal: Option<String>,
    },
}

/// A line that means something to a job's progress or result (design/pgbackrest.md, section 5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Milestone {
    /// A backup shows a second one, for the expire that follows it.
    CommandBegin {
        command: String,
        version: String,
    },
    /// The backup that a diff or incr builds on.
    LastBackupLabel(BackupLabel),
    NewBackupLabel(BackupLabel),
    FileProgress {
        /// Of all bytes, in hundredths of a percent: 0 to 10000.
        percent: u32,
        /// Size of this file in bytes, rounded as printed (`1.3MB`).
        size_bytes_approx: Option<u64>,
        kind: ProgressKind,
    },
    /// The set that a restore has chosen.
    RestoreSet(BackupLabel),
    BackupSize {
        /// The type that was really made.
        kind: BackupType,
        /// Bytes, rounded as printed (`22.1MB`).
        size_bytes_approx: Option<u64>,
        file_total: Option<u64>,
    },
    CommandEnd {
        /// Absent in the bare `terminated on signal SIGTERM` that 2.60 prints instead of it.
        command: Option<String>,
        outcome: CommandOutcome,
    },
    /// Its further lines (`HINT: …`) follow as lines of level error.
    Error {
        code: i32,
        message: String,
    },
    /// `archive-push-queue-max` was exceeded: this WAL file is lost to the archive.
    DroppedWal {
        file: String,
    },
    /// A diff or incr found no full to build on and became a full.
    BecameFull {
        requested: Option<BackupType>,
    },
}

/// What a line means, if it is one of the known ones.
pub fn milestone(line: &LogLine) -> Option<Milestone> {
    let text = line.text.strip_prefix("[DRY-RUN] ").unwrap_or(&line.text);
    match line.level {
        Level::Error => error(text),
        Level::Warn => warning(text),
        Level::Info => information(text).or_else(|| progress(text)),
        Level::Detail => progress(text),
        Level::Debug | Level::Trace => None,
    }
}

/// What a command that failed said: its errors with their further lines, else everything.
pub fn errors_of(output: &str) -> String {
    let mut parser = LineParser::new();
    let lines: Vec<LogLine> = output.lines().filter_map(|line| parser.push(line)).collect();
    let has_errors = lines.iter().any(|line| line.level == Level::Error);
    let told = lines.iter().filter(|line| !has_errors || line.level == Level::Error);
    let texts: Vec<&str> = told
        .map(|line| match line.text.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
            Some((_, text)) if line.level == Level::Error => text,
            _ => line.text.as_str(),
        })
        .collect();
    texts.join("\n")
}

fn error(text: &str) -> Option<Milestone> {
    let (code, message) = text.strip_prefix('[')?.split_once("]: ")?;
    Some(Milestone::Error { code: code.parse().ok()?, message: message.to_owned() })
}

fn warning(text: &str) -> Option<Milestone> {
    if let Some(rest) = text.strip_prefix("dropped WAL file '") {
        let file = rest.split_once('\'')?.0.to_owned();
        return Some(Milestone::DroppedWal { file });
    }
    if text.starts_with("terminated on signal") {
        return Some(Milestone::CommandEnd { command: None, outcome: outcome(text)? });
    }
    let requested = text
        .strip_prefix("no prior backup exists, ")?
        .strip_suffix(" backup has been changed to full")?;
    Some(Milestone::BecameFull { requested: requested.parse().ok() })
}

fn information(text: &str) -> Option<Milestone> {
    let label = |text: &str| text.split([',', ' ']).next()?.parse().ok();
    if let Some(rest) = text.strip_prefix("new backup label = ") {
        return Some(Milestone::NewBackupLabel(label(rest)?));
    }
    if let Some(rest) = text.strip_prefix("last backup label = ") {
        return Some(Milestone::LastBackupLabel(label(rest)?));
    }
    if let Some((repo, rest)) = text.split_once("restore backup set ")
        && (repo.is_empty() || repo.starts_with("repo"))
    {
        return Some(Milestone::RestoreSet(label(rest)?));
    }
    if let Some((kind, rest)) = text.split_once(" backup size = ") {
        let (size, files) = rest.split_once(", file total = ").unwrap_or((rest, ""));
        return Some(Milestone::BackupSize {
            kind: kind.parse().ok()?,
            size_bytes_approx: size_bytes(size),
            file_total: files.parse().ok(),
        });
    }
    if let Some((command, rest)) = text.split_once(" command begin ") {
        let version = rest.split([':', ' ']).next()?.to_owned();
        return is_command(command)
            .then(|| Milestone::CommandBegin { command: command.to_owned(), version });
    }
    let (command, rest) = text.split_once(" command end: ")?;
    let outcome = outcome(rest)?;
    let command = is_command(command).then(|| command.to_owned());
    command.is_some().then_some(Milestone::CommandEnd { command, outcome })
}

/// A command as pgBackRest prints it, with its role: `backup`, `archive-push:async`.
fn is_command(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'-' | b':'))
}

fn outcome(text: &str) -> Option<CommandOutcome> {
    let bracket = |text: &str| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned());
    if let Some(rest) = text.strip_prefix("completed successfully") {
        let duration = rest.trim().strip_prefix('(').and_then(|rest| rest.strip_suffix("ms)"));
        let duration_ms = duration.and_then(|ms| ms.parse().ok());
        Some(CommandOutcome::Completed { duration_ms })
    } else if text.starts_with("aborted with exception") {
        Some(CommandOutcome::Aborted { code: bracket(text)?.parse().ok()? })
    } else if let Some(rest) = text.strip_prefix("terminated on signal ") {
        let word = rest.trim_matches(['[', ']']);
        let signal = word.starts_with("SIG").then(|| word.to_owned());
        Some(CommandOutcome::Terminated { signal })
    } else {
        None
    }
}

/// `… (SIZE, 3.38%)` or `… (bundle 1/0, SIZE, 3.38%)`, then perhaps ` checksum HEX`. Read from the
/// right, because a path may hold anything.
fn progress(text: &str) -> Option<Milestone> {
    let kind = if text.starts_with("restore ") {
        ProgressKind::Restore
    } else if ["backup file ", "match file ", "checksum resumed "]
        .iter()
        .any(|p| text.starts_with(p))
    {
        ProgressKind::Backup
    } else {
        return None;
    };
    let text = match text.rsplit_once(" checksum ") {
        Some((before, hex)) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => before,
        Some(_) | None => text,
    };
    let (_, inner) = text.strip_suffix("%)")?.rsplit_once(" (")?;
    let (size, percent) = inner.rsplit_once(", ")?;
    let size = size.rsplit(", ").next()?;
    Some(Milestone::FileProgress {
        percent: hundredths(percent)?.min(10_000),
        size_bytes_approx: size_bytes(size),
        kind,
    })
}

/// `3`, `3.3` or `3.38` times one hundred; more digits are cut.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let fraction: u32 = format!("{fraction:0<2}").get(..2)?.parse().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(fraction)
}

/// A size as pgBackRest prints it (`8B`, `768KB`, `1.3MB`; the units are powers of 1024) in bytes.
fn size_bytes(text: &str) -> Option<u64> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit);
    let shift = ["B", "KB", "MB", "GB", "TB", "PB"].iter().position(|u| *u == unit)? * 10;
    let hundredths = u64::from(hundredths(number)?);
    Some(hundredths.checked_mul(1_u64 << shift)? / 100)
}

#[cfg(test)]
mod tests;
