//! A pgbackrest of our own: a shell script that does, per command, what a test tells it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::files;
use super::instance::Instance;

/// `info` of a stanza that is well and has a backup: after initdb there is nothing to do.
pub(crate) const GOOD_INFO: &str = r#"[{"archive":[{"database":{"id":1,"repo-key":1},"id":"15-1","max":"000000010000000000000003","min":"000000010000000000000001"}],"backup":[{"archive":{"start":"000000010000000000000002","stop":"000000010000000000000002"},"backrest":{"format":5,"version":"2.45"},"database":{"id":1,"repo-key":1},"error":false,"info":{"delta":1000,"repository":{"delta":100,"size":100},"size":1000},"label":"20261101-000000F","lsn":{"start":"0/2000028","stop":"0/2000100"},"prior":null,"reference":null,"timestamp":{"start":1793491200,"stop":1793491203},"type":"full"}],"cipher":"none","db":[{"id":1,"repo-key":1,"system-id":7000000000000000000,"version":"15"}],"name":"main","repo":[{"cipher":"none","key":1,"status":{"code":0,"message":"ok"}}],"status":{"code":0,"lock":{"backup":{"held":false}},"message":"ok"}}]"#;

const SCRIPT: &str = r#"#!/bin/sh
case "$*" in
*archive-push*) command=archive-push ;;
*archive-get*) command=archive-get ;;
*) for command; do :; done ;;
esac
[ -f "DIRECTORY/$command" ] && . "DIRECTORY/$command"
OTHERWISE
"#;

/// The script and what it does.
#[derive(Debug)]
pub(crate) struct Fake {
    directory: PathBuf,
}

impl Fake {
    /// Makes an instance use it from its next start. `version` and `info` answer well, everything
    /// else succeeds without a word.
    pub(crate) fn installed_in(instance: &mut Instance) -> Self {
        let fake = Self::make(instance, "exit 0");
        fake.on("version", "echo 'pgBackRest 2.45'");
        // Before the first start the repository is empty: initdb never runs where there are
        // backups to restore.
        fake.answer_info(GOOD_INFO);
        let (mark, answer) =
            (instance.data_dir().join("PG_VERSION"), fake.directory.join("info-answer"));
        let (mark, answer) = (mark.display(), answer.display());
        fake.on("info", &format!("if [ -f '{mark}' ]; then cat '{answer}'; else echo '[]'; fi"));
        fake
    }

    /// The same around the real one: what a test says nothing about is done as always.
    pub(crate) fn around_the_real_one(instance: &mut Instance) -> Self {
        let real = format!("exec {} \"$@\"", files::pgbackrest().display());
        Self::make(instance, &real)
    }

    /// An instance that runs with the real one behind the fake, and has its first backup.
    pub(crate) fn with_first_backup() -> (Instance, Self) {
        let mut instance = Instance::new();
        let fake = Self::around_the_real_one(&mut instance);
        instance.start();
        instance.wait_ready();
        instance.wait_first_backup();
        (instance, fake)
    }

    fn make(instance: &mut Instance, otherwise: &str) -> Self {
        let directory = instance.root.join("fake");
        instance.user.make_directory(&directory, 0o755);
        let fake = Self { directory };
        let script = SCRIPT.replace("DIRECTORY", &fake.directory.display().to_string());
        let script = script.replace("OTHERWISE", otherwise);
        fs::write(fake.program(), script).expect("write");
        fs::set_permissions(fake.program(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let program = fake.program().display().to_string();
        // What the real one writes into restore_command is the fake, too.
        instance.set("PGBACKREST_CMD", program.clone());
        instance.set("HEADREST_PGBACKREST__BIN", program);
        fake
    }

    /// The script.
    pub(crate) fn program(&self) -> PathBuf {
        self.directory.join("pgbackrest")
    }

    /// From now on this command does this; in one step, because it may be running.
    pub(crate) fn on(&self, command: &str, script: &str) {
        let new = self.directory.join(format!("{command}.new"));
        fs::write(&new, format!("{script}\nexit\n")).expect("write");
        fs::rename(&new, self.directory.join(command)).expect("rename");
    }

    /// From now on this command begins only after so many seconds, then does what the real one does.
    pub(crate) fn delay(&self, command: &str, seconds: f64) {
        let real = files::pgbackrest();
        self.on(command, &format!("sleep {seconds}\nexec '{}' \"$@\"", real.display()));
    }

    /// From now on this command is done as it was in the beginning.
    pub(crate) fn forget(&self, command: &str) {
        fs::remove_file(self.directory.join(command)).expect("remove");
    }

    /// From now on `info` prints this.
    pub(crate) fn answer_info(&self, answer: &str) {
        self.answer_info_bytes(answer.as_bytes());
    }

    /// The same with any bytes.
    pub(crate) fn answer_info_bytes(&self, answer: &[u8]) {
        let file = self.directory.join("info-answer");
        let new = self.directory.join("info-answer.new");
        fs::write(&new, answer).expect("write");
        fs::rename(&new, &file).expect("rename");
        self.on("info", &format!("cat '{}'", file.display()));
    }
}
