//! What the API answers in how much time. The repository has 100 backups; `info` of a real run is
//! printed by a script, because that many backups take long to make and pgBackRest's own time is
//! not what is measured: answers come from memory.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::report::{Limit, Report, median};
use crate::support::fake::Fake;
use crate::support::instance::{Instance, TOKEN};

const CONNECTIONS: usize = 8;
const SECONDS: u64 = 10;
const INFO: &str = include_str!("../fixtures/pgbackrest/2.45/info-100.json");

/// Requests per second of a stanza, and the latency of a probe.
pub(crate) fn measure(report: &mut Report) {
    let mut instance = Instance::new();
    let fake = Fake::installed_in(&mut instance);
    fake.answer_info(INFO);
    instance.set("HEADREST_POSTGRES__SUPERVISE", "false");
    instance.start();
    let port = instance.http_port();

    let answer = instance.http.get("/api/v1/stanzas/main").expect(200).json();
    assert_eq!(answer["backups"]["count"], 100, "{answer}");
    let begin = Instant::now();
    let deadline = begin + Duration::from_secs(SECONDS);
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|_| thread::spawn(move || ask_until(deadline, port, "/api/v1/stanzas/main")))
        .collect();
    let mut latencies: Vec<Duration> =
        threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect();
    let per_second = latencies.len() as f64 / begin.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let p99 = latencies[latencies.len() * 99 / 100];
    let what = "GET /api/v1/stanzas/main, 100 backups, 8 connections";
    report.judge(what, per_second, "/s", Limit::AtLeast(3000.0));
    report.judge("  its 99th percentile", milliseconds(p99), "ms", Limit::AtMost(10.0));

    let mut connection = Connection::open(port);
    let probes = (0..1001).map(|_| connection.ask("/livez")).collect();
    report.judge("GET /livez, median", milliseconds(median(probes)), "ms", Limit::AtMost(1.0));
}

fn ask_until(deadline: Instant, port: u16, path: &str) -> Vec<Duration> {
    let mut connection = Connection::open(port);
    let mut latencies = Vec::new();
    while Instant::now() < deadline {
        latencies.push(connection.ask(path));
    }
    latencies
}

/// A client that does no more than it must: it shares the processors with what it measures.
struct Connection {
    stream: BufReader<TcpStream>,
    line: String,
    body: Vec<u8>,
}

impl Connection {
    fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
        Self { stream: BufReader::new(stream), line: String::new(), body: Vec::new() }
    }

    /// Asks and reads the whole answer, which must be a 200.
    fn ask(&mut self, path: &str) -> Duration {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        );
        let begin = Instant::now();
        self.stream.get_mut().write_all(request.as_bytes()).expect("write");
        assert!(self.header().starts_with("HTTP/1.1 200 "), "{}", self.line);
        let mut length = 0;
        while !self.header().trim_end().is_empty() {
            let (name, value) = self.line.split_once(':').expect("a header");
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().expect("a length");
            }
        }
        self.body.resize(length, 0);
        self.stream.read_exact(&mut self.body).expect("read");
        begin.elapsed()
    }

    fn header(&mut self) -> &str {
        self.line.clear();
        self.stream.read_line(&mut self.line).expect("read");
        &self.line
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
