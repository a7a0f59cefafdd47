-- Schedules, where each stands, and what became of its moments. Times are microseconds since 1970.

-- Those that were made through the API; those of the configuration file are not here.
CREATE TABLE schedules (
    name       TEXT PRIMARY KEY,
    spec       TEXT NOT NULL,
    -- Grows with every change: what If-Match is about.
    version    INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE schedule_states (
    name   TEXT PRIMARY KEY,
    -- The expression and zone that the state is about.
    timing TEXT NOT NULL,
    state  TEXT NOT NULL
) STRICT;

CREATE TABLE schedule_verdicts (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL,
    verdict TEXT NOT NULL,
    first   INTEGER NOT NULL,
    last    INTEGER NOT NULL,
    count   INTEGER NOT NULL,
    reason  TEXT NOT NULL,
    at      INTEGER NOT NULL
) STRICT;
CREATE INDEX schedule_verdicts_by_name ON schedule_verdicts (name, id);

CREATE INDEX jobs_by_origin ON jobs (origin, id);
CREATE INDEX jobs_by_key ON jobs (idempotency_key) WHERE idempotency_key IS NOT NULL;
