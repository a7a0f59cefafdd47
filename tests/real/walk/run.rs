//! Taking steps: what is done to the server, and to the model.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::model::{Snapshot, Table, World};
use super::steps::{Course, Decision, Step};
use crate::support::client::Reply;
use crate::support::fake::Fake;
use crate::support::files;
use crate::support::instance::Instance;
use crate::support::jobs::{RESTORES, accepted, id_of, is_final};
use crate::support::moments::{plan_request, request};
use crate::support::{PATIENCE, SOON, until, within};
use crate::wal::{set_writable, unarchived};

const EXPIRE: &str = "/api/v1/stanzas/main/expire";
const POINTS: &str = "/api/v1/stanzas/main/restore-points";
/// How long a job of a restore that pauses is asked for the end of it.
const DECIDED_WITHIN: Duration = Duration::from_secs(120);

/// A transaction that stays open.
struct Long {
    session: Child,
    row: u32,
}

/// A restore that can be undone, and what must be there then.
#[derive(Debug, Clone)]
struct Undo {
    restore: String,
    there: Snapshot,
}

/// An instance on its way, with what should be there.
pub(super) struct Walk {
    instance: Instance,
    fake: Fake,
    world: World,
    /// Numbers are given once in a walk: a row that comes back from a discarded future shows by its number.
    next: u32,
    snapshots: Vec<Snapshot>,
    /// The backups of the present branch.
    backups: Vec<(String, Timestamp)>,
    /// The newest restore, and what was there before it.
    undo: Option<Undo>,
    long: Option<Long>,
    slots: BTreeSet<String>,
    outage: bool,
    pub(super) restores: u32,
}

impl Drop for Long {
    fn drop(&mut self) {
        let _ = self.session.kill();
        let _ = self.session.wait();
    }
}

fn nth<T: Clone>(of: impl ExactSizeIterator<Item = T>, number: u32) -> Option<T> {
    let length = of.len().max(1);
    let mut of = of;
    of.nth(number as usize % length)
}

impl Walk {
    /// A server with its first backup and one table.
    pub(super) fn begin() -> Self {
        let mut instance = Instance::new();
        let arguments = "-c listen_addresses=127.0.0.1 -c max_prepared_transactions=10";
        instance.set("HEADREST_POSTGRES__ARGS", arguments);
        let fake = Fake::around_the_real_one(&mut instance);
        instance.start();
        instance.wait_ready();
        let first = instance.wait_first_backup();
        instance.wait_restorable(&first);
        let mut walk = Self {
            instance,
            fake,
            world: World::default(),
            next: 1,
            snapshots: Vec::new(),
            backups: vec![backup_of(&first)],
            undo: None,
            long: None,
            slots: BTreeSet::new(),
            outage: false,
            restores: 0,
        };
        walk.create_table("t", "");
        walk.take(Step::Commit(0, 10));
        walk
    }

    /// Everything is there at the end.
    pub(super) fn end(&mut self) {
        self.check("at the end");
    }

