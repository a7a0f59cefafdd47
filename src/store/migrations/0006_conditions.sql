-- What health was last said to be, so that each change is told once, over restarts too.
CREATE TABLE conditions (
    stanza TEXT NOT NULL,
    name   TEXT NOT NULL,
    level  TEXT NOT NULL,
    since  INTEGER NOT NULL,
    PRIMARY KEY (stanza, name)
) STRICT;
