//! Server-sent events, read as they come.

use std::io::{BufRead as _, BufReader};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::blocking::Response;
use serde_json::Value;

/// One event.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) data: String,
}

impl Event {
    /// The data as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// A stream that is being read. It ends when the server ends it, or with this.
#[derive(Debug)]
pub(crate) struct Events(Receiver<Event>);

impl Events {
    /// Reads on in the background.
    pub(crate) fn of(response: Response) -> Self {
        assert_eq!(response.status().as_u16(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let mut event = Event::default();
            for line in BufReader::new(response).lines().map_while(Result::ok) {
                if line.is_empty() {
                    let whole = std::mem::take(&mut event);
                    let is_comment = whole == Event::default();
                    if !is_comment && tell.send(whole).is_err() {
                        return;
                    }
                } else if let Some((field, value)) = line.split_once(':') {
                    let value = value.strip_prefix(' ').unwrap_or(value);
                    match field {
                        "id" => value.clone_into(&mut event.id),
                        "event" => value.clone_into(&mut event.name),
                        "data" if event.data.is_empty() => value.clone_into(&mut event.data),
                        "data" => event.data = format!("{}\n{value}", event.data),
                        _ => {}
                    }
                }
            }
        });
        Self(told)
    }

    /// The next event; `None` when the stream ended.
    #[track_caller]
    pub(crate) fn next(&self, patience: Duration) -> Option<Event> {
        match self.0.recv_timeout(patience) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no event within {patience:?}"),
        }
    }

    /// All events until one satisfies `last`, that one included, or the stream ends.
    #[track_caller]
    pub(crate) fn take_until(
        &self,
        patience: Duration,
        mut last: impl FnMut(&Event) -> bool,
    ) -> Vec<Event> {
        let deadline = Instant::now() + patience;
        let mut found = Vec::new();
        while let Some(event) = self.next(deadline.saturating_duration_since(Instant::now())) {
            let done = last(&event);
            found.push(event);
            if done {
                break;
            }
        }
        found
    }
}
