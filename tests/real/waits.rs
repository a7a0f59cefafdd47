//! A restore that cannot go on says what it waits for and what can be done, in the API, in the health
//! and in a notification, and goes on by itself when the cause is gone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::restore_kills::phase_of;
use crate::support::fake::Fake;
use crate::support::files;
use crate::support::instance::Instance;
use crate::support::jobs::is_final;
use crate::support::moments::at;
use crate::support::rows::Rows;
use crate::support::small_disk::SmallDisk;
use crate::support::told::Told;
use crate::support::{PATIENCE, SOON, process, until, within};

/// How long a restore may stand without a stated reason.
const STATED_WITHIN: Duration = Duration::from_secs(30);

/// Waits until a restore says that it waits for this, and answers how it shows itself.
#[track_caller]
pub(crate) fn waits_for(instance: &Instance, id: &str, reason: &str) -> Value {
    let mut last = Value::Null;
    let found = within(PATIENCE, || {
        last = instance.restore_view(id);
        assert!(!is_final(&last), "it has ended: {last:#}\n{}", instance.job_log(id));
        (last["awaiting"]["reason"] == reason).then(|| last.clone())
    });
    let view = found.unwrap_or_else(|| {
        panic!("{id} does not wait for {reason}: {last:#}\n{}", instance.job_log(id))
    });
    let check = until("the health warns", SOON, || {
        let health = instance.http.get("/api/v1/health").json();
        let checks = health["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "restore").unwrap().clone();
        (check["status"] == "warn").then_some(check)
    });
    assert!(check["detail"].as_str().unwrap().contains(id), "{check:#}");
    assert!(!view["awaiting"]["text"].as_str().unwrap().is_empty(), "{view:#}");
    view
}

#[track_caller]
fn ends_well(instance: &Instance, id: &str, rows: &Rows) {
    let job = instance.wait_job(id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id));
    instance.wait_ready();
    rows.check();
    let health = instance.http.get("/api/v1/health").json();
    let checks = health["checks"].as_array().unwrap();
    let restore = checks.iter().find(|check| check["name"] == "restore").unwrap();
    let healed = within(SOON, || {
        let health = instance.http.get("/api/v1/health").json();
        let checks = health["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|c| c["name"] == "restore" && c["status"] == "pass")
    });
    assert!(healed.is_some(), "{restore:#}");
}

fn running() -> (Instance, Rows) {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.switch_wal();
    rows.add(10);
    (instance, rows)
}

/// How many segments the server got from the archive, by its log.
fn restored_segments(instance: &Instance) -> usize {
    let log = fs::read_to_string(instance.root.join("state/log/postgres.log")).unwrap_or_default();
    log.matches("restored log file").count()
}

/// An instance whose server trusts everybody on its socket.
fn trusting() -> Instance {
    let mut instance = Instance::new();
    let hba = instance.root.join("hba.conf");
    fs::write(&hba, "local all all trust\n").unwrap();
    let args = format!("-c listen_addresses= -c hba_file={}", hba.display());
    instance.set("HEADREST_POSTGRES__ARGS", args);
    instance.start();
    instance.wait_ready();
    instance.wait_restorable(&instance.wait_first_backup());
    instance
}

fn by_hand(instance: &Instance, command: &str) {
    let mut pgbackrest = Command::new(files::pgbackrest());
    pgbackrest.env_clear().envs(&instance.env).args(["--stanza=main", command]).current_dir("/");
    instance.user.run_as(&mut pgbackrest);
    let output = pgbackrest.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_stop_file_is_no_gap() {
    let mut instance = Instance::new();
    let told = Told::by(&mut instance);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.switch_wal();
    rows.add(10);
    by_hand(&instance, "stop");
    let id = instance.begin_restore();
    let view = waits_for(&instance, &id, "stop-file");
    let detail = view["awaiting"]["detail"].as_str().unwrap();
    assert!(detail.contains("exit code 62") && detail.contains("stop file exists"), "{view:#}");
    assert!(view["awaiting"]["text"].as_str().unwrap().contains("pgbackrest start"), "{view:#}");
    assert_eq!(
        view["actions"],
        json!(["retarget", "abandon"]),
        "nothing is consistent yet: {view:#}"
    );
    let page = instance.http.get("/").body;
    assert!(page.contains("stop file exists") && page.contains("pgbackrest start"), "{page}");
    until("it is notified", SOON, || {
        let line = format!("restore.waiting warning job:{id}");
        told.all().contains(&line).then_some(())
    });
    by_hand(&instance, "start");
    ends_well(&instance, &id, &rows);
}

#[test]
fn a_repository_that_goes_away_is_waited_for() {
    let (instance, rows) = running();
    let fake_repository = instance.root.join("repo-aside");
    let fake = instance.root.join("repo");
    let id = instance.begin_restore_to(&json!({ "type": "latest" }), &json!({}));
    until("phase recovering", PATIENCE, || {
        (phase_of(&instance, &id) == "recovering").then_some(())
    });
    // Before the server has everything.
    fs::rename(&fake, &fake_repository).unwrap();
    let view = within(PATIENCE, || {
        let view = instance.restore_view(&id);
        (is_final(&view) || !view["awaiting"].is_null()).then_some(view)
    });
    let view = view.expect("it says what it waits for");
    if view["awaiting"].is_null() {
        eprintln!("the restore was quicker");
    } else {
        let view = waits_for(&instance, &id, "repository-unavailable");
        assert!(view["awaiting"]["detail"].as_str().unwrap().contains("archive-get"), "{view:#}");
    }
    fs::rename(&fake_repository, &fake).unwrap();
    ends_well(&instance, &id, &rows);
}

/// Whatever archive-get says: it is told whole, and nothing is promoted.
#[test]
fn wrong_credentials_are_told_with_the_whole_message() {
    let (instance, fake) = Fake::with_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let lines = [
        "2026-11-20 11:12:56.346 P00  ERROR: [105]: HTTP request failed with 403 (Forbidden):",
        "                                    *** Path/Query ***:",
        "                                    <Code>InvalidAccessKeyId</Code>",
    ];
    fake.on("archive-get", &format!("echo '{}'\nexit 105", lines.join("\n")));
    let id = instance.begin_restore();
    let view = waits_for(&instance, &id, "repository-unavailable");
    let detail = view["awaiting"]["detail"].as_str().unwrap();
    for part in ["exit code 105", "403 (Forbidden)", "InvalidAccessKeyId"] {
        assert!(detail.contains(part), "{part} is missing: {view:#}");
    }
    // Killed again and again, and not there at all: tried again each time.
    fake.on("archive-get", "kill -9 $$");
    until("the new cause is told", SOON, || {
        let view = instance.restore_view(&id);
        view["awaiting"]["detail"].as_str()?.contains("SIGKILL").then_some(())
    });
    let program = fake.program();
    let aside = program.with_extension("aside");
    fs::rename(&program, &aside).unwrap();
    until("the new cause is told", SOON, || {
        let view = instance.restore_view(&id);
        view["awaiting"]["detail"].as_str()?.contains("cannot start").then_some(())
    });
    fs::rename(&aside, &program).unwrap();
    fake.forget("archive-get");
    ends_well(&instance, &id, &rows);
}

/// Nothing is known while it hangs but that it hangs; the restore can be given up all the same.
#[test]
fn an_archive_get_that_hangs_is_stated_and_can_be_abandoned() {
    let (instance, fake) = Fake::with_first_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let moment = instance.sql.now();
    rows.add(10);
    instance.switch_wal();
    let last = instance.switch_wal();
    // The last segment does not come.
    let real = files::pgbackrest().display().to_string();
    fake.on(
        "archive-get",
        &format!("case \"$*\" in *{last}*) exec sleep 600;; esac\nexec {real} \"$@\""),
    );
    let began = Instant::now();
    let id = instance.begin_restore();
    let view = waits_for(&instance, &id, "repository-unavailable");
    assert!(began.elapsed() < STATED_WITHIN + SOON, "after {:?}", began.elapsed());
    let detail = view["awaiting"]["detail"].as_str().unwrap();
    assert!(detail.contains(&last) && detail.contains("running since"), "{view:#}");
    assert_eq!(view["actions"], json!(["promote", "retarget", "abandon"]), "{view:#}");
    fake.forget("archive-get");
    instance.steer(&id, "retarget", &json!({ "target": at(moment) })).expect(202);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    rows.up_to(10).check();
}

#[test]
fn a_full_disk_during_recovery_is_waited_for() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this must be tested, as root");
        eprintln!("only root can mount a small file system: nothing is tested");
        return;
    }
    let mut disk = SmallDisk::around(Instance::new(), 250);
    disk.hold_data_dir();
    let fake = Fake::around_the_real_one(&mut disk.instance);
    disk.instance.start();
    disk.instance.wait_ready();
    disk.instance.wait_restorable(&disk.instance.wait_first_backup());
    let instance = &disk.instance;
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    for _ in 0..4 {
        rows.add(10);
        instance.switch_wal();
    }
    fake.delay("archive-get", 1.0);
    let id = instance.begin_restore();
    until("it recovers", PATIENCE, || (restored_segments(instance) > 0).then_some(()));
    let filling = disk.fill(0);
    let view = waits_for(instance, &id, "disk-full");
    assert!(view["awaiting"]["text"].as_str().unwrap().contains("Free space"), "{view:#}");
    fs::remove_file(filling).unwrap();
    ends_well(instance, &id, &rows);
}

