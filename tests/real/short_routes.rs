//! One line of curl.

use reqwest::Method;
use reqwest::blocking::RequestBuilder;

use crate::interrupted::{slow_backups, wait_workers};
use crate::support::client::{Http, send};
use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::rows::Rows;

#[test]
fn the_whole_story_in_one_line_each() {
    let instance = Instance::with_full_backup();
    let get = |path: &str| instance.http.get(&format!("/pgBackRest{path}"));
    assert_eq!(get("/db_status").expect(200).body.trim(), "Postgres status True");
    assert!(get("/create").expect(200).body.contains("stanza-create"));
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    for kind in ["full", "diff", "incr"] {
        rows.add(20);
        let reply = get(&format!("/backup/{kind}")).expect(200);
        assert!(reply.header("content-type").starts_with("text/plain"), "{:?}", reply.headers);
        assert_eq!(reply.header("cache-control"), "no-store");
        assert!(
            reply.body.contains("backup command end: completed successfully"),
            "{}",
            reply.body
        );
    }
    let info = get("/info").expect(200).body;
    for word in ["stanza: main", "full backup: ", "diff backup: ", "incr backup: "] {
        assert!(info.contains(word), "{word} is not in {info}");
    }
    rows.add(20);
    let jobs = instance.jobs().len();
    assert_eq!(get("/restore/delta").problem(422), "confirmation-required");
    assert_eq!(get("/restore/delta?confirm=mian").problem(422), "confirmation-required");
    assert_eq!(instance.jobs().len(), jobs, "it was not confirmed");
    let reply = get("/restore/delta?confirm=main").expect(200);
    assert!(reply.body.contains("restore command end: completed successfully"), "{}", reply.body);
    instance.wait_ready();
    rows.check();
    instance.stop_server();
    assert_eq!(get("/db_status").expect(200).body.trim(), "Postgres status False");
    let posted = send(instance.http.request(Method::POST, "/pgBackRest/restore/delta"));
    posted.expect(200);
    instance.wait_ready();
    rows.check();
    let triggers: Vec<_> = instance.jobs().iter().map(|job| job["trigger"].clone()).collect();
    assert!(triggers.iter().any(|trigger| trigger == "short-route"), "{triggers:?}");
}

#[test]
fn nothing_is_done_by_head_by_another_site_or_in_advance() {
    let mut instance = Instance::new();
    let _fake = Fake::installed_in(&mut instance);
    instance.set("HEADREST_AUTH", "off");
    instance.env.remove("HEADREST_ADMIN_TOKEN");
    instance.http = Http::new(instance.http_port(), None);
    instance.start();
    instance.wait_ready();
    let deeds = [
        "/pgBackRest/backup/full",
        "/pgBackRest/backup/diff",
        "/pgBackRest/backup/incr",
        "/pgBackRest/create",
        "/pgBackRest/restore/delta?confirm=main",
    ];
    let before = instance.jobs();
    let refused = |request: RequestBuilder, what: &str, status: u16| {
        let reply = send(request);
        assert_eq!(reply.status, status, "{what}: {}", reply.body);
        assert_eq!(instance.jobs(), before, "{what} became a job");
    };
    for path in deeds {
        refused(instance.http.request(Method::HEAD, path), &format!("HEAD {path}"), 405);
        for site in ["cross-site", "same-site", "nonsense"] {
            for method in [Method::GET, Method::POST] {
                let request = instance.http.request(method, path).header("Sec-Fetch-Site", site);
                refused(request, &format!("{site} {path}"), 403);
            }
        }
        let early = instance.http.request(Method::GET, path).header("Sec-Purpose", "prefetch");
        refused(early, &format!("prefetch {path}"), 403);
        let elsewhere = instance.http.request(Method::GET, path).header("Host", "evil.example");
        refused(elsewhere, &format!("another host {path}"), 421);
        refused(instance.http.request(Method::PUT, path), &format!("PUT {path}"), 405);
    }
    for path in ["/pgBackRest/info", "/pgBackRest/db_status"] {
        let reply = send(instance.http.request(Method::HEAD, path));
        assert_eq!(reply.status, 200, "HEAD {path}");
    }
    // What a person types or clicks is done.
    for site in ["none", "same-origin"] {
        let request = instance.http.request(Method::GET, "/pgBackRest/backup/full");
        send(request.header("Sec-Fetch-Site", site)).expect(200);
    }
    assert_eq!(instance.jobs().len(), before.len() + 2);
}

#[test]
fn a_browser_gets_a_page_and_nothing_in_it_is_executed() {
    let mut instance = Instance::new();
    let fake = Fake::installed_in(&mut instance);
    instance.start();
    instance.wait_ready();
    fake.on("backup", "echo '<script>alert(1)</script> & \"more\"'; exit 41");
    let request = instance.http.request(Method::GET, "/pgBackRest/backup/full");
    let reply = send(request.header("Accept", "text/html,*/*"));
    assert_eq!(reply.status, 500, "{}", reply.body);
    assert!(reply.header("content-type").starts_with("text/html"));
    assert!(reply.body.contains("&lt;script&gt;"), "{}", reply.body);
    assert!(!reply.body.contains("<script>alert"), "{}", reply.body);
    let plain = instance.http.get("/pgBackRest/backup/full");
    assert_eq!(plain.status, 500);
    assert!(plain.body.contains("<script>alert(1)</script>"), "{}", plain.body);
    // Off means that they do not exist.
    assert!(instance.stop().success());
    instance.set("HEADREST_SHORT_ROUTES", "off");
    instance.start();
    assert_eq!(instance.http.get("/pgBackRest/info").problem(404), "not-found");
}

/// A second one is refused, and a client that leaves does not end what it began.
#[test]
fn who_leaves_ends_nothing() {
    let mut instance = Instance::new();
    slow_backups(&mut instance);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let impatient = instance.http.request(Method::GET, "/pgBackRest/backup/full");
    let gone = std::thread::spawn(move || {
        impatient.timeout(std::time::Duration::from_millis(1500)).send().map(drop)
    });
    wait_workers(&instance);
    assert_eq!(instance.http.get("/pgBackRest/backup/diff").problem(409), "lane-busy");
    assert!(gone.join().unwrap().is_err(), "the backup was too fast for this test");
    let job = instance.jobs().remove(0);
    assert_eq!(job["trigger"], "short-route");
    let job = instance.wait_job(job["id"].as_str().unwrap());
    assert_eq!(job["state"], "succeeded", "{job:#}");
}
