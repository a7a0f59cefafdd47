//! Running a program to its end and keeping what it wrote.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::end::End;
use super::spawn::{Program, SpawnError};
use super::stop;

/// The most that is kept of a program's standard output.
const OUTPUT_LIMIT: usize = 64 << 20;
/// The most that is kept of its standard error.
const ERROR_LIMIT: usize = 64 << 10;

/// The captured output of a finished program.
#[derive(Debug)]
pub struct Captured {
    /// How it ended.
    pub end: End,
    /// Its standard output, whole.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error, made readable.
    pub stderr: String,
}

/// Why a program could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It took too long and was ended.
    #[error("{program} did not end within {} s", patience.as_secs())]
    TimedOut {
        /// The executable.
        program: String,
        /// How long it was given.
        patience: Duration,
    },
    /// It wrote more than anybody can want.
    #[error("{program} wrote more than {limit} bytes")]
    TooMuch {
        /// The executable.
        program: String,
        /// The limit.
        limit: usize,
    },
}

/// Runs a program to its end. Nobody of its process group is left afterwards.
pub async fn capture(program: Program, patience: Duration) -> Result<Captured, CaptureError> {
    let name = program.path.display().to_string();
    let mut child = program.spawn()?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        let end = child.wait().await;
        return Ok(Captured { end, stdout: Vec::new(), stderr: String::new() });
    };
    let work = async {
        tokio::join!(read_at_most(out, OUTPUT_LIMIT), read_at_most(err, ERROR_LIMIT), child.wait())
    };
    let Ok((stdout, stderr, end)) = timeout(patience, work).await else {
        stop::stop(&mut child, Duration::from_secs(1), &CancellationToken::new()).await;
        return Err(CaptureError::TimedOut { program: name, patience });
    };
    stop::stop_group(child.pid, Duration::from_secs(2)).await;
    let stderr = match stderr {
        Kept::All(bytes) | Kept::Cut(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
    };
    match stdout {
        Kept::All(stdout) => Ok(Captured { end, stdout, stderr }),
        Kept::Cut(_) => Err(CaptureError::TooMuch { program: name, limit: OUTPUT_LIMIT }),
    }
}

enum Kept {
    All(Vec<u8>),
    Cut(Vec<u8>),
}

/// Reads to the end and keeps at most `limit`; the rest is read and dropped, so that the writer
/// is not ended by a closed pipe.
async fn read_at_most(mut from: impl AsyncRead + Unpin, limit: usize) -> Kept {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut cut = false;
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return if cut { Kept::Cut(kept) } else { Kept::All(kept) },
            Ok(n) => {
                let room = limit.saturating_sub(kept.len()).min(n);
                kept.extend_from_slice(&buffer[..room]);
                cut |= room < n;
            }
        }
    }
}
