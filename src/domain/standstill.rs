//! Whether a recovering server has run out of WAL, told by what its `restore_command` was asked for.
//!
//! PostgreSQL looks for the next record in the archive, then in `pg_wal`. It asks the archive for the
//! same segment again only after both failed (PostgreSQL source, `WaitForWALToBecomeAvailable` and
//! `XLogFileReadAnyTLI` in `xlogrecovery.c`). So a segment that is asked for once more, after an
//! attempt that did not get it, means that everything there is was replayed. This holds however long
//! one attempt takes, because it depends on the order of the attempts and on no time.
//!
//! A record that crosses from one segment into the next, which is missing, makes PostgreSQL fetch the
//! first of the two again and again: a segment that was got is no progress by itself.
//!
//! Pure: `pgbackrest::attempts` reads the attempts, `jobs::restore` acts on the verdict.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Lsn;

/// One run of the `restore_command`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Ascending, in the order in which the runs began.
    pub number: u64,
    /// The wanted file: a WAL segment or a timeline history.
    pub file: String,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took, in milliseconds; `None` while it runs.
    pub took_ms: Option<u64>,
    /// How it ended; `None` while it runs.
    pub outcome: Option<Outcome>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Outcome {
    /// The file is in `pg_wal` now.
    Found,
    /// pgBackRest looked in every repository, and none has it (exit code 1).
    NotFound,
    /// Headrest did not ask pgBackRest: recovery must not get this file.
    Withheld,
    /// pgBackRest could not tell.
    Failed(Failure),
}

/// Why pgBackRest could not tell whether a file is in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// pgBackRest's exit code; `None` when a signal ended it, or when it did not start.
    pub exit_code: Option<u8>,
    /// What it said, whole.
    pub message: String,
}

impl Failure {
    /// Whether it may be about this one file, and the rest of the repository be well: a checksum, a
    /// format, a file that cannot be opened, read or decrypted, or that is missing (pgBackRest's
    /// `error.yaml`). Everything else is about the repository, or about pgBackRest itself.
    pub fn may_be_about_the_file(&self) -> bool {
        matches!(self.exit_code, Some(26 | 29 | 41 | 42 | 55 | 95))
    }
}

/// What a server stands at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standstill {
    /// Everything was replayed, and no repository has this segment.
    NotFound(String),
    /// Everything that is in `pg_wal` was replayed, and whether the archive has this segment is not known.
    Failing(String, Failure),
    /// The archive gave this segment again and again, and nothing of it was replayed.
    Useless(String),
}

/// Remembers where the server stood at the last look.
#[derive(Debug, Default)]
pub struct Watcher {
    replayed: Option<Lsn>,
    /// The newest attempt at the look that saw the position change.
    since: u64,
}

/// How often a segment must be got without any progress to be called useless.
const USELESS: usize = 4;

/// Where a segment is in the WAL, comparable with others of the same size; `None` for other files.
fn place(file: &str) -> Option<&str> {
    let is_segment = file.len() == 24 && file.bytes().all(|b| b.is_ascii_hexdigit());
    if is_segment { file.get(8..) } else { None }
}

impl Attempt {
    /// Whether it ended without the file.
    fn is_unsuccessful(&self) -> bool {
        matches!(self.outcome, Some(Outcome::NotFound | Outcome::Withheld | Outcome::Failed(_)))
    }
}

impl Watcher {
    /// Judges the attempts, oldest first, of one run of the server. `replayed` is the last replayed
    /// position, asked for after the attempts were read; `None` before anybody can connect.
    pub fn look(&mut self, attempts: &[Attempt], replayed: Option<Lsn>) -> Option<Standstill> {
        if self.replayed != replayed {
            self.replayed = replayed;
            self.since = attempts.last().map_or(0, |attempt| attempt.number);
        }
        wanted(attempts).or_else(|| self.useless(attempts))
    }

