-- What is known of tries and of misses.

-- 1: if the job fails, its schedule tries it again.
ALTER TABLE jobs ADD COLUMN tried_again INTEGER NOT NULL DEFAULT 0;

-- 1: it does not arrive while others do, which do not wait for it.
ALTER TABLE outbox ADD COLUMN aside INTEGER NOT NULL DEFAULT 0;
-- Since when the receiver refuses it, every time.
ALTER TABLE outbox ADD COLUMN refused_since INTEGER;
ALTER TABLE outbox ADD COLUMN given_up_at INTEGER;
