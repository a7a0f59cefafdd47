-- What the recovery window and restores are decided from. Times are microseconds since 1970,
-- positions in the WAL are bytes.

-- Commits of which time and place are known: what time can be restored to.
CREATE TABLE commits (
    stanza   TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    lsn      INTEGER NOT NULL,
    xid      INTEGER NOT NULL
) STRICT;
CREATE INDEX commits_by_time ON commits (stanza, at);

CREATE TABLE restore_points (
    stanza   TEXT NOT NULL,
    name     TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    lsn      INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (stanza, name)
) STRICT;

-- Which timelines this server has been on, and since when.
CREATE TABLE timelines (
    stanza   TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    born_at  INTEGER NOT NULL,
    PRIMARY KEY (stanza, timeline)
) STRICT;

-- A copy of every restore's journal: for the undo of one, and for when the journal's file is gone.
CREATE TABLE restores (
    id      TEXT PRIMARY KEY,
    stanza  TEXT NOT NULL,
    journal TEXT NOT NULL
) STRICT;
CREATE INDEX restores_by_stanza ON restores (stanza, id);

CREATE TABLE audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    by_whom TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL
) STRICT;
