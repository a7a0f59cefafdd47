//! Changing the annotations of a backup.

use tokio_util::sync::CancellationToken;

use super::catalog::Freshness;
use super::context::Context;
use super::recorder::Recorder;
use super::worker::{Ended, command, judge, problem};
use crate::domain::job::{AnnotateSpec, Outcome};
use crate::pgbackrest::command::Annotate;
use crate::pgbackrest::exit::Context as ExitContext;

pub(super) async fn run(
    context: &Context,
    spec: &AnnotateSpec,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Ended {
    let invocation = Annotate {
        stanza: &spec.stanza,
        repo: None,
        set: &spec.set,
        annotations: &spec.annotations,
        remove: &spec.remove,
    }
    .invocation();
    let ended = command(context, &spec.stanza, &invocation, recorder, cancel, None).await;
    let seen = context.catalog.observe(&spec.stanza, Freshness::New).await;
    if let Err(ended) = judge(context, ExitContext::Other, ended, recorder, cancel) {
        return ended;
    }
    let seen = match seen {
        Ok(seen) => seen,
        Err(error) => {
            let message = format!("annotate ended well, but then: {error}");
            return Ended::failed(problem("repository-unavailable", message, &[]));
        }
    };
    let is_as_asked = seen.stanza.backups.iter().filter(|b| b.label == spec.set).any(|backup| {
        let has = |(key, value): (&str, &str)| {
            backup.annotations.get(key).map(String::as_str) == Some(value)
        };
        spec.annotations.iter().all(has)
            && !spec.remove.iter().any(|key| backup.annotations.contains_key(key))
    });
    if is_as_asked {
        return Ended::with(Outcome::Succeeded);
    }
    Ended::failed(problem(
        "annotate-incomplete",
        format!("annotate ended well, but info does not show it for backup {}", spec.set),
        &["Look at the job's log."],
    ))
}
