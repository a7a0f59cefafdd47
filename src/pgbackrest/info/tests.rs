//! Answers of `info` as they were recorded, and what is not one.

use super::*;

macro_rules! recorded {
    ($version:literal, $name:literal) => {
        parse(include_bytes!(concat!(
            "../../../tests/fixtures/pgbackrest/",
            $version,
            "/info-",
            $name,
            ".json"
        )))
        .unwrap()
    };
}

fn main_of(stanzas: &[StanzaInfo]) -> &StanzaInfo {
    find(stanzas, &"main".parse().unwrap()).unwrap()
}

#[test]
fn three_backups() {
    for stanzas in
        [recorded!("2.45", "three"), recorded!("2.55.1", "three"), recorded!("2.60.0", "three")]
    {
        let main = main_of(&stanzas);
        assert_eq!(main.status.meaning(), StanzaStatus::Ok);
        assert!(!main.status.lock.backup.held && main.skipped_backups == 0);
        assert_eq!(main.databases[0].system_id.len(), 19);
        assert_eq!(
            main.archives[0].id,
            format!("{}-1", main.databases[0].version.as_ref().unwrap())
        );
        let [full, diff, incr] = main.backups.as_slice() else { panic!("{main:?}") };
        assert_eq!(full.annotations["ticket"], "OPS-17");
        assert_eq!(full.kind, BackupKind::Known(BackupType::Full));
        assert_eq!((full.prior.as_ref(), incr.prior.as_ref()), (None, Some(&diff.label)));
        assert!(full.started_at < full.stopped_at && full.lsn_start < full.lsn_stop);
        assert_eq!(full.error, Some(false));
        assert!(full.repo_size_bytes < full.size_bytes && full.repo_size_map.is_none());
        assert_eq!(main.newest_backup(), Some(incr));
        assert_eq!(main.needs(&incr.label), [full.label.clone(), diff.label.clone()].into());
        assert_eq!(main.needed_by(&diff.label), [incr.label.clone()].into());
        assert_eq!(main.needed_by(&full.label).len(), 2);
        assert!(main.needs(&full.label).is_empty() && main.needed_by(&incr.label).is_empty());
    }
}

#[test]
fn repositories_in_trouble() {
    use StanzaStatus::{DifferentAcrossRepos, MissingPath, NoBackup, Other};
    for (stanzas, stanza, last_repo) in [
        (recorded!("2.45", "no-repo"), MissingPath, MissingPath),
        (recorded!("2.60.0", "missing-stanza"), MissingPath, MissingPath),
        (recorded!("2.55.1", "no-backup"), NoBackup, NoBackup),
        (recorded!("2.45", "unreadable"), Other(99), Other(99)),
        (recorded!("2.45", "two-repos-one-unreadable"), DifferentAcrossRepos, Other(99)),
    ] {
        let main = main_of(&stanzas);
        assert_eq!(main.status.meaning(), stanza);
        let last = main.repos.last().unwrap();
        assert_eq!(last.status.meaning(), last_repo);
        assert!(last_repo != Other(99) || last.status.message.contains("Error] "));
    }
}

#[test]
fn while_a_backup_runs() {
    for (stanzas, total, done) in [
        (recorded!("2.45", "running"), None, None),
        (recorded!("2.60.0", "running"), Some(327_330_299), Some(50_593_792)),
        (recorded!("2.60.0", "progress"), Some(327_330_299), Some(50_593_792)),
    ] {
        let lock = &main_of(&stanzas).status.lock;
        assert!(lock.backup.held && !lock.restore.held);
        assert_eq!((lock.backup.size_bytes, lock.backup.size_complete_bytes), (total, done));
    }
}

#[test]
fn one_set() {
    for stanzas in [recorded!("2.45", "page-error-set"), recorded!("2.60.0", "page-error-set")] {
        let set = &main_of(&stanzas).backups[0];
        assert_eq!((set.error, set.error_list.len()), (Some(true), 1));
        assert_eq!(set.tablespaces[0].name, "fast");
        assert_eq!(set.database_refs[0].name, "postgres");
        assert!(set.links.is_empty());
    }
    let stanzas = recorded!("2.45", "block-incr");
    let block = &main_of(&stanzas).backups[0];
    assert_eq!((block.repo_size_bytes, block.repo_size_map), (None, Some(24007)));
}

