-- Notifications that wait to be delivered, and what was told last. Times are microseconds since 1970.

-- In the order of their ids, for each target. What was delivered is gone from here.
CREATE TABLE outbox (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The same over retries, for receivers to drop doubles.
    delivery   TEXT NOT NULL UNIQUE,
    target     TEXT NOT NULL,
    kind       TEXT NOT NULL,
    severity   TEXT NOT NULL,
    stanza     TEXT,
    subject    TEXT NOT NULL,
    event      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- How often the same happened again while this one waited.
    repeats    INTEGER NOT NULL DEFAULT 0,
    attempts   INTEGER NOT NULL DEFAULT 0,
    -- How often the receiver said that it will not have it.
    refusals   INTEGER NOT NULL DEFAULT 0,
    due_at     INTEGER NOT NULL,
    -- 1: nobody tries any more; error says why.
    given_up   INTEGER NOT NULL DEFAULT 0,
    error      TEXT
) STRICT;
CREATE INDEX outbox_by_target ON outbox (target, given_up, id);
CREATE INDEX outbox_by_subject ON outbox (target, given_up, subject, id);

-- Up to which event of jobs notifications were made. One row at most.
CREATE TABLE outbox_cursor (
    only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
    event_id INTEGER NOT NULL
) STRICT;

-- How each target did last.
CREATE TABLE outbox_targets (
    target        TEXT PRIMARY KEY,
    delivered_at  INTEGER,
    failed_at     INTEGER,
    error         TEXT
) STRICT;
