-- What is known of tries, of misses, and of how bad things were. Times are microseconds since 1970.

-- 1: if the job fails, its schedule tries it again.
ALTER TABLE jobs ADD COLUMN tried_again INTEGER NOT NULL DEFAULT 0;

-- 1: it does not arrive while others do, which do not wait for it.
ALTER TABLE outbox ADD COLUMN aside INTEGER NOT NULL DEFAULT 0;
-- Since when the receiver refuses it, every time.
ALTER TABLE outbox ADD COLUMN refused_since INTEGER;
ALTER TABLE outbox ADD COLUMN given_up_at INTEGER;

-- Moments of the schedule that were missed, ever, and when that was last decided.
ALTER TABLE schedule_states ADD COLUMN missed_total INTEGER NOT NULL DEFAULT 0;
ALTER TABLE schedule_states ADD COLUMN last_missed_at INTEGER;
UPDATE schedule_states SET
    missed_total = (SELECT coalesce(sum(v.count), 0) FROM schedule_verdicts AS v
        WHERE v.name = schedule_states.name AND v.verdict = 'missed'),
    last_missed_at = (SELECT max(v.at) FROM schedule_verdicts AS v
        WHERE v.name = schedule_states.name AND v.verdict = 'missed');

-- The worst level since the condition was last well.
ALTER TABLE conditions ADD COLUMN worst TEXT NOT NULL DEFAULT 'pass';
UPDATE conditions SET worst = level;
