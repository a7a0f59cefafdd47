//! What Headrest told a notification target: a program that writes each event down.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use super::instance::Instance;
use super::until;

/// The target's file.
#[derive(Debug)]
pub(crate) struct Told {
    file: PathBuf,
}

impl Told {
    /// Makes an instance tell everything from its next start.
    pub(crate) fn by(instance: &mut Instance) -> Self {
        let directory = instance.root.join("told");
        instance.user.make_directory(&directory, 0o755);
        let (program, file) = (instance.root.join("tell"), directory.join("events"));
        let line = "$HEADREST_EVENT_KIND $HEADREST_EVENT_SEVERITY $HEADREST_EVENT_SUBJECT";
        fs::write(&program, format!("#!/bin/sh\necho \"{line}\" >>'{}'\n", file.display()))
            .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        for (key, value) in [
            ("NAME", "test"),
            ("TYPE", "command"),
            ("COMMAND", &program.display().to_string()),
            ("EVENTS", "'*'"),
        ] {
            instance.set(&format!("HEADREST_NOTIFY__0__{key}"), value);
        }
        Self { file }
    }

    /// Everything so far: kind, severity and subject, a line each.
    pub(crate) fn all(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The same of the health.
    pub(crate) fn health(&self) -> Vec<String> {
        self.all().into_iter().filter(|line| line.contains(" health:")).collect()
    }

    /// Waits until that is what was told of the health.
    #[track_caller]
    pub(crate) fn wait_for(&self, expect: &[&str]) {
        let patience = Duration::from_secs(60);
        until(&format!("{expect:?} is told, not {:?}", self.health()), patience, || {
            (self.health().len() >= expect.len()).then_some(())
        });
        assert_eq!(self.health(), expect);
    }
}
