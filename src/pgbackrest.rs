//! Driving pgBackRest: its command lines as values, its answers as types.
//!
//! Everything but [`runner`], [`archive_get`] and [`attempts`] is pure. The contract with pgBackRest is `info`'s JSON and the exit
//! code; log lines are for people and for progress and never decide success. Nothing of the
//! repository is read or written other than through pgBackRest itself.

pub mod archive_get;
pub mod attempts;
pub mod command;
pub mod conf;
pub mod exit;
pub mod info;
pub mod listing;
pub mod log;
pub mod runner;
pub mod verify;
pub mod version;
