//! WAL that is missing or damaged: waited at, named, never silently left out.
