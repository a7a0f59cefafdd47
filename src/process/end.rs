//! How a process ended: the exit code and the signal are different things and stay so.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// The ending of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It called `exit` with this code.
    Exited(u8),
    /// A signal ended it.
    Signalled {
        /// The signal's number, e.g. 9 for SIGKILL.
        signal: i32,
        /// Whether the kernel says that it wrote a core file.
        core_dumped: bool,
    },
    /// It is gone, but it was not our child, so nobody told us how (an adopted postmaster).
    Unseen,
}

impl End {
    /// Translates what `wait(2)` said.
    pub fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => {
                // An exit code has eight bits (wait(2)); the cast cannot lose any.
                Self::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
            }
            (None, Some(signal)) => Self::Signalled { signal, core_dumped: status.core_dumped() },
            (None, None) => Self::Unseen,
        }
    }

    /// Whether the process exited with code 0.
    pub fn is_success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Signalled { signal, core_dumped } => {
                write!(f, "was ended by signal {signal}{}", signal_name(*signal))?;
                if *core_dumped { f.write_str(", core dumped") } else { Ok(()) }
            }
            Self::Unseen => f.write_str("is gone (its exit status went to another parent)"),
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_signals_are_apart() {
        let cases = [
            (0x0000, End::Exited(0), "exited with code 0"),
            (0x3200, End::Exited(50), "exited with code 50"),
            (
                0x0009,
                End::Signalled { signal: 9, core_dumped: false },
                "was ended by signal 9 (SIGKILL)",
            ),
            (
                0x008b,
                End::Signalled { signal: 11, core_dumped: true },
                "was ended by signal 11 (SIGSEGV), core dumped",
            ),
        ];
        for (raw, expect, text) in cases {
            let end = End::from_status(ExitStatus::from_raw(raw));
            assert_eq!(end, expect);
            assert_eq!(end.to_string(), text);
        }
    }
}
