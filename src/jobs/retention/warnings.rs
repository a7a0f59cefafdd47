//! What the user should know about the rules, as they stand to each other.

use std::collections::{BTreeMap, BTreeSet};

use super::Ground;
use crate::clock;
use crate::domain::retention::{
    self, Counts, FullRetention, Held, Period, Policy, RepoPlan, Rules,
};

impl Ground {
    /// What the user should know.
    pub fn warnings(&self, plans: &[RepoPlan]) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        found.extend(self.damaged());
        let alone = self.pgbackrest_alone();
        for plan in plans {
            found.extend(self.without_limit(plan));
            if !self.set_by_user.contains(&plan.repo) || self.is_pgbackrests_own() {
                continue;
            }
            let kept: BTreeSet<_> =
                plan.verdicts.iter().filter(|v| v.is_kept()).map(|v| &v.label).collect();
            let own = alone.iter().filter(|other| other.repo == plan.repo);
            let lost = own.flat_map(RepoPlan::doomed).filter(|label| kept.contains(label)).count();
            let set = self.options.get(&plan.repo).into_iter().flatten();
            let set: Vec<String> = set
                .filter(|(name, _)| !name.contains("archive"))
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let counts = self.rules.counts.get(&plan.repo).copied().unwrap_or_default();
            if lost == 0 && !is_narrower(counts, &self.rules.policy) {
                continue;
            }
            let which = match lost {
                0 => "what they keep".to_owned(),
                lost => format!("{lost} of the backups that stay now"),
            };
            found.push(format!(
                "pgBackRest's own configuration says {} for repository {}. Headrest keeps what \
                 either keeps, but a `pgbackrest backup` or `expire` that is run outside Headrest \
                 knows nothing of [retention], pins and what stays for an undo: it would remove \
                 {which}. Raise the option to 9999999 to rule that out.",
                set.join(", "),
                plan.repo
            ));
        }
        found
    }

    /// What pgBackRest would do alone: it knows no pins, and counts what is damaged, too.
    fn pgbackrest_alone(&self) -> Vec<RepoPlan> {
        let rules = Rules {
            policy: Policy::default(),
            pins: BTreeSet::new(),
            in_use: BTreeMap::new(),
            holds: Vec::new(),
            ..self.rules.clone()
        };
        let plain = |backup: &Held| Held { bad: false, ..backup.clone() };
        let backups: Vec<Held> = self.backups.iter().map(plain).collect();
        retention::plan(&backups, &rules, clock::now())
    }

    /// Backups that are damaged.
    fn damaged(&self) -> Option<String> {
        let bad = self.backups.iter().filter(|backup| backup.bad);
        let bad: Vec<&str> = bad.map(|backup| backup.label.as_str()).collect();
        let (first, limited) = (bad.first()?, self.rules.counts.values().any(Counts::limit));
        let which = match bad.len() {
            1 => (*first).to_owned(),
            more => format!("{first} and {} more", more - 1),
        };
        let alone = if limited {
            " pgBackRest's own retention only counts: a `pgbackrest backup` or `expire` that is run \
             outside Headrest may remove the last good backup for their sake."
        } else {
            ""
        };
        Some(format!(
            "Damaged: {which} (page errors when it was made, a verification that failed, or a manifest that cannot be read). No \
             good backup goes for their sake: what each rule keeps of the good ones alone stays, \
             too.{alone}"
        ))
    }

    /// A repository that only the calendar limits, which may not be what its owner wants.
    fn without_limit(&self, plan: &RepoPlan) -> Option<String> {
        let counts = self.rules.counts.get(&plan.repo).copied().unwrap_or_default();
        let going = plan.doomed().count();
        (self.rules.policy.is_set() && !counts.limit() && going > 0).then(|| {
            format!(
                "repository {0} has no limit of its own (repo{0}-retention-full is not set, or \
                 without end), so [retention] alone decides there: {going} of its backups go. Pin \
                 what is to stay.",
                plan.repo
            )
        })
    }
}

/// Whether fewer fulls than periods are kept, so that sooner or later one of them is removed.
fn is_narrower(counts: Counts, policy: &Policy) -> bool {
    let periods: u32 = Period::ALL.iter().map(|period| policy.of(*period)).sum();
    match counts.full {
        Some(FullRetention::Count(fulls)) => fulls < periods,
        Some(FullRetention::Days(_)) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_narrower_than_the_periods() {
        let gfs = Policy { daily: Some(3), weekly: Some(2), ..Policy::default() };
        for (full, expect) in [
            (Some(FullRetention::Count(4)), true),
            (Some(FullRetention::Count(5)), false),
            (Some(FullRetention::Days(1)), false),
            (None, false),
        ] {
            assert_eq!(is_narrower(Counts { full, diff: None }, &gfs), expect, "{full:?}");
        }
        let two = Counts { full: Some(FullRetention::Count(2)), diff: None };
        assert!(!is_narrower(two, &Policy::default()));
    }
}
