//! What Headrest does not start with: one clear line, and nothing touched.

use std::fs;
use std::net::TcpListener;

use crate::running;
use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::ports::Port;

/// Starts it and answers its exit code and what it said on standard error.
fn refused(instance: &mut Instance) -> (Option<i32>, String) {
    let error = instance.root.join("headrest.err");
    let before = fs::read_to_string(&error).unwrap_or_default().len();
    instance.spawn();
    let status = instance.wait_exit();
    let said = fs::read_to_string(&error).unwrap()[before..].to_owned();
    assert_eq!(instance.processes(), [], "something was started");
    (status.code(), said)
}

/// One line, with these words in it.
#[track_caller]
fn is_one_line_with(said: &str, words: &[&str]) {
    assert_eq!(said.trim_end().lines().count(), 1, "{said:?}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}

fn with_fake() -> Instance {
    let mut instance = Instance::new();
    let _fake = Fake::installed_in(&mut instance);
    instance
}

#[test]
fn a_taken_port_is_one_line_and_code_1() {
    let mut instance = with_fake();
    let address = format!("127.0.0.1:{}", instance.http_port());
    let _taken = TcpListener::bind(&address).unwrap();
    let (code, said) = refused(&mut instance);
    assert_eq!(code, Some(1), "{said}");
    is_one_line_with(&said, &[&address]);
    assert_eq!(fs::read_dir(instance.data_dir()).unwrap().count(), 0, "PGDATA was touched");
}

#[test]
fn a_state_directory_inside_pgdata_is_refused_with_code_64() {
    let mut instance = with_fake();
    let inside = instance.data_dir().join("state").display().to_string();
    instance.set("HEADREST_STATE_DIR", inside.clone());
    let (code, said) = refused(&mut instance);
    assert_eq!(code, Some(64), "{said}");
    is_one_line_with(&said, &[&inside, "PGDATA"]);
    assert_eq!(fs::read_dir(instance.data_dir()).unwrap().count(), 0, "PGDATA was touched");
    // Nor by a detour.
    let link = instance.root.join("detour");
    std::os::unix::fs::symlink(instance.data_dir(), &link).unwrap();
    instance.set("HEADREST_STATE_DIR", link.join("state").display().to_string());
    assert_eq!(refused(&mut instance).0, Some(64));
}

#[test]
fn a_state_directory_that_cannot_be_written_is_refused() {
    let mut instance = with_fake();
    let file = instance.root.join("a-file");
    fs::write(&file, "").unwrap();
    for place in ["/proc/headrest".to_owned(), file.display().to_string()] {
        instance.set("HEADREST_STATE_DIR", place.clone());
        let (code, said) = refused(&mut instance);
        assert!(matches!(code, Some(1 | 64)), "{place}: {code:?} {said}");
        is_one_line_with(&said, &[&place]);
    }
}

#[test]
fn a_misspelt_setting_is_refused_with_the_one_that_was_meant() {
    let mut instance = with_fake();
    instance.set("HEADREST_LISTEM", "127.0.0.1:1");
    let (code, said) = refused(&mut instance);
    assert_eq!(code, Some(64), "{said}");
    is_one_line_with(&said, &["HEADREST_LISTEM", "did you mean HEADREST_LISTEN?"]);
    // All that is wrong is said at once, a line each.
    instance.set("HEADREST_POSTGRES__PROT", "1");
    instance.set("HEADREST_AUTH", "maybe");
    let (code, said) = refused(&mut instance);
    assert_eq!(code, Some(64), "{said}");
    assert_eq!(said.trim_end().lines().count(), 3, "{said}");
    assert!(said.contains("did you mean HEADREST_POSTGRES__PORT?"), "{said}");
}

#[test]
fn a_user_or_program_that_is_not_there_is_named() {
    let mut instance = with_fake();
    if rustix::process::geteuid().is_root() {
        instance.set("HEADREST_POSTGRES__OS_USER", "no-such-user");
        let (code, said) = refused(&mut instance);
        assert!(matches!(code, Some(1 | 64)), "{code:?} {said}");
        is_one_line_with(&said, &["no-such-user"]);
        let user = instance.user.name.clone();
        instance.set("HEADREST_POSTGRES__OS_USER", user);
    }
    instance.set("HEADREST_POSTGRES__BIN_DIR", "/no/such/place");
    let (code, said) = refused(&mut instance);
    assert!(matches!(code, Some(1 | 64)), "{code:?} {said}");
    is_one_line_with(&said, &["/no/such/place"]);
}

#[test]
fn a_second_headrest_on_the_same_state_is_refused_and_the_first_goes_on() {
    let (mut first, _fake) = running();
    let server = first.postmaster();
    let port = Port::free();
    let mut second = Instance::new();
    second.env.clone_from(&first.env);
    second.set("HEADREST_LISTEN", format!("127.0.0.1:{}", port.number));
    second.spawn();
    let status = second.wait_exit();
    let said = fs::read_to_string(second.root.join("headrest.err")).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    is_one_line_with(&said, &[&first.root.join("state").display().to_string()]);
    assert_eq!(first.exit_status(), None, "the first one ended");
    assert_eq!(first.postmaster(), server);
    first.sql.run("SELECT 1");
    assert_eq!(first.http.probe("/readyz"), Some(200));
    // The lock goes with the process, however it ends.
    first.kill();
    first.start();
    first.wait_ready();
    assert_eq!(first.postmaster(), server);
}

/// A state directory of its own does not give it PGDATA.
#[test]
fn a_second_headrest_on_the_same_pgdata_is_refused_and_the_first_goes_on() {
    let (first, _fake) = running();
    let server = first.postmaster();
    let mut second = Instance::new();
    let _fake = Fake::installed_in(&mut second);
    second.set("HEADREST_POSTGRES__DATA_DIR", first.data_dir().display().to_string());
    second.spawn();
    let status = second.wait_exit();
    let said = fs::read_to_string(second.root.join("headrest.err")).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    is_one_line_with(&said, &["another Headrest", &first.data_dir().display().to_string()]);
    assert_eq!(first.postmaster(), server);
    assert_eq!(first.http.probe("/readyz"), Some(200));
}
