//! `headrest healthcheck`: one request to `/readyz` of the Headrest of this machine.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long connecting, and the answer, may take. An orchestrator's own limit is seconds.
const PATIENCE: Duration = Duration::from_secs(4);
/// More than the answer can be.
const LONGEST_ANSWER: u64 = 16 << 10;

/// Asks. Answers the probe's word when all is well, and else a sentence.
pub(super) fn ask(listen: SocketAddr) -> Result<String, String> {
    let address = SocketAddr::new(reachable(listen.ip()), listen.port());
    let failed = |error: std::io::Error| format!("no answer from {address}: {error}");
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.take(LONGEST_ANSWER).read_to_string(&mut answer).map_err(failed)?;
    parse(&answer).unwrap_or_else(|| Err(format!("{address} did not answer in HTTP")))
}

/// Where somebody who listens there is reached from this machine.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

fn parse(answer: &str) -> Option<Result<String, String>> {
    let (head, word) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    let word = word.trim().to_owned();
    Some(if status == "200" { Ok(word) } else { Err(format!("not ready: {word}")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let head = "content-type: text/plain\r\ncontent-length: 5\r\n\r\n";
        let ready = format!("HTTP/1.1 200 OK\r\n{head}ready");
        assert_eq!(parse(&ready), Some(Ok("ready".to_owned())));
        let down = format!("HTTP/1.1 503 Service Unavailable\r\n{head}restoring");
        assert_eq!(parse(&down), Some(Err("not ready: restoring".to_owned())));
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
        assert!(ask(port).unwrap_err().contains("no answer"));
    }
}