#[test]
fn what_is_not_known_does_no_harm() {
    let json = br#"[1, {}, {"name":"main","backup":[
        {"label":"20261120-100000F","type":"delta","timestamp":null,"reference":"x","new":1},
        {"label":"20261121-100000F","error":null,"lsn":{"start":7},"annotation":{"a":1,"b":[]}},
        {"label":"zip"}, null],
        "db":[{"system-id":18446744073709551615}], "repo":[{"key":0},{"key":2}],
        "archive":[{"id":"15-1","min":null,"database":5}],
        "status":{"lock":{"backup":{"held":true,"size":10,"size-cplt":4}}}}]"#;
    let stanzas = parse(json).unwrap();
    assert_eq!((stanzas.len(), stanzas[0].name.as_str()), (2, ""));
    let main = main_of(&stanzas);
    assert_eq!((main.status.code, main.status.lock.backup.size_complete_bytes), (99, Some(4)));
    assert_eq!((main.backups.len(), main.skipped_backups), (2, 2));
    assert_eq!(main.backups[0].kind, BackupKind::Other("delta".to_owned()));
    assert_eq!(main.backups[1].kind.as_str(), "full");
    assert_eq!(main.backups[1].annotations, [("a".to_owned(), "1".to_owned())].into());
    assert_eq!(main.databases[0].system_id, u64::MAX.to_string());
    assert_eq!((main.repos.len(), main.repos[0].key.get()), (1, 2));
    for (bad, json) in [("", true), ("[", true), ("{}", false), ("null", false)] {
        let error = parse(bad.as_bytes()).unwrap_err();
        assert_eq!(matches!(error, InfoError::Json(_)), json, "{bad:?}");
    }
    assert_eq!(parse(b" []\n").unwrap(), []);
}

#[test]
fn five_megabytes_and_circles() {
    let (a, b) = ("20261120-100000F", "20261120-100000F_20261121-100000I");
    let pad = "x".repeat(1000);
    let entry = |label, prior| format!(r#"{{"label":"{label}","prior":"{prior}","pad":"{pad}"}}"#);
    let entries = vec![[entry(a, b), entry(b, a)].join(","); 2500].join(",");
    let stanzas = parse(format!(r#"[{{"name":"main","backup":[{entries}]}}]"#).as_bytes());
    let stanzas = stanzas.unwrap();
    assert_eq!(stanzas[0].backups.len(), 5000);
    assert_eq!(stanzas[0].needs(&a.parse().unwrap()), [b.parse().unwrap()].into());
    assert_eq!(stanzas[0].needed_by(&a.parse().unwrap()), [b.parse().unwrap()].into());
}

#[test]
fn what_a_status_says_of_a_manifest() {
    let load = |kind: &str, main: &str, copy: &str| {
        format!(
            "[{kind}] unable to load backup manifest file '/r/L/backup.manifest' or \
             '/r/L/backup.manifest.copy':\n{main}\n{copy}"
        )
    };
    let format = "FormatError: missing '=' in key/value at line 44: a";
    // As 2.45 says it.
    let json = "FormatError: invalid JSON value at line 53 'a\nb={\"x\": 1': expected data";
    let permission = "FileOpenError: unable to open file '/r/L' for read: [13] Permission denied";
    let missing = "FileMissingError: unable to open missing file '/r/L' for read";
    let cases = [
        (99, load("FormatError", format, format), Some(format)),
        (99, load("FormatError", json, json), Some(json.lines().next().unwrap())),
        (99, load("FormatError", format, missing), Some(format)),
        (6, "requested backup not found".to_owned(), Some("the repository does not have it")),
        (99, load("FileOpenError", permission, permission), None),
        // Of the copy nothing is known.
        (99, load("FormatError", format, permission), None),
        (99, "[CryptoError] unable to load info file '/r/backup.info'".to_owned(), None),
        (99, "[HostConnectError] unable to connect".to_owned(), None),
        (0, "ok".to_owned(), None),
        (1, "missing stanza path".to_owned(), None),
    ];
    for (code, message, expect) in cases {
        assert_eq!(manifest_problem(code, &message).as_deref(), expect, "{message}");
    }
}
