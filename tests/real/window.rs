//! The recovery window, the WAL, restore points.
