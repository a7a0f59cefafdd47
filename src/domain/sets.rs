//! What is known of a backup set: whether it is whole. One judgement for retention, the lists, plans and
//! pages.
//!
//! Evidence comes from the backup itself (page errors), from the manifest being read back, and from
//! verifications. A newer look at the same thing replaces an older one. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::words::words;
use super::{BackupLabel, RepoKey};

words! {
    /// What a backup set is worth.
    State {
        /// Verified, and nothing wrong was found.
        Good = "good",
        /// It was not verified, and no damage is known.
        Unverified = "unverified",
        /// The database had pages with wrong checksums when it was backed up. It can be restored, with
        /// those pages.
        PageErrors = "page-errors",
        /// Files of it, or of a backup that it needs, are damaged or missing in the repository.
        Damaged = "damaged",
        /// Its manifest cannot be read: it cannot be restored at all.
        Unreadable = "unreadable",
    }
}

impl State {
    /// Whether no set that is whole may be given up for it.
    pub fn is_bad(self) -> bool {
        match self {
            Self::Good | Self::Unverified => false,
            Self::PageErrors | Self::Damaged | Self::Unreadable => true,
        }
    }

    /// Whether a restore of it works, as far as is known.
    pub fn can_be_restored(self) -> bool {
        match self {
            Self::Good | Self::Unverified | Self::PageErrors => true,
            Self::Damaged | Self::Unreadable => false,
        }
    }
}

/// What a verification found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// When.
    pub at: Timestamp,
    /// Whether it was good.
    pub good: bool,
}

/// What reading the manifest back found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBack {
    /// When.
    pub at: Timestamp,
    /// Why it cannot be read; `None` when it can.
    pub problem: Option<String>,
}

/// The evidence about one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Its label.
    pub label: BackupLabel,
    /// The repository it is in.
    pub repo: RepoKey,
    /// When it ended.
    pub stopped_at: Option<Timestamp>,
    /// Every backup that it needs.
    pub needs: Vec<BackupLabel>,
    /// Whether pages with wrong checksums were found when it was made.
    pub page_errors: bool,
    /// The last verification.
    pub verified: Option<Verified>,
    /// The last reading of its manifest.
    pub read_back: Option<ReadBack>,
}

/// What a set is worth, since when that is known, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What it is worth.
    pub state: State,
    /// When that was found out; `None` where nothing was.
    pub since: Option<Timestamp>,
    /// Why it is bad, in words; `None` when it is not.
    pub why: Option<String>,
}

impl Judgement {
    /// Nothing is known.
    pub const UNVERIFIED: Self = Self { state: State::Unverified, since: None, why: None };

    /// Its manifest cannot be read.
    pub fn unreadable(at: Timestamp, problem: &str) -> Self {
        let why = format!("its manifest cannot be read: {problem}");
        Self { state: State::Unreadable, since: Some(at), why: Some(why) }
    }
}

/// The judgements of all sets.
pub type Judgements = BTreeMap<(RepoKey, BackupLabel), Judgement>;

/// Judges all sets by their evidence.
pub fn judge(sets: &[Evidence]) -> Judgements {
    let found: BTreeMap<_, _> = sets.iter().map(|set| ((set.repo, &set.label), set)).collect();
    let one = |set: &Evidence| {
        let needed = set.needs.iter().filter_map(|label| found.get(&(set.repo, label)));
        ((set.repo, set.label.clone()), judge_one(set, needed.copied()))
    };
    sets.iter().map(one).collect()
}

