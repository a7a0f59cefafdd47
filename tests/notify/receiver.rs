//! An HTTP server that keeps what it gets and answers as it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long anything of a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a receiver does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Answers with this status, these header lines and this body.
    Status(u16, &'static str, &'static str),
    /// This status for requests whose body has this text, 200 for others.
    StatusFor(&'static str, u16),
    /// 404, and what was asked for, as many servers do.
    Echo,
    /// Never answers.
    Hang,
    /// Closes the connection.
    Close,
    /// Leads to another URL.
    Redirect(String),
    /// Begins to answer and never ends.
    Stall,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// The server; it ends with this handle.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    pub(crate) answer: watch::Sender<Answer>,
    got: watch::Receiver<Vec<Request>>,
    task: JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (answer, answers) = watch::channel(answer);
        let (keep, got) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answers.clone(), keep.clone()));
            }
        });
        Self { address, answer, got, task }
    }

    pub(crate) async fn good() -> Self {
        Self::start(Answer::Status(200, "", "ok")).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What it got so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.got.borrow().clone()
    }

    /// The severity and the summary of a message.
    pub(crate) fn gist(request: &Request) -> (String, String) {
        let body = request.json();
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        (text("severity"), text("summary"))
    }

    /// Waits until it has got so many requests.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Request> {
        let mut got = self.got.clone();
        let enough = timeout(PATIENCE, got.wait_for(|got| got.len() >= count)).await;
        assert!(enough.is_ok(), "only {} requests of {count}", self.got.borrow().len());
        self.requests()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    stream: TcpStream,
    answers: watch::Receiver<Answer>,
    keep: watch::Sender<Vec<Request>>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let answer = answers.borrow().clone();
        let echo = format!("no {} here", request.line.trim_end_matches(" HTTP/1.1"));
        let answer = match answer {
            Answer::StatusFor(part, code) if request.body.contains(part) => {
                Answer::Status(code, "", "")
            }
            Answer::StatusFor(..) => Answer::Status(200, "", ""),
            other => other,
        };
        keep.send_modify(|got| got.push(request));
        let text = match answer {
            Answer::Status(code, headers, body) => format!(
                "HTTP/1.1 {code} X\r\ncontent-length: {}\r\n{headers}\r\n{body}",
                body.len()
            ),
            Answer::Echo => {
                format!("HTTP/1.1 404 X\r\ncontent-length: {}\r\n\r\n{echo}", echo.len())
            }
            Answer::Redirect(url) => {
                format!("HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: {url}\r\n\r\n")
            }
            Answer::Stall => {
                let _ = stream.write_all(b"HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\nx").await;
                return std::future::pending().await;
            }
            Answer::Hang | Answer::StatusFor(..) => return std::future::pending().await,
            Answer::Close => return,
        };
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|bytes| *bytes > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        // As bytes: a header may hold UTF-8.
        let mut header = Vec::new();
        stream.read_until(b'\n', &mut header).await.ok()?;
        let header = String::from_utf8(header).ok()?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let body = String::from_utf8(body).ok()?;
    Some(Request { line: line.trim().to_owned(), headers, body })
}
