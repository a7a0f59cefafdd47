//! Everything long: admission, one lane per stanza, carrying jobs out, and what they say.
//!
//! [`queue`] is the one task that changes a job's state; `worker` and `restore` carry jobs out;
//! [`recorder`] stores what they say before anybody is told. Knows nothing of HTTP.

mod annotate;
pub mod archive;
pub mod boot;
pub mod bootstrap;
pub mod catalog;
pub mod context;
mod expire;
pub mod first_start;
pub mod heartbeat;
pub mod journal;
pub mod plans;
pub mod queue;
pub mod recorder;
mod restore;
pub mod retention;
pub mod sets;
pub mod submission;
pub mod tally;
mod verify;
pub mod wal;
mod worker;

pub use catalog::Catalog;
pub use context::Context;
pub use plans::Planner;
pub use queue::{JobsHandle, LaneView};
pub use retention::Keeper;
pub use submission::{Denied, Submission};
pub use wal::Wal;
