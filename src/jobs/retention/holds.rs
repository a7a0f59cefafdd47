//! What the restores of the last days keep from retention, and its release.

use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use super::super::context::Context;
use super::{GATE_PATIENCE, Keeper, RetentionError};
use crate::clock;
use crate::domain::restore::Journal;
use crate::domain::retention::Hold;
use crate::domain::{JobId, StanzaName};

/// For how long a restore may wait for its lane.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Everything that is held at present.
pub(super) async fn holds(
    context: &Context,
    stanza: &StanzaName,
) -> Result<Vec<Hold>, RetentionError> {
    let after = context.retention.config.after_restore;
    let released = context.store.released_restores(stanza.clone()).await?;
    let now = clock::now();
    let span = after.saturating_add(LONGEST_WAIT);
    let since = now.saturating_sub(span).unwrap_or(Timestamp::MIN);
    let journals = context.store.journals_since(stanza.clone(), since).await?;
    let kept = journals.iter().filter(|journal| !released.contains(&journal.id));
    let mut found: Vec<Hold> = kept.filter_map(|journal| Hold::of(journal, after, now)).collect();
    let Some(newest) = context.journals.read(stanza)? else { return Ok(found) };
    if !newest.data_is_whole() {
        // Of one that was left half-done everything is needed to get out of it.
        found.push(Hold::of_unfinished(&newest));
    } else if !released.contains(&newest.id) && !found.iter().any(|hold| hold.restore == newest.id)
    {
        // Its copy may be lost with the history.
        found.extend(Hold::of(&newest, after, now));
    }
    Ok(found)
}

impl Keeper {
    /// What a restore keeps at present that can be released.
    pub async fn held_by(&self, journal: &Journal) -> Result<Option<Hold>, RetentionError> {
        let released = self.context.store.released_restores(journal.stanza.clone()).await?;
        let hold = Hold::of(journal, self.config().after_restore, clock::now());
        let hold = hold.filter(|_| !released.contains(&journal.id));
        Ok(if self.is_unfinished(&journal.stanza, journal.id)? { None } else { hold })
    }

    /// Whether PGDATA is no database because of this restore.
    fn is_unfinished(&self, stanza: &StanzaName, restore: JobId) -> Result<bool, RetentionError> {
        let newest = self.context.journals.read(stanza)?;
        Ok(newest.is_some_and(|newest| newest.id == restore && !newest.data_is_whole()))
    }

    /// Keeps nothing any more for the undo of a restore, from now on.
    pub async fn release(
        &self,
        stanza: &StanzaName,
        restore: JobId,
        by: &str,
    ) -> Result<(), RetentionError> {
        if self.is_unfinished(stanza, restore)? {
            return Err(RetentionError::Unfinished(restore));
        }
        let gate = timeout(GATE_PATIENCE, self.context.retention.gate(stanza)).await;
        let _gate = gate.map_err(|_| RetentionError::Removing(stanza.clone()))?;
        let now = clock::now();
        let store = &self.context.store;
        store.release_restore(stanza.clone(), restore, by.to_owned(), now).await?;
        let subject = format!("{stanza} {restore}");
        store.audit(now, by.to_owned(), "restore.release", subject, String::new()).await?;
        Ok(())
    }
}
