//! What a run would meet if it started now.

use crate::domain::schedule::Schedule;
use crate::domain::schedule::run::World;
use crate::jobs::Context;
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::Archiving;

pub(super) fn look(context: &Context, schedule: &Schedule) -> World {
    let side = context.server.as_ref().filter(|side| side.stanza == schedule.stanza);
    // Beside a server, pgBackRest finds out.
    let Some(side) = side else { return World::Clear };
    match side.archiving {
        Archiving::Ours => {}
        Archiving::Off => {
            return World::Unfit("this server is a copy, which is not backed up".to_owned());
        }
        Archiving::NotOurs => return World::Unfit("backups are turned off".to_owned()),
    }
    if !schedule.kind.needs_server() {
        return World::Clear;
    }
    let status = context.postgres.status();
    if status.takes_writes() {
        return World::Clear;
    }
    if let Some(restore) = status.fenced_by {
        return World::Blocked(format!("restore {restore} is under way"));
    }
    let standby = side.data_dir.join("standby.signal").exists();
    if standby && status.state == ServerState::Recovering {
        return World::Unfit("this server is a standby: its primary is to be backed up".to_owned());
    }
    World::Blocked(format!("PostgreSQL is {}", status.state))
}
