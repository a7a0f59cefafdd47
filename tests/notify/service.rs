//! The whole service with targets: over TLS, with a proxy in its environment that it must not use,
//! and to its end.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, mpsc};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::receiver::{PATIENCE, Receiver};

/// Makes an authority, and a certificate of it for `localhost`.
async fn certificates(directory: &Path) {
    let script = "printf '[req]\\ndistinguished_name=dn\\n[dn]\\n' >req.cnf
        new() { openssl req -config req.cnf -x509 -days 2 -nodes -newkey ec \
            -pkeyopt ec_paramgen_curve:prime256v1 -keyout \"$1.key\" -out \"$1.pem\" \"${@:2}\"; }
        new ca -subj /CN=authority -addext basicConstraints=critical,CA:TRUE
        new leaf -subj /CN=localhost -CA ca.pem -CAkey ca.key \
            -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost
        chmod a+r ca.pem";
    let mut made = Command::new("bash");
    made.args(["-euc", script]).current_dir(directory).stdin(Stdio::null());
    let made = timeout(PATIENCE, made.output()).await.unwrap().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A server that speaks TLS, answers well, and tells the first line of what it gets.
fn tls_server(directory: &Path) -> (SocketAddr, mpsc::Receiver<String>) {
    let certificate = CertificateDer::from_pem_file(directory.join("leaf.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("leaf.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    // It ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream.unwrap());
            let mut buffer = [0; 16 << 10];
            let Ok(read) = stream.read(&mut buffer) else { continue };
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            let answer = "HTTP/1.1 204 X\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
            let _ = tell.send(text.lines().next().unwrap_or_default().to_owned());
        }
    });
    (address, told)
}

/// A Headrest beside a server that is not there, with a pgBackRest that is content.
struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    async fn start(directory: &Path, more: &[(&str, String)]) -> Self {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        let tool: PathBuf = directory.join("pgbackrest");
        std::fs::write(&tool, "#!/bin/sh\necho 'pgBackRest 2.45'\n").unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_headrest"))
            .arg("serve")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HEADREST_LISTEN", "127.0.0.1:0")
            .env("HEADREST_AUTH", "off")
            .env("HEADREST_STATE_DIR", directory.join("state"))
            .env("HEADREST_POSTGRES__SUPERVISE", "false")
            // As root it becomes somebody who is on every machine.
            .env("HEADREST_POSTGRES__OS_USER", "nobody")
            .env("HEADREST_PGBACKREST__BIN", &tool)
            .envs(more.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, rest)) = line.split_once("answer at http://") {
                    return rest.trim_end_matches('/').parse().unwrap();
                }
            }
            panic!("it ended without listening");
        };
        let address = timeout(PATIENCE, address).await.unwrap();
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, address }
    }

    /// Posts without a body, and answers the JSON.
    async fn post(&self, path: &str) -> serde_json::Value {
        let body = self.exchange("POST", path).await;
        serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"))
    }

    /// Asks until the answer has this in it.
    async fn get_until(&self, path: &str, part: &str) {
        let found = async { while !self.exchange("GET", path).await.contains(part) {} };
        assert!(timeout(PATIENCE, found).await.is_ok(), "{path} never has {part}");
    }

    /// The body of an answer.
    async fn exchange(&self, method: &str, path: &str) -> String {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nprefer: wait=20\r\n\
             connection: close\r\n\r\n"
        );
        let mut answer = String::new();
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.read_to_string(&mut answer).await.unwrap();
        };
        timeout(PATIENCE, exchange).await.unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

#[tokio::test]
async fn the_service_tells_over_tls_past_proxies_and_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path()).await;
    let (secure, told) = tls_server(directory.path());
    let (plain, proxy) = (Receiver::good().await, Receiver::good().await);
    let mut variables = vec![
        ("SSL_CERT_FILE", directory.path().join("ca.pem").display().to_string()),
        ("HEADREST_NOTIFY__0__NAME", "secure".to_owned()),
        ("HEADREST_NOTIFY__0__TYPE", "slack".to_owned()),
        ("HEADREST_NOTIFY__0__URL", format!("https://localhost:{}/s3cret", secure.port())),
        // The certificate is of another name.
        ("HEADREST_NOTIFY__1__NAME", "other-name".to_owned()),
        ("HEADREST_NOTIFY__1__TYPE", "slack".to_owned()),
        ("HEADREST_NOTIFY__1__URL", format!("https://127.0.0.1:{}/s3cret", secure.port())),
        ("HEADREST_NOTIFY__2__NAME", "plain".to_owned()),
        ("HEADREST_NOTIFY__2__TYPE", "webhook".to_owned()),
        ("HEADREST_NOTIFY__2__URL", plain.url("/hook")),
        ("HEADREST_NOTIFY__2__EVENTS", "check.*".to_owned()),
    ];
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        variables.push((name, proxy.url("")));
    }
    let mut service = Service::start(directory.path(), &variables).await;

    let sent = service.post("/api/v1/notifications/secure/test").await;
    assert_eq!(sent, serde_json::json!({ "delivered": true, "status": 204, "error": null }));
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "POST /s3cret HTTP/1.1");
    let refused = service.post("/api/v1/notifications/other-name/test").await;
    let error = refused["error"].as_str().unwrap();
    assert!(error.contains("certificate") && !error.contains("s3cret"), "{error}");

    // Whether they arrive is measured and judged.
    service.get_until("/metrics", "headrest_notify_waiting{target=\"plain\"} 0.0").await;
    service.get_until("/api/v1/health", "\"name\":\"notifications\"").await;

    // Told at the latest while it ends.
    let job = service.post("/api/v1/stanzas/main/check").await;
    assert_eq!(job["state"], "succeeded", "{job}");
    let pid = service.child.id().and_then(|id| Pid::from_raw(id.try_into().unwrap())).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let ended = timeout(PATIENCE, service.child.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
    let got = plain.requests();
    let events: Vec<_> = got.iter().map(|got| got.header("headrest-event")).collect();
    assert_eq!(events, ["check.started", "check.succeeded"]);
    assert_eq!(got[0].json()["job"], job["id"]);
    assert_eq!(proxy.requests().len(), 0, "the environment's proxy was used");
}
