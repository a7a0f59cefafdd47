//! Every row back after a restore, and after the undo of it.
