//! One request to the Headrest of this machine, for commands that must answer whatever happens.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long connecting, and the answer, may take. An orchestrator's own limit is seconds.
const PATIENCE: Duration = Duration::from_secs(4);
/// More than the answer can be.
const LONGEST_ANSWER: u64 = 1 << 20;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Asks for a path; with a token where one is needed.
pub(super) fn get(listen: SocketAddr, path: &str, token: Option<&str>) -> Result<Answer, String> {
    let address = SocketAddr::new(reachable(listen.ip()), listen.port());
    let failed = |error: std::io::Error| format!("no answer from {address}: {error}");
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let authorization =
        token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    // HTTP/1.0: the answer comes in one piece and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.take(LONGEST_ANSWER).read_to_string(&mut answer).map_err(failed)?;
    parse(&answer).ok_or_else(|| format!("{address} did not answer in HTTP"))
}

/// Where somebody who listens there is reached from this machine.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let head = "content-type: text/plain\r\ncontent-length: 5\r\n\r\n";
        for (status, body) in [(200, "ready"), (503, "restoring")] {
            let text = format!("HTTP/1.0 {status} Words\r\n{head}{body}");
            assert_eq!(parse(&text), Some(Answer { status, body: body.to_owned() }));
        }
        for text in ["", "SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 é\r\n\r\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn everywhere_is_reached_at_home() {
        for (listen, expect) in [
            ("0.0.0.0", "127.0.0.1"),
            ("::", "::1"),
            ("192.0.2.1", "192.0.2.1"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), expect);
        }
    }

    #[test]
    fn nobody_there() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(get(port, "/readyz", None).unwrap_err().contains("no answer"));
    }
}
