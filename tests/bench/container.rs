//! The image against a plain PostgreSQL of the same Debian: how soon clients can connect, and how
//! much larger it is.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::report::{Limit, Report, median};
use crate::support::{PATIENCE, files};

const ROUNDS: usize = 9;
const SUITES: [&str; 3] = ["bookworm", "trixie", "forky"];
/// What a person does who makes a cluster and starts it, with the same checksums and rules.
const BY_HAND: &str = "echo secret >/tmp/pw; \
    initdb --pgdata=/var/lib/postgresql/data --username=postgres --pwfile=/tmp/pw \
        --data-checksums >/dev/null && \
    echo 'host all all all scram-sha-256' >>/var/lib/postgresql/data/pg_hba.conf && \
    exec postgres -D /var/lib/postgresql/data -c listen_addresses='*'";

/// Needs a container engine and the images of `make images`.
pub(crate) fn measure(report: &mut Report) {
    for suite in SUITES {
        let (ours, plain) = (format!("headrest-test:{suite}"), format!("headrest-bench:{suite}"));
        let base = format!("BASE=debian:{suite}-slim");
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/container/plain.Dockerfile");
        let build = ["build", "--quiet", "--build-arg", &base, "--tag", &plain, "--file", file];
        docker(&[&build[..], &[concat!(env!("CARGO_MANIFEST_DIR"), "/tests/container")]].concat());
        let larger = size_mb(&ours) - size_mb(&plain);
        let what = format!("image of {suite} beyond PostgreSQL and pgBackRest");
        report.judge(&what, larger, "MB", Limit::AtMost(25.0));

        let (mut with_us, mut by_hand, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let plain = first_connection(&[&plain, "sh", "-c", BY_HAND]);
            let image = first_connection(&["-e", "POSTGRES_PASSWORD=secret", &ours]);
            ratios.push(image.as_secs_f64() / plain.as_secs_f64());
            by_hand.push(plain);
            with_us.push(image);
        }
        let (with_us, by_hand) = (median(with_us), median(by_hand));
        // Of pairs: the machine is quicker at one time than at another.
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios[ratios.len() / 2];
        report.note(&format!("{suite}: initdb and start by hand"), by_hand.as_secs_f64(), "s");
        report.note(&format!("{suite}: docker run of the image"), with_us.as_secs_f64(), "s");
        let what = format!("{suite}: first connection, image / by hand, median of 9 pairs");
        report.judge(&what, ratio, "", Limit::AtMost(1.1));
    }
}

/// From `docker run` to a server that accepts connections over TCP.
fn first_connection(args: &[&str]) -> Duration {
    let began = Instant::now();
    let id = docker(&[&["run", "--detach"], args].concat());
    let address = docker(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", &id]);
    while !accepts(&address) {
        assert!(began.elapsed() < PATIENCE, "nobody answers at {address}");
    }
    let took = began.elapsed();
    docker(&["rm", "--force", "--volumes", &id]);
    took
}

fn accepts(address: &str) -> bool {
    let mut command = Command::new(files::postgres_program("pg_isready"));
    command.args(["--quiet", "--timeout=1", "--host", address]);
    command.stdin(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn size_mb(image: &str) -> f64 {
    let bytes = docker(&["image", "inspect", "--format", "{{.Size}}", image]);
    bytes.parse::<f64>().expect("a number of bytes") / 1e6
}

fn docker(args: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        Command::new("docker").args(args).stdin(Stdio::null()).output().expect("docker");
    assert!(status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).trim().to_owned()
}
