//! The table of exit codes, whole and in context.

use super::*;

#[test]
fn every_code_has_its_place() {
    let missing = [33, 34, 35, 36, 59, 65, 66, 71, 77, 84, 85, 86, 90, 91, 92];
    assert_eq!(TABLE.len(), 70);
    assert!(TABLE.is_sorted_by(|a, b| a.code < b.code));
    for code in 25..=125 {
        let info = lookup(code, Context::Other);
        assert_eq!(i32::from(info.code), code);
        let listed = !missing.contains(&code) && !matches!(code, 107..=121 | 123);
        assert_eq!(info.name != "unknown", listed, "{code}");
        assert_eq!(info.name.ends_with("Error"), listed, "{code}");
        assert_eq!(info.problem == ProblemKind::Unknown, !listed, "{code}");
        assert!(info.hint.len() > 20 && info.hint.ends_with('.'), "{code}");
    }
}

#[test]
fn total_for_any_number() {
    use ProblemKind::{Interrupted, Unknown};
    let low = [(0, 0, Unknown), (1, 1, Unknown), (-1, 0, Unknown), (i32::MIN, 0, Unknown)];
    let high = [(127, 127, Unknown), (137, 137, Interrupted), (i32::MAX, 255, Unknown)];
    for (code, kept, problem) in low.into_iter().chain(high) {
        let info = lookup(code, Context::Backup);
        assert_eq!((info.code, info.problem, info.name), (kept, problem, "unknown"));
    }
}

#[test]
fn words_are_unique_kebab_case() {
    let words: std::collections::BTreeSet<_> =
        ProblemKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(words.len(), ProblemKind::ALL.len());
    assert!(words.iter().all(|w| w.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
}

#[test]
fn context_decides() {
    use Context::{ArchivePush, Backup, Check, Other, Restore, StanzaCreate};
    for (code, context, problem, retryable) in [
        (27, Check, "postgres-unavailable", true),
        (27, Backup, "config-invalid", false),
        (29, Restore, "invalid-target", false),
        (29, Backup, "repository-corrupt", false),
        (32, ArchivePush, "archiving-misconfigured", false),
        (32, Backup, "invocation-bug", false),
        (50, Backup, "lock-held", true),
        (55, Backup, "stanza-not-created", false),
        (55, Restore, "repository-incomplete", false),
        (55, StanzaCreate, "repository-incomplete", false),
        (58, Restore, "timeline-unreachable", false),
        (58, Check, "config-invalid", false),
        (63, Other, "terminated", true),
    ] {
        let info = lookup(code, context);
        assert_eq!((info.problem.as_str(), info.retryable), (problem, retryable), "{code}");
    }
}

#[test]
fn text_refines() {
    use Context::{ArchivePush, Backup, Restore, StanzaCreate};
    let check = |code, context, problem: &str, text: &str| {
        assert_eq!(lookup(code, context).refine(text).problem.as_str(), problem, "{text}");
    };
    let full = "unable to write '/pg/base/1': [28] No space left on device";
    check(64, Restore, "insufficient-storage", full);
    check(64, Restore, "storage-write", "unable to write '/pg/1': [5] Input/output error");
    check(50, Backup, "lock-held", full);
    check(25, Backup, "layout-mismatch", "tablespace with oid 16393 not found in tablespace map");
    check(25, Backup, "pgbackrest-internal", "assertion 'x' failed");
    let time = "automatic backup set selection cannot be performed with provided time 'x'";
    check(29, Restore, "invalid-target", time);
    check(29, Restore, "repository-corrupt", "unable to decompress: unexpected eof");
    let half = "archive.info exists but backup.info is missing";
    check(55, StanzaCreate, "repository-incomplete", half);
    let control = "unable to open missing file '/a/global/pg_control' for read";
    check(55, ArchivePush, "config-invalid", control);
    let info = "unable to load info file '/r/backup/main/backup.info' or";
    check(55, StanzaCreate, "stanza-not-created", info);
    let early = "unable to find backup set with stop time less than '2020'";
    check(75, Restore, "target-before-first-backup", early);
    let old = "the latest backup set found 'X' is from a prior version of PostgreSQL";
    check(75, Restore, "no-backup-for-this-version", old);
    check(75, Restore, "backup-not-found", "backup set 20200101-000000F is not valid");
}
