//! What happens around every handler.

pub(super) mod etag;
pub(super) mod guard;
pub(super) mod idempotency;
pub(super) mod measure;
pub(super) mod outermost;
