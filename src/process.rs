//! Starting, following and ending operating-system processes.
//!
//! Knows neither PostgreSQL nor pgBackRest. Every child has its own process group, a cleared
//! environment plus what the caller lists, and no standard input; nothing else in the crate
//! spawns a process. Must not decide what an ending means: that is the caller's.

pub mod capture;
pub mod end;
pub mod inspect;
pub mod lines;
pub mod signals;
pub mod spawn;
pub mod stop;

pub use capture::{CaptureError, Captured, capture};
pub use end::End;
pub use spawn::{Child, Output, Program, SpawnError, Watched, become_program, run_here};
