//! `postmaster.pid` is believed only when it names a server of this PGDATA.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::running;
use crate::support::instance::Instance;
use crate::support::process::Process;
use crate::support::rows::Rows;
use crate::support::{SOON, until};

/// Leaves a file in which everything is as a server would write it, but for the pid.
fn leave(instance: &Instance, pid: &str) {
    let data = instance.data_dir().display().to_string();
    let text = format!(
        "{pid}\n{data}\n1700000000\n{port}\n{sock}\n127.0.0.1\n   1234567        42\nready   \n",
        port = instance.sql.port,
        sock = instance.sql.socket_dir.display()
    );
    leave_text(instance, &text);
}

fn leave_text(instance: &Instance, text: &str) {
    let file = instance.data_dir().join("postmaster.pid");
    fs::write(&file, text).unwrap();
    instance.user.own(&file);
}

#[test]
fn a_stale_pid_file_is_survived_whomever_it_names() {
    let (instance, _fake) = running();
    let (other, _other_fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    // In the instance's directory, so that it is ended with it if the test fails.
    let mut bystander = Command::new("sleep")
        .arg("1000")
        .current_dir(&instance.root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let threads = fs::read_dir(format!("/proc/{}/task", instance.pid())).unwrap();
    let threads: Vec<i32> = threads
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .filter(|thread| *thread != instance.pid())
        .collect();
    let others_server = other.postmaster().unwrap();
    // One that has ended and that nobody has reaped.
    let mut zombie = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    let dead = i32::try_from(zombie.id()).unwrap();
    until("it is a zombie", SOON, || {
        Process::read(dead).filter(|process| process.state == 'Z').map(|_| ())
    });
    let named = [
        ("a zombie", dead.to_string()),
        ("Headrest itself", instance.pid().to_string()),
        ("a thread of Headrest", threads.first().expect("a thread").to_string()),
        ("the test", std::process::id().to_string()),
        ("somebody else", bystander.id().to_string()),
        ("the init process", "1".to_owned()),
        ("another server", others_server.to_string()),
        ("nobody", "4194303".to_owned()),
        ("no pid", "0".to_owned()),
        ("a standalone backend that is gone", "-4194303".to_owned()),
        ("a number too large", "99999999999999999999".to_owned()),
    ];
    let start = |what: &str| {
        instance.order("start");
        let server = instance.wait_server("ready");
        assert_eq!(server["adopted"], false, "{what}: {server}");
        assert_eq!(server["reason"], Value::Null, "{what}: {server}");
        rows.check();
    };
    for (what, pid) in named {
        instance.stop_server();
        leave(&instance, &pid);
        start(what);
    }
    for (what, text) in [("garbage", "\u{1}\u{2}what is this\n\n\n"), ("an empty file", "")] {
        instance.stop_server();
        leave_text(&instance, text);
        start(what);
    }
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander was ended");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    zombie.wait().unwrap();
    assert_eq!(other.postmaster(), Some(others_server), "the other server was touched");
    assert!(Process::lives(others_server));
    assert_eq!(other.server()["restarts"], 0);
}
