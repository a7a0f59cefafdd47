//! Restores to a moment: time, LSN, transaction, name, the end of a backup.
