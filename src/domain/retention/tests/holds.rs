//! What stays for the undo of restores, and what a full would remove.

use super::*;

#[test]
fn what_existed_when_a_restore_began_stays_for_its_undo() {
    let backups = history(&[
        (Full, at("2026-11-18T10:00:00Z")),
        (Full, at("2026-11-19T10:00:00Z")),
        (Incr, at("2026-11-19T12:00:00Z")),
        (Full, at("2026-11-20T10:00:00Z")),
        (Full, at("2026-11-21T10:00:00Z")),
    ]);
    let label = |at: usize| backups[at].label.clone();
    let now = at("2026-11-22T00:00:00Z");
    let counted = counted(Some(FullRetention::Count(1)), None);
    let doomed =
        |rules: &Rules| plan(&backups, rules, now)[0].doomed().cloned().collect::<Vec<_>>();
    assert_eq!(doomed(&counted), [0, 1, 2, 3].map(label));
    let restore = JobId::new(now);
    let hold = |before: &str, until: Option<&str>| Hold {
        restore,
        before: at(before),
        until: until.map(at),
    };
    let earlier = hold("2026-11-18T10:00:00Z", Some("2026-12-01T00:00:00Z"));
    let later = hold("2026-11-19T12:00:00Z", Some("2026-12-03T12:34:00Z"));
    let held = |holds: &[Hold]| Rules { holds: holds.to_vec(), ..counted.clone() };
    assert_eq!(doomed(&held(&[earlier])), [1, 2, 3].map(label));
    let rules = held(&[earlier, later]);
    assert_eq!(doomed(&rules), [label(3)]);
    let of = plan(&backups, &rules, now).remove(0);
    // The reason names the hold that lasts longest, and all WAL since the oldest held backup stays.
    let longest = format!("for the undo of restore {restore} until 2026-12-03 12:34 UTC");
    assert_eq!(
        of.verdicts[0].reasons.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [longest]
    );
    assert_eq!(of.wal_from, Some(label(0)));
    let own = of.wal_limit(Some((1, ArchiveType::Full))).unwrap();
    assert_eq!((own.from, own.count), (label(0), 4));
    let refused = removal(&backups, &rules, &label(1), None).unwrap_err();
    assert!(matches!(refused, Refused::AfterRestore(..)), "{refused}");
    assert!(removal(&backups, &rules, &label(3), None).is_ok());
    // A restore that is not over has no end yet.
    let unfinished = held(&[hold("2026-11-22T00:00:00Z", None), later]);
    assert_eq!(doomed(&unfinished), []);
    let of = plan(&backups, &unfinished, now).remove(0);
    assert_eq!(of.verdicts[0].reasons[0].to_string(), format!("until restore {restore} is over"));
}

#[test]
fn what_a_full_lets_go_is_known_before_it_is_made() {
    let backups = history(&[
        (Full, at("2026-11-18T10:00:00Z")),
        (Incr, at("2026-11-18T12:00:00Z")),
        (Full, at("2026-11-19T10:00:00Z")),
    ]);
    let label = |at: usize| (RepoKey::FIRST, backups[at].label.clone());
    let now = at("2026-11-20T00:00:00Z");
    let two = counted(Some(FullRetention::Count(2)), None);
    assert_eq!(plan(&backups, &two, now)[0].doomed().count(), 0);
    assert_eq!(after_full(&backups, &two, RepoKey::FIRST, now), [label(0), label(1)]);
    let hold = Hold { restore: JobId::new(now), before: now, until: None };
    let held = Rules { holds: vec![hold], ..two };
    assert_eq!(after_full(&backups, &held, RepoKey::FIRST, now), []);
}
