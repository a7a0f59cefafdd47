-- Restores of which nothing is kept for an undo any more. Times are microseconds since 1970.
CREATE TABLE released_restores (
    id      TEXT PRIMARY KEY,
    stanza  TEXT NOT NULL,
    at      INTEGER NOT NULL,
    by_whom TEXT NOT NULL
) STRICT;
