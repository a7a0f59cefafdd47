//! What the removal of one backup takes with it, and when it is refused.

use super::*;

#[test]
fn removing_one_backup() {
    let backups = history(&[
        (Full, at("2026-11-20T10:00:00Z")),
        (Diff, at("2026-11-20T12:00:00Z")),
        (Incr, at("2026-11-20T14:00:00Z")),
        (Full, at("2026-11-21T10:00:00Z")),
    ]);
    let label = |at: usize| backups[at].label.clone();
    let mut rules = rules(Policy::default());
    let ask = |backups: &[Held], rules: &Rules, at: usize| {
        removal(backups, rules, &label(at), None).map(|found| found[0].1.removes.clone())
    };
    assert_eq!(ask(&backups, &rules, 0), Ok(vec![label(0), label(1), label(2)]));
    assert_eq!(ask(&backups, &rules, 1), Ok(vec![label(1), label(2)]));
    assert_eq!(ask(&backups, &rules, 3), Ok(vec![label(3)]));
    let refused = ask(&backups[..3], &rules, 0);
    assert_eq!(refused, Err(Refused::LastFull(label(0), RepoKey::FIRST)));
    assert_eq!(ask(&backups[..3], &rules, 3), Err(Refused::Unknown(label(3))));
    rules.pins.insert(label(2));
    assert_eq!(ask(&backups, &rules, 0), Err(Refused::Pinned(label(2))));
    rules.pins.clear();
    rules.in_use.insert(label(1), "restore 7".to_owned());
    assert_eq!(ask(&backups, &rules, 0), Err(Refused::InUse(label(1), "restore 7".to_owned())));
    assert_eq!(ask(&backups, &rules, 2), Ok(vec![label(2)]));
}
