//! The pure core: what the words mean and what is decided. No IO, no clock, no tasks.
//!
//! Values here are parsed once, at the edge, and stay what they are. `now` is always an argument.

pub mod annotation;
pub mod archive;
pub mod backup;
pub mod database;
pub mod delivery;
pub mod drops;
pub mod event;
pub mod health;
pub mod job;
pub mod plan;
pub mod recovery;
pub mod repo;
pub mod restart;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod sets;
pub mod standstill;
pub mod stanza;
pub mod timeline;
pub mod wal;
pub mod window;
pub mod words;

pub use annotation::Annotations;
pub use backup::{BackupLabel, BackupType};
pub use database::DatabaseName;
pub use job::{Job, JobId, JobKind, JobSpec, JobState};
pub use repo::RepoKey;
pub use stanza::StanzaName;
pub use wal::{Lsn, SegmentSize, Timeline, WalSegment};