/// A restore to before the role was made that Headrest connects as.
#[test]
fn a_role_that_does_not_exist_at_the_target_is_told_with_the_way_out() {
    let mut instance = trusting();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let moment = instance.sql.now();
    rows.add(10);
    instance.sql.run("CREATE ROLE keeper SUPERUSER LOGIN");
    instance.stop();
    instance.set("HEADREST_POSTGRES__SUPERUSER", "keeper");
    instance.start();
    instance.wait_ready();
    let began = Instant::now();
    let id = instance.begin_restore_to(&at(moment), &json!({}));
    let job = instance.wait_job(&id);
    eprintln!("ended after {:?}", began.elapsed());
    assert_eq!(job["state"], "warned", "{job:#}\n{}", instance.job_log(&id));
    assert_eq!(job["restore"]["phase"], "done", "{job:#}");
    assert_eq!(job["error"]["code"], "role-missing", "{job:#}");
    let hints = job["error"]["hints"].to_string();
    assert!(hints.contains("CREATE ROLE") && hints.contains("keeper"), "{job:#}");
    // Clients are served, and the health says what is wrong.
    rows.up_to(10).check();
    let health = until("the health fails", PATIENCE, || {
        let health = instance.http.get("/api/v1/health").json();
        (health["status"] == "fail").then_some(health)
    });
    assert!(health.to_string().contains("keeper"), "{health:#}");
    instance.sql.run("CREATE ROLE keeper SUPERUSER LOGIN");
    instance.wait_ready();
    instance.good_backup("full");
}

