//! Everything that can be killed in a restore to a moment is killed: never a row past the target.
