-- Jobs, what they said, and the answers kept for Idempotency-Key. Times are microseconds since 1970.
CREATE TABLE jobs (
    id              TEXT PRIMARY KEY,
    kind            TEXT NOT NULL,
    stanza          TEXT NOT NULL,
    state           TEXT NOT NULL,
    origin          TEXT NOT NULL,
    by_whom         TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    started_at      INTEGER,
    finished_at     INTEGER,
    spec            TEXT NOT NULL,
    progress        TEXT NOT NULL,
    restore_phase   TEXT,
    result          TEXT,
    error           TEXT,
    process         TEXT,
    idempotency_key TEXT
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state);
CREATE INDEX jobs_by_kind ON jobs (kind, id);

-- The id is what clients resume by, so it must never be used twice: AUTOINCREMENT.
CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id  TEXT NOT NULL REFERENCES jobs (id),
    at      INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    level   TEXT,
    process INTEGER,
    text    TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events (job_id, id);

CREATE TABLE idempotency (
    key         TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    -- Absent while the first request is still being answered.
    status      INTEGER,
    location    TEXT,
    body        TEXT
) STRICT;