/// No superuser that could be guessed: then nobody can look, and the restore can be given up.
#[test]
fn without_any_role_the_restore_can_be_abandoned() {
    let mut instance = trusting();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.sql.run("CREATE ROLE other SUPERUSER LOGIN");
    let as_other = instance.sql.as_role("other");
    let rename = |instance: &mut Instance, from: &str, to: &str| {
        as_other.run(&format!("ALTER ROLE {from} RENAME TO {to}"));
        instance.stop();
        instance.set("HEADREST_POSTGRES__SUPERUSER", to);
        instance.start();
        let ready = || (instance.http.probe("/readyz") == Some(200)).then_some(());
        until("it is ready", PATIENCE, ready);
    };
    // Before a backup: else the usual role is there when the first connection is made.
    rename(&mut instance, "postgres", "boss");
    let backup = instance.good_backup("full");
    until("it is restorable", PATIENCE, || {
        (as_other.now() > Instance::first_moment(&backup)).then_some(())
    });
    let moment = as_other.now();
    rename(&mut instance, "boss", "keeper");
    as_other.run("INSERT INTO t VALUES (1000)");
    let began = Instant::now();
    let id = instance.begin_restore_to(&at(moment), &json!({}));
    let view = waits_for(&instance, &id, "role-missing");
    assert!(began.elapsed() < STATED_WITHIN, "after {:?}", began.elapsed());
    assert!(view["awaiting"]["detail"].as_str().unwrap().contains("keeper"), "{view:#}");
    assert_eq!(view["actions"], json!(["retarget", "abandon"]), "{view:#}");
    instance.steer(&id, "abandon", &json!({ "confirm": "main" })).expect(202);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "cancelled", "{job:#}\n{}", instance.job_log(&id));
    assert_eq!(instance.sql.as_role("keeper").run("SELECT count(*) FROM t"), "11");
}

/// The server's user cannot enter the directory of the executable.
#[test]
fn an_executable_that_the_servers_user_cannot_reach_is_copied() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut instance = Instance::new();
    let closed = instance.root.join("closed");
    fs::create_dir(&closed).unwrap();
    let program = closed.join("headrest");
    fs::copy(env!("CARGO_BIN_EXE_headrest"), &program).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    instance.set_program(program);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.good_restore();
    rows.check();
    assert!(instance.root.join("state/bin/headrest").exists());
}

/// While the service is down its server goes on to fetch WAL, and the notes are there when it is back.
#[test]
fn recovery_goes_on_while_the_service_is_down() {
    let (mut instance, fake) = Fake::with_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    for _ in 0..3 {
        rows.add(10);
        instance.switch_wal();
    }
    rows.add(10);
    fake.delay("archive-get", 0.3);
    let id = instance.begin_restore();
    until("it recovers", PATIENCE, || (restored_segments(&instance) > 0).then_some(()));
    process::signal(instance.pid(), Signal::KILL);
    instance.wait_exit();
    let before = restored_segments(&instance);
    until("it fetches more", SOON, || (restored_segments(&instance) > before).then_some(()));
    let job = instance.start_and_wait_for(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    rows.check();
}
