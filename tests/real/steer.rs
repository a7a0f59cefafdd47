//! Pause at the target, look, go on, promote, abandon.
