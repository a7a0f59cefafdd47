-- What is known of backups that pgBackRest does not know. Times are microseconds since 1970.

-- Pins, and pins that were taken back: a row counts more than the annotation in the repository,
-- which is there for when this file is lost.
CREATE TABLE pins (
    stanza  TEXT NOT NULL,
    label   TEXT NOT NULL,
    pinned  INTEGER NOT NULL,
    by_whom TEXT NOT NULL,
    at      INTEGER NOT NULL,
    PRIMARY KEY (stanza, label)
) STRICT;

-- The newest verification of each backup.
CREATE TABLE verified (
    stanza TEXT NOT NULL,
    repo   INTEGER NOT NULL,
    label  TEXT NOT NULL,
    at     INTEGER NOT NULL,
    good   INTEGER NOT NULL,
    PRIMARY KEY (stanza, repo, label)
) STRICT;
