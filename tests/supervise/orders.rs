//! What the API can ask of PostgreSQL, and what the probes say meanwhile.

use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;

use crate::running;
use crate::support::client::send;
use crate::support::process;
use crate::support::rows::Rows;

#[test]
fn stop_start_restart_and_reload_do_what_they_say() {
    let (instance, _fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let first = instance.postmaster();

    instance.order("restart");
    instance.wait_ready();
    let second = instance.postmaster();
    assert_ne!(first, second);
    rows.check();

    instance.sql.run("ALTER SYSTEM SET work_mem = '9MB'");
    assert_eq!(instance.sql.run("SHOW work_mem"), "4MB");
    instance.order("reload");
    instance.sql.until_answers("SHOW work_mem", "9MB");
    assert_eq!(instance.postmaster(), second, "a reload restarted it");
    // As with a postmaster of its own: `kill -HUP`.
    instance.sql.run("ALTER SYSTEM SET work_mem = '10MB'");
    process::signal(instance.pid(), Signal::HUP);
    instance.sql.until_answers("SHOW work_mem", "10MB");
    assert_eq!(instance.postmaster(), second, "a reload restarted it");
    let running = instance.http.post("/api/v1/processes/postgres/start", &Value::Null);
    assert_eq!(running.problem(409), "postgres-running");

    instance.stop_server();
    let probe = |path: &str| instance.http.probe(path);
    assert_eq!(
        (probe("/livez"), probe("/readyz"), probe("/startupz")),
        (Some(200), Some(503), Some(503))
    );
    assert_eq!(instance.control("Database cluster state"), "shut down");
    let stopped = instance.http.post("/api/v1/processes/postgres/reload", &Value::Null);
    assert_eq!(stopped.problem(409), "postgres-stopped");
    let server = instance.server();
    assert_eq!((&server["pid"], &server["restarts"]), (&Value::Null, &Value::from(0)), "{server}");
    for path in ["/livez", "/readyz"] {
        let head = send(instance.http.request(Method::HEAD, path));
        assert_eq!((Some(head.status), head.body.as_str()), (probe(path), ""));
    }
    let unknown = instance.http.post("/api/v1/processes/mysql/start", &Value::Null);
    assert_eq!(unknown.problem(404), "no-such-process");

    instance.order("start");
    instance.wait_ready();
    assert_eq!(
        (probe("/livez"), probe("/readyz"), probe("/startupz")),
        (Some(200), Some(200), Some(200))
    );
    rows.check();
    let log = instance.http.get("/api/v1/processes/postgres/log").expect(200).body;
    assert!(log.contains("database system is ready to accept connections"), "{log}");
}