    /// Takes a step. One that makes no sense at this place does nothing.
    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Commit(table, count) => self.commit(table, count),
            Step::Subtransactions(table) => self.subtransactions(table),
            Step::Prepare => self.prepare(),
            Step::EndPrepared(number, commit) => self.end_prepared(number, commit),
            Step::BeginLong => self.begin_long(),
            Step::EndLong(commit) => self.end_long(commit),
            Step::CreateTable => {
                let name = format!("c{}", self.number());
                self.create_table(&name, "");
            }
            Step::AlterTable(number) => self.alter_table(number),
            Step::DropTable(number) => self.drop_table(number),
            Step::CreateDatabase => self.create_database(),
            Step::DropDatabase(number) => self.drop_database(number),
            Step::CreateTablespace => self.create_tablespace(),
            Step::DropTablespace(number) => self.drop_tablespace(number),
            Step::RestorePoint => self.restore_point(),
            Step::CreateSlot => self.create_slot(),
            Step::Backup(kind) => self.back_up(kind),
            Step::Expire => self.expire(),
            Step::SwitchWal => {
                self.run("SELECT pg_switch_wal()");
            }
            Step::Outage(begins) => self.set_outage(begins),
            Step::SlowArchive(0) => self.fake.delay("archive-get", 0.0),
            Step::SlowArchive(ms) => self.fake.delay("archive-get", f64::from(ms) / 1000.0),
            Step::KillServer => self.kill_server(),
            Step::KillHeadrest => {
                self.instance.kill();
                self.instance.start();
                self.instance.wait_ready();
            }
            Step::RestoreLatest(course) => {
                let here = self.here(None, None);
                let latest = (json!({ "type": "latest" }), json!({}));
                self.restore(&here, &latest, course);
            }
            Step::RestoreTo(number, way, course) => {
                let Some(snapshot) = nth(self.snapshots.iter(), number).cloned() else { return };
                self.restore(&snapshot, &snapshot.target(way), course);
            }
            Step::Undo => self.undo(),
        }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    #[track_caller]
    fn run(&self, sql: &str) -> String {
        self.instance.sql.run(sql)
    }

    /// The moment as it is now.
    fn here(&self, xid: Option<u64>, point: Option<String>) -> Snapshot {
        let answer = self.run(
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, lsn, \
             ('x' || left(pg_walfile_name(lsn), 8))::bit(32)::int FROM pg_current_wal_insert_lsn() lsn",
        );
        let fields: Vec<&str> = answer.split('|').collect();
        Snapshot {
            world: self.world.clone(),
            moment: Timestamp::from_microsecond(fields[0].parse().unwrap()).unwrap(),
            lsn: fields[1].to_owned(),
            timeline: fields[2].parse().unwrap(),
            xid,
            point,
            backups: self.backups.clone(),
            is_doubtful: false,
        }
    }

    fn remember(&mut self, xid: Option<u64>, point: Option<String>) {
        let here = self.here(xid, point);
        self.snapshots.push(here);
    }

    /// A table without an open transaction.
    fn some_table(&self, number: u32) -> String {
        nth(self.world.tables.keys(), number).cloned().unwrap_or_else(|| "t".to_owned())
    }

    fn commit(&mut self, table: u32, count: u8) {
        let table = self.some_table(table);
        let ids: Vec<u32> = (0..count).map(|_| self.number()).collect();
        let xid = self.run(&format!(
            "INSERT INTO {table} (id) SELECT generate_series({}, {}); SELECT pg_current_xact_id()",
            ids[0],
            ids[ids.len() - 1]
        ));
        self.world.tables.entry(table).or_default().rows.extend(ids);
        self.remember(xid.parse().ok(), None);
    }

    fn subtransactions(&mut self, table: u32) {
        let table = self.some_table(table);
        let mut sql = "BEGIN".to_owned();
        for round in 0..6 {
            let id = self.number();
            sql += &format!("; SAVEPOINT s; INSERT INTO {table} (id) VALUES ({id})");
            if round % 2 == 0 {
                sql += "; RELEASE s";
                self.world.tables.entry(table.clone()).or_default().rows.insert(id);
            } else {
                sql += "; ROLLBACK TO s";
            }
        }
        self.run(&format!("{sql}; COMMIT"));
        self.remember(None, None);
    }

    fn prepare(&mut self) {
        if self.world.prepared.len() >= 5 {
            return;
        }
        // A prepared transaction has no time: recovery to a moment before it ends at the next commit only,
        // and brings it back, too.
        self.commit(0, 1);
        self.snapshots.pop();
        let id = self.number();
        self.run(&format!("BEGIN; INSERT INTO t (id) VALUES ({id}); PREPARE TRANSACTION 'x{id}'"));
        self.world.prepared.insert(format!("x{id}"), id);
        self.remember(None, None);
    }

    fn end_prepared(&mut self, number: u32, commit: bool) {
        let Some(gid) = nth(self.world.prepared.keys(), number).cloned() else { return };
        let word = if commit { "COMMIT" } else { "ROLLBACK" };
        self.run(&format!("{word} PREPARED '{gid}'"));
        let id = self.world.prepared.remove(&gid).unwrap();
        if commit {
            self.world.tables.entry("t".to_owned()).or_default().rows.insert(id);
        }
        self.remember(None, None);
    }

    fn begin_long(&mut self) {
        if self.long.is_some() {
            return;
        }
        let row = self.number();
        let sql = &self.instance.sql;
        let mut session = Command::new(files::postgres_program("psql"))
            .env_clear()
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", sql.role, "-d", "postgres", "-p"])
            .arg(sql.port.to_string())
            .arg("-h")
            .arg(&sql.socket_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cannot run psql");
        let text = format!("BEGIN; INSERT INTO t (id) VALUES ({row});\n");
        session.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
        sql.until_answers(open, "1");
        self.long = Some(Long { session, row });
    }

    fn end_long(&mut self, commit: bool) {
        let Some(mut long) = self.long.take() else { return };
        let text = if commit { "COMMIT;\n\\q\n" } else { "ROLLBACK;\n\\q\n" };
        long.session.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        let ended = until("the session ends", SOON, || long.session.try_wait().unwrap());
        assert!(ended.success(), "{ended}");
        if commit {
            self.world.tables.entry("t".to_owned()).or_default().rows.insert(long.row);
        }
        self.remember(None, None);
    }

    fn create_table(&mut self, name: &str, tablespace: &str) {
        let place = if tablespace.is_empty() { "pg_default" } else { tablespace };
        self.run(&format!("CREATE TABLE {name} (id integer PRIMARY KEY) TABLESPACE {place}"));
        let table = Table { columns: 1, tablespace: tablespace.to_owned(), ..Table::default() };
        self.world.tables.insert(name.to_owned(), table);
        self.remember(None, None);
    }

    /// A table that is not `t`, which others have open.
    fn free_table(&self, number: u32) -> Option<String> {
        let free: Vec<&String> = self.world.tables.keys().filter(|name| *name != "t").collect();
        nth(free.into_iter(), number).cloned()
    }

    fn alter_table(&mut self, number: u32) {
        let Some(table) = self.free_table(number) else { return };
        let column = self.number();
        self.run(&format!("ALTER TABLE {table} ADD COLUMN a{column} text DEFAULT md5('x')"));
        self.world.tables.entry(table).or_default().columns += 1;
        self.remember(None, None);
    }

    fn drop_table(&mut self, number: u32) {
        let Some(table) = self.free_table(number) else { return };
        self.run(&format!("DROP TABLE {table}"));
        self.world.tables.remove(&table);
        self.remember(None, None);
    }

    fn create_database(&mut self) {
        let name = format!("d_{}", self.number());
        self.run(&format!("CREATE DATABASE {name}"));
        let fill = "CREATE TABLE goods AS SELECT generate_series(1, 20) id";
        self.instance.sql.attempt_in(&name, fill).unwrap();
        self.world.databases.insert(name);
        self.remember(None, None);
    }

    fn drop_database(&mut self, number: u32) {
        let Some(name) = nth(self.world.databases.iter(), number).cloned() else { return };
        self.run(&format!("DROP DATABASE {name} WITH (FORCE)"));
        self.world.databases.remove(&name);
        self.remember(None, None);
    }

    fn create_tablespace(&mut self) {
        let name = format!("s_{}", self.number());
        let location = self.instance.root.join(&name);
        self.instance.user.make_directory(&location, 0o700);
        self.run(&format!("CREATE TABLESPACE {name} LOCATION '{}'", location.display()));
        self.world.tablespaces.insert(name.clone());
        let table = format!("in_{name}");
        self.create_table(&table, &name);
        let ids: Vec<u32> = (0..20).map(|_| self.number()).collect();
        let (first, last) = (ids[0], ids[19]);
        self.run(&format!("INSERT INTO {table} (id) SELECT generate_series({first}, {last})"));
        self.world.tables.entry(table).or_default().rows.extend(ids);
        self.remember(None, None);
    }

    fn drop_tablespace(&mut self, number: u32) {
        let Some(name) = nth(self.world.tablespaces.iter(), number).cloned() else { return };
        let inside = self.world.tables.iter().filter(|(_, table)| table.tablespace == name);
        let inside: Vec<String> = inside.map(|(table, _)| table.clone()).collect();
        for table in inside {
            self.run(&format!("DROP TABLE {table}"));
            self.world.tables.remove(&table);
            self.remember(None, None);
        }
        self.run(&format!("DROP TABLESPACE {name}"));
        self.world.tablespaces.remove(&name);
        self.remember(None, None);
    }

    fn restore_point(&mut self) {
        let name = format!("point-{}", self.number());
        self.instance.http.post(POINTS, &json!({ "name": name })).expect(201);
        self.remember(None, Some(name));
    }

    fn create_slot(&mut self) {
        let name = format!("slot_{}", self.number());
        self.run(&format!("SELECT pg_create_physical_replication_slot('{name}', true)"));
        self.slots.insert(name);
    }

    fn back_up(&mut self, kind: u8) {
        if self.outage {
            return;
        }
        let kind = ["full", "diff", "incr"][usize::from(kind) % 3];
        let job = self.instance.backup(&json!({ "type": kind }));
        let log = self.instance.job_log(id_of(&job));
        assert_eq!(job["state"], "succeeded", "{job:#}\n{log}");
        self.backups.push(backup_of(&job));
    }

    fn expire(&mut self) {
        if self.outage {
            return;
        }
        let job = self.instance.http.post_and_wait(EXPIRE, &json!({}), 60).expect(200).json();
        assert_eq!(job["state"], "succeeded", "{job:#}");
    }

    fn set_outage(&mut self, begins: bool) {
        if begins == self.outage {
            return;
        }
        set_writable(&self.instance.root.join("repo/archive"), !begins);
        self.outage = begins;
        if !begins {
            until("everything is archived", PATIENCE, || {
                self.run("SELECT pg_switch_wal()");
                (unarchived(&self.instance) == 0).then_some(())
            });
        }
    }

    fn kill_server(&mut self) {
        self.long = None;
        let pid = self.instance.postmaster().unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        until("another server runs", PATIENCE, || {
            let now = self.instance.server()["pid"].as_i64();
            (now.is_some() && now != Some(i64::from(pid))).then_some(())
        });
        self.instance.wait_ready();
    }

    /// What is there is what should be there.
    #[track_caller]
    fn check(&self, when: &str) {
        let wrong = self.world.differences(&World::seen(&self.instance.sql, &BTreeSet::new()));
        assert!(wrong.is_empty(), "{when}: {wrong:#?}");
    }

    /// The newest backup that is left from which a snapshot can be reached.
    fn backup_for(&self, snapshot: &Snapshot) -> Option<String> {
        let labels = self.instance.labels();
        let in_time = snapshot.backups.iter().filter(|(_, first)| *first <= snapshot.moment);
        in_time.map(|(label, _)| label).rfind(|label| labels.contains(label)).cloned()
    }

    /// A restore, and what must be there after it.
    fn restore(&mut self, to: &Snapshot, (target, more): &(Value, Value), course: Course) {
        let before = self.here(None, None);
        self.check_plan();
        let mut more = more.clone();
        let is_latest = target["type"] == "latest";
        if let (Course::Paused(_), false) = (course, is_latest) {
            more["on_reached"] = json!("pause");
        }
        // Where a transaction is in the WAL is not always known, and then it asks for the set.
        if target["type"] == "xid" {
            more["set"] = json!(self.backup_for(to));
        }
        let reply = self.instance.http.post(RESTORES, &request(target, &more));
        if reply.status != 202 {
            return self.may_be_refused(to, &reply);
        }
        self.leave_timeline(before.timeline);
        let id = accepted(&reply);
        let (done, there) = match course {
            Course::Paused(decision) if !is_latest => self.decide(&id, to, decision),
            Course::HeadrestKilled(ms) => (self.killed(&id, ms, false), to.clone()),
            Course::AllKilled(ms) => (self.killed(&id, ms, true), to.clone()),
            Course::ToolKilled(ms) => (self.without_tool(&id, ms), to.clone()),
            Course::Undisturbed | Course::Paused(_) => (self.instance.wait_job(&id), to.clone()),
        };
        match (done["state"].as_str(), done["restore"]["phase"].as_str()) {
            (Some("succeeded"), _) => self.arrive(&id, &there, Some(before)),
            // Abandoned: what was there before is back.
            (Some("cancelled"), Some("done")) => self.arrive(&id, &before, None),
            // It was killed before it changed anything.
            (Some("interrupted" | "failed"), phase) if phase.is_none_or(is_untouched) => {
                self.long = None;
                self.instance.wait_ready();
                self.check(&format!("restore {id} changed nothing"));
            }
            _ => panic!("{done:#}\n{}", self.instance.job_log(&id)),
        }
    }

    /// What was not archived when a timeline was left may be nowhere but with Headrest.
    fn leave_timeline(&mut self, left: u32) {
        if self.outage {
            for snapshot in self.snapshots.iter_mut().filter(|one| one.timeline == left) {
                snapshot.is_doubtful = true;
            }
        }
    }

    /// A restore has ended: this must be there, and an undo leads to what was there before.
    fn arrive(&mut self, id: &str, there: &Snapshot, before: Option<Snapshot>) {
        self.restores += 1;
        self.long = None;
        self.undo = before.map(|before| Undo {
            restore: id.to_owned(),
            there: Snapshot { moment: Timestamp::MAX, ..before },
        });
        self.world = there.world.clone();
        let in_time = there.backups.iter().filter(|(_, first)| *first <= there.moment);
        self.backups = in_time.cloned().collect();
        self.instance.wait_ready();
        let slots = self.run("SELECT count(*) FROM pg_replication_slots");
        if slots == "0" {
            self.slots.clear();
        }
        self.check(&format!("after restore {id}\n{}", self.instance.job_log(id)));
        // What a later transaction has left behind is seen when its number was given again.
        self.run(
            "DO $$ BEGIN FOR i IN 1..200 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
        );
        self.check(&format!("200 transactions after restore {id}"));
        self.remember(None, None);
    }

    /// A refusal must be true: no backup is left that ended before, or WAL is in no archive.
    #[track_caller]
    fn may_be_refused(&self, to: &Snapshot, reply: &Reply) {
        let lost = to.is_doubtful || self.backup_for(to).is_none();
        assert!(
            lost && matches!(reply.status, 409 | 422),
            "{to:#?}\n{} {}",
            reply.status,
            reply.body
        );
        eprintln!("  refused: {}", reply.json()["detail"]);
    }

    /// The plan of a restore to the end names what is lost.
    #[track_caller]
    fn check_plan(&self) {
        let latest = plan_request(&json!({ "type": "latest" }), &json!({}));
        let path = "/api/v1/stanzas/main/restore-plans";
        let plan = self.instance.http.post(path, &latest).expect(201).json();
        let listed = plan["data_lost"]["replication_slots"].as_array().cloned().unwrap_or_default();
        let listed: BTreeSet<String> =
            listed.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
        assert_eq!(listed, self.slots, "{plan:#}");
    }

    /// Waits until it stands at a target; `None` when it has ended without that.
    #[track_caller]
    fn wait_paused(&self, id: &str, target: &Value) -> Option<Value> {
        let mut last = Value::Null;
        let found = within(DECIDED_WITHIN, || {
            last = self.instance.restore_view(id);
            assert!(!is_final(&last), "{last:#}\n{}", self.instance.job_log(id));
            let same = |name: &str| target[name].is_null() || target[name] == last["target"][name];
            let there = last["awaiting"]["reason"] == "target-reached" && same("type");
            (there && (target["type"] != "time" || same("value"))).then(|| last.clone())
        });
        found.or_else(|| panic!("{last:#}\n{}", self.instance.job_log(id)))
    }

    /// Looks at the paused server, decides, and answers the job's end and what must be there.
    fn decide(&mut self, id: &str, to: &Snapshot, decision: Decision) -> (Value, Snapshot) {
        let view = self.wait_paused(id, &json!({}));
        self.look(to, view.as_ref());
        let mut there = to.clone();
        match decision {
            Decision::Promote => {}
            Decision::Abandon => {
                let reply = self.instance.steer(id, "abandon", &json!({ "confirm": "main" }));
                reply.expect(202);
                return (self.instance.wait_job(id), there);
            }
            Decision::Retarget(number) => {
                let other = nth(self.snapshots.iter(), number).cloned().unwrap();
                let target = crate::support::moments::at(other.moment);
                let reply = self.instance.steer(id, "retarget", &json!({ "target": target }));
                if reply.status == 202 {
                    let view = self.wait_paused(id, &target);
                    self.look(&other, view.as_ref());
                    there = other;
                } else {
                    self.may_be_refused(&other, &reply);
                }
            }
        }
        self.instance.steer(id, "promote", &json!({})).expect(202);
        (self.instance.wait_job(id), there)
    }

    /// What is there while it is paused. Prepared transactions show themselves after the promotion only,
    /// and what a transaction beyond the target has locked cannot be read.
    #[track_caller]
    fn look(&self, at: &Snapshot, view: Option<&Value>) {
        let fence = self.instance.fence();
        let locked = "SELECT relation::regclass FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND \
                      locktype = 'relation' AND database <> 0";
        let locked: BTreeSet<String> = fence.run(locked).lines().map(str::to_owned).collect();
        let mut wanted = World { prepared: BTreeMap::new(), ..at.world.clone() };
        wanted.tables.retain(|name, _| !locked.contains(name));
        let wrong = wanted.differences(&World::seen(&fence, &locked));
        assert!(wrong.is_empty(), "paused at {view:#?}: {wrong:#?}");
    }

    fn killed(&mut self, id: &str, ms: u16, all: bool) -> Value {
        thread::sleep(Duration::from_millis(u64::from(ms)));
        self.instance.kill();
        if all {
            for process in self.instance.processes() {
                if let Some(pid) = Pid::from_raw(process.pid) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
        self.instance.start_and_wait_for(id)
    }

    fn without_tool(&mut self, id: &str, ms: u16) -> Value {
        thread::sleep(Duration::from_millis(u64::from(ms)));
        for process in self.instance.pgbackrests() {
            if let Some(pid) = Pid::from_raw(process.pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        self.instance.wait_job(id)
    }

    /// Everything that was committed before the newest restore is there again.
    fn undo(&mut self) {
        let Some(Undo { restore, there }) = self.undo.clone() else { return };
        let before = self.here(None, None);
        self.leave_timeline(before.timeline);
        let body = json!({ "confirm": "main", "backup_after": false });
        let path = format!("/api/v1/restores/{restore}/undo");
        let id = accepted(&self.instance.http.post(&path, &body));
        let job = self.instance.wait_job(&id);
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", self.instance.job_log(&id));
        self.arrive(&id, &there, Some(before));
    }
}

/// Whether nothing was changed in this phase of a restore.
fn is_untouched(phase: &str) -> bool {
    ["accepted", "quiesced", "safe-point", "stopping", "draining", "aborted"].contains(&phase)
}

/// A backup's label, and the first moment that it can be restored to.
fn backup_of(job: &Value) -> (String, Timestamp) {
    (job["result"]["label"].as_str().unwrap().to_owned(), Instance::first_moment(job))
}
