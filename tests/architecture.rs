//! The direction of dependencies: each layer uses only layers below it.
//!
//! Reads the `crate::` paths of every file under `src`. Tests inside files count too.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, lowest first; those of one line do not know each other.
const LAYERS: &[&[&str]] = &[
    &["domain", "clock", "pulse"],
    &["config", "telemetry"],
    &["process"],
    &["pgbackrest"],
    &["postgres", "store"],
    &["metrics"],
    &["jobs"],
    &["scheduler"],
    &["http"],
    &["app"],
    &["cli"],
];

/// What looks like a dependency upwards and is one on purpose.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("app", "cli", "the exit codes are the command line's"),
    ("telemetry", "config", "the format of log lines is configured"),
];

/// Crates and modules that a module must not use.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "domain",
        &[
            "tokio",
            "std::fs",
            "std::process",
            "std::env",
            "std::net",
            "tracing",
            "axum",
            "rusqlite",
        ],
    ),
    ("jobs", &["axum", "rusqlite", "tower"]),
    ("scheduler", &["axum", "rusqlite", "tower", "crate::process"]),
    (
        "http",
        &["rusqlite", "tokio::process", "crate::process", "crate::pgbackrest::runner", "std::fs"],
    ),
    ("store", &["tokio::process", "axum", "crate::process"]),
    (
        "metrics",
        &["axum", "rusqlite", "tokio", "std::fs", "crate::process", "crate::pgbackrest::runner"],
    ),
    ("process", &["axum", "rusqlite"]),
    ("pgbackrest", &["axum", "rusqlite"]),
    ("postgres", &["axum", "rusqlite"]),
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, into: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                into.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    walk(&root, &mut files);
    assert!(files.len() > 40, "only {} files: is this still where the sources are?", files.len());
    let strip =
        |(path, text): (PathBuf, String)| (path.strip_prefix(&root).unwrap().to_owned(), text);
    files.into_iter().map(strip).collect()
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The code without comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The top-level modules that a text names as `crate::name`.
fn used(text: &str) -> Vec<String> {
    text.split("crate::")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect())
        .filter(|name: &String| !name.is_empty())
        .collect()
}

#[test]
fn each_layer_uses_only_layers_below_it() {
    let level: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(level, names)| names.iter().map(move |name| (*name, level)))
        .collect();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let from = module_of(&path);
        if from == "lib" || from == "main" {
            continue;
        }
        let own = *level.get(from.as_str()).unwrap_or_else(|| panic!("{from} has no layer"));
        for to in used(&code(&text)) {
            let other = *level.get(to.as_str()).unwrap_or_else(|| panic!("{to} has no layer"));
            let excepted = EXCEPTIONS.iter().any(|(f, t, _)| *f == from && *t == to);
            if from != to && other >= own && !excepted {
                wrong.push(format!("{}: {from} uses {to}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nobody_uses_what_is_not_theirs() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        let text = code(&text);
        if path.ends_with("tests.rs") {
            continue;
        }
        for (_, names) in FORBIDDEN.iter().filter(|(name, _)| *name == module) {
            // Tests in a file may do more than its code.
            let production = text.split("#[cfg(test)]").next().unwrap();
            for name in names.iter().filter(|name| production.contains(&format!("{name}::"))) {
                wrong.push(format!("{}: uses {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{} has no description", path.display());
    }
}

#[test]
fn there_is_one_place_that_spawns_and_one_that_reads_the_clock() {
    for (path, text) in sources() {
        let spawns = text.contains("process::Command::new(");
        assert!(!spawns || path == Path::new("process/spawn.rs"), "{} spawns", path.display());
        let reads = code(&text).contains("Timestamp::now()");
        assert!(!reads || path == Path::new("clock.rs"), "{} reads the clock", path.display());
    }
}
