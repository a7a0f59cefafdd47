//! HTTP, with the token where it is wanted.

use std::time::Duration;

use reqwest::Method;
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::HeaderMap;
use serde_json::Value;

/// Longer than any `Prefer: wait` of these tests.
const TIME_LIMIT: Duration = Duration::from_secs(240);

/// The address of an instance and the right to use it.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    base: String,
    token: Option<String>,
    client: Client,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Http {
    pub(crate) fn new(port: u16, token: Option<String>) -> Self {
        // The client brings no cryptography of its own. Whoever is second finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .no_proxy()
            .timeout(TIME_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("an HTTP client");
        Self { base: format!("http://127.0.0.1:{port}"), token, client }
    }

    /// A request to fill in and [`send`].
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Reply {
        send(self.request(Method::GET, path))
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        send(self.request(Method::POST, path).json(body))
    }

    /// POST, and wait for the job at most so many seconds.
    #[track_caller]
    pub(crate) fn post_and_wait(&self, path: &str, body: &Value, seconds: u32) -> Reply {
        let request = self.request(Method::POST, path).json(body);
        send(request.header("Prefer", format!("wait={seconds}")))
    }

    /// The status of a GET; `None` while nobody listens.
    pub(crate) fn probe(&self, path: &str) -> Option<u16> {
        let request = self.request(Method::GET, path).timeout(Duration::from_secs(5));
        Some(request.send().ok()?.status().as_u16())
    }

    /// An answer whose body is still to come.
    #[track_caller]
    pub(crate) fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.request(Method::GET, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }
}

/// Sends a request and reads the whole answer.
#[track_caller]
pub(crate) fn send(request: RequestBuilder) -> Reply {
    let response = request.send().unwrap_or_else(|error| panic!("no answer: {error:?}"));
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.bytes().unwrap_or_else(|error| panic!("no body: {error:?}"));
    Reply { status, headers, body: String::from_utf8_lossy(&body).into_owned() }
}

impl Reply {
    /// Has this status, else panics with the body.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {} {:?}", self.status, self.body))
    }

    /// A header, empty when it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The problem's code, of an answer that must be a problem with this status.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.body);
        let body = self.json();
        for field in ["type", "title", "detail", "request_id"] {
            assert!(body[field].is_string(), "{field} is missing in {body}");
        }
        assert_eq!(body["status"], status, "{body}");
        body["code"].as_str().expect("a problem has a code").to_owned()
    }
}
