//! The probes are answered from memory: whatever hangs, and however busy the machine is.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::{PATIENCE, until};

/// Half of the answers must not take longer.
const MEDIAN: Duration = Duration::from_millis(1);

/// A load on every core until it is dropped.
struct Load(Arc<AtomicBool>);

impl Load {
    fn on_two_cores() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..2 {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut number = 1u64;
                while !stop.load(Ordering::Relaxed) {
                    number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005));
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks so often over one connection, and answers how long half of the answers took at most.
fn median(instance: &Instance, path: &str, times: usize) -> Duration {
    let stream = TcpStream::connect(("127.0.0.1", instance.http_port())).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    let mut took: Vec<Duration> = (0..times)
        .map(|_| {
            let begun = Instant::now();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let (mut line, mut length) = (String::new(), 0);
            answers.read_line(&mut line).unwrap();
            assert!(line.starts_with("HTTP/1.1 200"), "{path}: {line}");
            while line.trim() != "" {
                line.clear();
                answers.read_line(&mut line).unwrap();
                if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            answers.read_exact(&mut body).unwrap();
            begun.elapsed()
        })
        .collect();
    took.sort();
    took[took.len() / 2]
}

#[test]
fn probes_are_quick_while_the_repository_hangs_and_the_machine_is_busy() {
    let mut instance = Instance::new();
    instance.set("HEADREST_HEALTH__INTERVAL", "1s");
    let fake = Fake::installed_in(&mut instance);
    instance.start();
    instance.wait_ready();
    let mark = instance.root.join("spool/hangs");
    fake.on("info", &format!("touch '{}'; sleep 600", mark.display()));
    until("the monitor hangs in info", PATIENCE, || mark.exists().then_some(()));
    let _load = Load::on_two_cores();
    for path in ["/livez", "/readyz"] {
        let median = median(&instance, path, 500);
        assert!(median < MEDIAN, "half of {path} takes longer than {median:?}");
    }
}
