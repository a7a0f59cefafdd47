-- What is known of tries and of misses.

-- 1: if the job fails, its schedule tries it again.
ALTER TABLE jobs ADD COLUMN tried_again INTEGER NOT NULL DEFAULT 0;