fn judge_one<'a>(set: &Evidence, needed: impl Iterator<Item = &'a Evidence>) -> Judgement {
    let bad = |state, since, why: String| Judgement { state, since, why: Some(why) };
    let verified_good = set.verified.filter(|verified| verified.good).map(|verified| verified.at);
    // A verification reads the manifest as well.
    if let Some(ReadBack { at, problem: Some(problem) }) = &set.read_back
        && verified_good.is_none_or(|good| good < *at)
    {
        return Judgement::unreadable(*at, problem);
    }
    if let Some(Verified { at, good: false }) = set.verified {
        let why = "a verification found files damaged or missing".to_owned();
        return bad(State::Damaged, Some(at), why);
    }
    // What it needs was found to be damaged, and it was not found to be good since then.
    let spoilt = needed.filter_map(|other| {
        let verified = other.verified.filter(|verified| !verified.good)?;
        verified_good.is_none_or(|good| good < verified.at).then_some((verified.at, &other.label))
    });
    if let Some((at, label)) = spoilt.min() {
        let why = format!(
            "it needs backup {label}, in which a verification found files damaged or missing"
        );
        return bad(State::Damaged, Some(at), why);
    }
    if set.page_errors {
        let why = "pages with wrong checksums were found when it was made".to_owned();
        return bad(State::PageErrors, set.stopped_at, why);
    }
    match verified_good {
        Some(at) => Judgement { state: State::Good, since: Some(at), why: None },
        None => Judgement::UNVERIFIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn set(label: &str, needs: &[&str]) -> Evidence {
        Evidence {
            label: label.parse().unwrap(),
            repo: RepoKey::FIRST,
            stopped_at: Some(at(1)),
            needs: needs.iter().map(|label| label.parse().unwrap()).collect(),
            page_errors: false,
            verified: None,
            read_back: None,
        }
    }

    fn verified(second: i64, good: bool) -> Verified {
        Verified { at: at(second), good }
    }

    fn read_back(second: i64, problem: Option<&str>) -> ReadBack {
        ReadBack { at: at(second), problem: problem.map(Into::into) }
    }

    #[test]
    fn by_its_own_evidence() {
        type Case = (bool, Option<Verified>, Option<ReadBack>, State, Option<i64>);
        let cases: [Case; 11] = [
            (false, None, None, State::Unverified, None),
            (false, Some(verified(5, true)), None, State::Good, Some(5)),
            (false, Some(verified(5, false)), None, State::Damaged, Some(5)),
            (true, None, None, State::PageErrors, Some(1)),
            // The pages are what they are, however whole the copy is.
            (true, Some(verified(5, true)), Some(read_back(6, None)), State::PageErrors, Some(1)),
            (true, Some(verified(5, false)), None, State::Damaged, Some(5)),
            (false, None, Some(read_back(6, Some("truncated"))), State::Unreadable, Some(6)),
            (
                false,
                Some(verified(5, true)),
                Some(read_back(6, Some("truncated"))),
                State::Unreadable,
                Some(6),
            ),
            (
                false,
                Some(verified(7, true)),
                Some(read_back(6, Some("truncated"))),
                State::Good,
                Some(7),
            ),
            (
                false,
                Some(verified(7, false)),
                Some(read_back(6, Some("x"))),
                State::Unreadable,
                Some(6),
            ),
            // That the manifest can be read says nothing of the files.
            (false, Some(verified(5, false)), Some(read_back(6, None)), State::Damaged, Some(5)),
        ];
        for (page_errors, verified, read_back, state, since) in cases {
            let one = Evidence { page_errors, verified, read_back, ..set("20261120-101500F", &[]) };
            let judgement = judge(std::slice::from_ref(&one)).into_values().next().unwrap();
            assert_eq!((judgement.state, judgement.since), (state, since.map(at)), "{one:?}");
            assert_eq!(judgement.why.is_some(), state.is_bad());
        }
    }

    #[test]
    fn by_what_it_needs() {
        let full = "20261120-101500F";
        let diff = "20261120-101500F_20261121-101500D";
        let of_diff = |full_verified, diff_verified, full_read: Option<ReadBack>| {
            let sets = [
                Evidence { verified: full_verified, read_back: full_read, ..set(full, &[]) },
                Evidence { verified: diff_verified, ..set(diff, &[full]) },
            ];
            judge(&sets)[&(RepoKey::FIRST, diff.parse().unwrap())].state
        };
        assert_eq!(of_diff(Some(verified(5, false)), None, None), State::Damaged);
        assert_eq!(
            of_diff(Some(verified(5, false)), Some(verified(4, true)), None),
            State::Damaged
        );
        assert_eq!(of_diff(Some(verified(5, false)), Some(verified(6, true)), None), State::Good);
        assert_eq!(of_diff(Some(verified(5, true)), None, None), State::Unverified);
        // A backup has a manifest of its own, with everything that a restore needs to know.
        assert_eq!(of_diff(None, None, Some(read_back(5, Some("truncated")))), State::Unverified);
    }
}