    fn useless(&self, attempts: &[Attempt]) -> Option<Standstill> {
        let recent = attempts.iter().filter(|attempt| attempt.number > self.since);
        let got = recent.filter(|attempt| attempt.outcome == Some(Outcome::Found));
        let segments: Vec<&str> =
            got.map(|attempt| attempt.file.as_str()).filter(|file| place(file).is_some()).collect();
        let last = segments.iter().max_by_key(|file| place(file))?;
        let times = segments.iter().filter(|file| *file == last).count();
        (times >= USELESS).then(|| Standstill::Useless((*last).to_owned()))
    }
}

/// What is missing once a segment was asked for again that was not got before, and not since.
fn wanted(attempts: &[Attempt]) -> Option<Standstill> {
    let is_missing = |at: usize| {
        let wanted = place(&attempts[at].file);
        let got_since = attempts[at + 1..]
            .iter()
            .any(|later| later.outcome == Some(Outcome::Found) && place(&later.file) >= wanted);
        wanted.is_some() && attempts[at].is_unsuccessful() && !got_since
    };
    let asked_again =
        |at: &usize| attempts[at + 1..].iter().any(|later| later.file == attempts[*at].file);
    let first = (0..attempts.len()).filter(|at| is_missing(*at)).find(asked_again)?;
    // Where a record crosses from one segment into the next, the first may be in `pg_wal` only, and
    // is asked for again because the second is missing.
    let at = (first..attempts.len())
        .filter(|at| is_missing(*at))
        .max_by_key(|at| place(&attempts[*at].file))?;
    let wanted = place(&attempts[at].file);
    // The same stretch of the WAL on each timeline that was asked for, as it ended last.
    let mut newest: Vec<&Attempt> = Vec::new();
    let ended = attempts.iter().rev().filter(|attempt| attempt.outcome.is_some());
    for attempt in ended.filter(|attempt| place(&attempt.file) == wanted) {
        if newest.iter().all(|known| known.file != attempt.file) {
            newest.push(attempt);
        }
    }
    let failed = newest.iter().find_map(|attempt| match &attempt.outcome {
        Some(Outcome::Failed(failure)) => Some((attempt.file.clone(), failure.clone())),
        _ => None,
    });
    if let Some((file, failure)) = failed {
        return Some(Standstill::Failing(file, failure));
    }
    let is_withheld = |attempt: &&&Attempt| attempt.outcome == Some(Outcome::Withheld);
    let file = newest
        .iter()
        .filter(|attempt| !is_withheld(attempt))
        .max_by_key(|attempt| &attempt.file)
        .or_else(|| newest.iter().max_by_key(|attempt| &attempt.file))?;
    Some(Standstill::NotFound(file.file.clone()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(timeline: u32, number: u64) -> String {
        format!("{timeline:08X}{:08X}{:08X}", number >> 8, number & 0xff)
    }

    fn attempt(number: u64, file: &str, outcome: Option<Outcome>) -> Attempt {
        let started_at = Timestamp::from_second(1_795_000_000).unwrap();
        let took_ms = outcome.as_ref().map(|_| 5);
        Attempt { number, file: file.to_owned(), started_at, took_ms, outcome }
    }

    fn list(tries: &[(&str, Option<Outcome>)]) -> Vec<Attempt> {
        let numbered = (1..).zip(tries);
        numbered.map(|(number, (file, outcome))| attempt(number, file, outcome.clone())).collect()
    }

    fn failed(exit_code: u8) -> Outcome {
        Outcome::Failed(Failure { exit_code: Some(exit_code), message: "no".to_owned() })
    }

    type Tries<'a> = Vec<(&'a str, Option<Outcome>)>;

    #[test]
    fn verdicts() {
        use Outcome::{Found, NotFound, Withheld};
        let (four, five, six) = (name(1, 4), name(1, 5), name(1, 6));
        let (four, five, six) = (four.as_str(), five.as_str(), six.as_str());
        let five_of_2 = name(2, 5);
        let five_of_2 = five_of_2.as_str();
        let not_found = |file: &str| Some(Standstill::NotFound(file.to_owned()));
        let failing = |file: &str, code| match failed(code) {
            Outcome::Failed(failure) => Some(Standstill::Failing(file.to_owned(), failure)),
            _ => None,
        };
        let cases: Vec<(Tries<'_>, Option<Standstill>)> = vec![
            (vec![], None),
            (vec![(four, Some(Found)), (five, None)], None),
            // pg_wal may have it.
            (vec![(four, Some(Found)), (five, Some(NotFound))], None),
            (vec![(four, Some(Found)), (five, Some(NotFound)), (six, None)], None),
            (vec![(five, Some(NotFound)), (five, None)], not_found(five)),
            (vec![(five, Some(NotFound)), (five, Some(NotFound))], not_found(five)),
            // It came back.
            (vec![(five, Some(NotFound)), (five, Some(Found))], None),
            (vec![(five, Some(NotFound)), (five, Some(Found)), (six, None)], None),
            // A record begins in 4 and ends in 5.
            (
                vec![
                    (four, Some(Found)),
                    (five, Some(NotFound)),
                    (four, Some(Found)),
                    (five, None),
                ],
                not_found(five),
            ),
            (vec![(five, Some(NotFound)), (four, Some(Found)), (four, Some(Found))], None),
            // Each timeline is asked for.
            (vec![(five_of_2, Some(NotFound)), (five, Some(NotFound))], None),
            (
                vec![(five_of_2, Some(NotFound)), (five, Some(NotFound)), (five_of_2, None)],
                not_found(five_of_2),
            ),
            (
                vec![(five_of_2, Some(NotFound)), (five, Some(Withheld)), (five, None)],
                not_found(five_of_2),
            ),
            (vec![(five, Some(Withheld)), (five, Some(Withheld))], not_found(five)),
            (
                vec![(five_of_2, Some(failed(101))), (five, Some(NotFound)), (five_of_2, None)],
                failing(five_of_2, 101),
            ),
            (vec![(five, Some(failed(62))), (five, None)], failing(five, 62)),
            (vec![(five, Some(failed(62))), (five, Some(NotFound))], not_found(five)),
            (vec![("00000002.history", Some(NotFound)), ("00000002.history", None)], None),
        ];
        for (tries, expect) in cases {
            let attempts = list(&tries);
            assert_eq!(Watcher::default().look(&attempts, None), expect, "{attempts:#?}");
        }
    }

    #[test]
    fn a_segment_that_is_got_again_and_again_is_useless() {
        let four = name(1, 4);
        let again = |times: usize| vec![(four.as_str(), Some(Outcome::Found)); times];
        let mut watcher = Watcher::default();
        // The checkpoint, then the redo point before it: read twice before anything is replayed.
        assert_eq!(watcher.look(&list(&again(2)), Some(Lsn::new(100))), None);
        assert_eq!(watcher.look(&list(&again(5)), Some(Lsn::new(100))), None);
        assert_eq!(watcher.look(&list(&again(6)), Some(Lsn::new(200))), None);
        assert_eq!(watcher.look(&list(&again(9)), Some(Lsn::new(200))), None);
        let useless = Some(Standstill::Useless(four.clone()));
        assert_eq!(watcher.look(&list(&again(10)), Some(Lsn::new(200))), useless);
    }

    /// What a server finds: segments in the archive and in `pg_wal`, each with how many of its
    /// eight records are there, and whether its last record needs the next segment.
    #[derive(Debug, Clone)]
    struct World {
        archive: Vec<bool>,
        local: Vec<u64>,
        crosses: Vec<bool>,
        /// The file of each number that comes into the archive after so many attempts.
        late: Option<(usize, usize)>,
        /// How many records are decoded before they are replayed.
        ahead: u64,
    }

    const RECORDS: u64 = 8;

    /// What a server asked for, and how it stood when that began.
    #[derive(Debug, Clone)]
    struct Told {
        attempt: Attempt,
        /// The segment that was missing in `pg_wal` for the next record, once everything before was
        /// replayed.
        missing: Option<usize>,
    }

    /// A server as `XLogFileReadAnyTLI` and `XLogPageRead` behave.
    fn run(world: &World, attempts: usize) -> Vec<Told> {
        let (mut archive, mut local) = (world.archive.clone(), world.local.clone());
        let mut told: Vec<Told> = Vec::new();
        let (mut replayed, mut decoded) = (0u64, 0u64);
        let end = world.archive.len() as u64 * RECORDS;
        // In the segment with this number, from its source, records up to this one are valid.
        let mut open: Option<(usize, u64)> = None;
        while told.len() < attempts && decoded < end {
            let segment = usize::try_from(decoded / RECORDS).unwrap();
            let is_last = decoded % RECORDS == RECORDS - 1;
            let mut need = vec![(segment, decoded % RECORDS + 1)];
            if is_last && world.crosses[segment] && segment + 1 < archive.len() {
                need.push((segment + 1, 1));
            }
            let mut got_all = true;
            for (number, upto) in need.clone() {
                if open.is_some_and(|(at, valid)| at == number && valid >= upto) {
                    continue;
                }
                if open.is_some_and(|(at, _)| at == number) {
                    // An invalid record is met only when everything before it is replayed.
                    replayed = decoded;
                }
                if let Some((after, which)) = world.late
                    && told.len() >= after
                    && which < archive.len()
                {
                    archive[which] = true;
                }
                let found = archive[number];
                let outcome = if found { Outcome::Found } else { Outcome::NotFound };
                let lacks = |(number, upto): &(usize, u64)| local[*number] < *upto;
                let missing = need.iter().find(|need| lacks(need)).map(|(number, _)| *number);
                let missing = missing.filter(|_| replayed == decoded);
                let next = told.len() as u64 + 1;
                let attempt = attempt(next, &name(1, number as u64), Some(outcome));
                told.push(Told { attempt, missing });
                if found {
                    local[number] = RECORDS;
                }
                let valid = local[number];
                if valid < upto {
                    // Everything that was decoded is replayed before the next try.
                    replayed = decoded;
                    open = None;
                    got_all = false;
                    break;
                }
                open = Some((number, valid));
            }
            if got_all {
                decoded += 1;
                replayed = replayed.max(decoded.saturating_sub(world.ahead));
            }
        }
        told
    }

    fn world() -> impl Strategy<Value = World> {
        (2usize..6).prop_flat_map(|count| {
            (
                proptest::collection::vec(any::<bool>(), count),
                proptest::collection::vec(prop_oneof![Just(0), 0..=RECORDS], count),
                proptest::collection::vec(any::<bool>(), count),
                proptest::option::of((0usize..30, 0..count)),
                0u64..20,
            )
                .prop_map(|(archive, local, crosses, late, ahead)| World {
                    archive,
                    local,
                    crosses,
                    late,
                    ahead,
                })
        })
    }

    proptest! {
        /// A verdict is given only when nothing more can be replayed without the file that it names,
        /// and as soon as that file is asked for once more.
        #[test]
        fn a_standstill_is_what_it_says(world in world(), cut in 1usize..40, running in any::<bool>()) {
            let told = run(&world, 40);
            let told = &told[..cut.min(told.len())];
            let mut attempts: Vec<Attempt> = told.iter().map(|told| told.attempt.clone()).collect();
            if running && let Some(last) = attempts.last_mut() {
                (last.outcome, last.took_ms) = (None, None);
            }
            let verdict = Watcher::default().look(&attempts, None);
            if let Some(Standstill::NotFound(file)) = &verdict {
                let missing = told.last().unwrap().missing.map(|number| name(1, number as u64));
                prop_assert_eq!(Some(file), missing.as_ref(), "{:?} {:#?}", world, attempts);
            }
            let last = told.last().unwrap();
            let own = told[..told.len() - 1].iter().rev();
            let before = own.map(|told| &told.attempt).find(|a| a.file == last.attempt.file);
            let before = before.is_some_and(|a| a.outcome == Some(Outcome::NotFound));
            let got = !running && last.attempt.outcome == Some(Outcome::Found);
            if last.missing.is_some() && before && !got {
                prop_assert!(verdict.is_some(), "{world:?} {attempts:#?}");
            }
        }
    }
}
