-- The newest reading of each backup's manifest. Times are microseconds since 1970.
CREATE TABLE read_backs (
    stanza  TEXT NOT NULL,
    repo    INTEGER NOT NULL,
    label   TEXT NOT NULL,
    at      INTEGER NOT NULL,
    problem TEXT,
    PRIMARY KEY (stanza, repo, label)
) STRICT;
