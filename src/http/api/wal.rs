//! What can be restored to: the recovery window, the WAL archive, named points.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::processes::ArchiverView;
use crate::domain::archive::Gap;
use crate::domain::plan::RestorePoint;
use crate::domain::window::{Range, Window};
use crate::http::extract::{Json as Body, Stanza};
use crate::http::problem::{ErrorCode, Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::jobs::Denied;
use crate::jobs::plans::Ground;
use crate::jobs::wal::WalError;

/// What can be restored to.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RecoveryWindow {
    /// The stanza.
    #[schema(example = "main")]
    stanza: String,
    /// The first moment on the server's own timeline; null when nothing can be restored.
    #[schema(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// The last moment whose WAL is archived. Of a running server a restore reaches the present,
    /// because it saves the rest first.
    #[schema(value_type = Option<String>, format = DateTime)]
    to: Option<Timestamp>,
    /// Whether every moment between the two can be reached.
    continuous: bool,
    /// Per repository and timeline, the newest timeline first.
    windows: Vec<WindowView>,
    /// When the repository was looked at.
    #[schema(value_type = String, format = DateTime)]
    observed_at: Timestamp,
}

/// What one repository can bring back on one timeline.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Window)]
pub(in crate::http) struct WindowView {
    /// The repository.
    #[schema(example = 1)]
    repo: u16,
    /// The timeline.
    #[schema(example = 1)]
    timeline: u32,
    /// Whether the server is on it.
    current: bool,
    /// The first moment.
    #[schema(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// The last moment.
    #[schema(value_type = Option<String>, format = DateTime)]
    to: Option<Timestamp>,
    /// The moments without interruption.
    ranges: Vec<RangeView>,
    /// The WAL that is missing.
    gaps: Vec<GapView>,
    /// What the ends are known from: the end of a backup; the newest commit that Headrest knows
    /// and that is archived.
    basis: &'static str,
}

/// Moments without interruption.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MomentRange)]
pub(in crate::http) struct RangeView {
    /// The first.
    #[schema(value_type = String, format = DateTime)]
    from: Timestamp,
    /// The last.
    #[schema(value_type = String, format = DateTime)]
    to: Timestamp,
}

/// WAL that is missing.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WalGap)]
pub(in crate::http) struct GapView {
    /// The first segment that is missing.
    #[schema(example = "000000010000000000000009")]
    first: String,
    /// The last segment that is missing.
    last: String,
    /// How many.
    segments: u64,
}

impl From<&Range> for RangeView {
    fn from(range: &Range) -> Self {
        Self { from: range.from, to: range.to }
    }
}

impl From<&Gap> for GapView {
    fn from(gap: &Gap) -> Self {
        Self { first: gap.first.to_string(), last: gap.last.to_string(), segments: gap.segments() }
    }
}

impl From<&Window> for WindowView {
    fn from(window: &Window) -> Self {
        Self {
            repo: window.repo.get(),
            timeline: window.timeline.get(),
            current: window.is_current,
            from: window.from(),
            to: window.to(),
            ranges: window.ranges.iter().map(RangeView::from).collect(),
            gaps: window.gaps.iter().map(GapView::from).collect(),
            basis: "backup stop; newest archived commit",
        }
    }
}

/// What can be restored to, per repository and timeline.
#[utoipa::path(get, path = "/stanzas/{stanza}/recovery-window", tag = "restores", params(("stanza" = String, Path, example = "main")), responses(
    (status = 200, description = "the window", body = RecoveryWindow),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn window(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
) -> Outcome<Json<RecoveryWindow>> {
    let look = state.planner.windows(&stanza).await?;
    let (ground, windows) = (&look.ground, &look.windows);
    let own: Vec<&Window> = windows.iter().filter(|window| window.is_current).collect();
    Ok(Json(RecoveryWindow {
        stanza: stanza.to_string(),
        from: own.iter().filter_map(|window| window.from()).min(),
        to: own.iter().filter_map(|window| window.to()).max(),
        continuous: own.iter().any(|window| window.ranges.len() == 1 && window.gaps.is_empty()),
        windows: windows.iter().map(WindowView::from).collect(),
        observed_at: ground.observed_at(),
    }))
}

/// The WAL of a stanza's server and its archive.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct WalStateView {
    /// Where the server writes; null when it does not.
    position: Option<PositionView>,
    /// `pg_stat_archiver`; null when the server does not answer.
    archiver: Option<ArchiverView>,
    /// Files whose turn to be archived has come.
    backlog: Backlog,
    /// Bytes of a WAL segment.
    #[schema(example = 16_777_216)]
    segment_bytes: u64,
    /// What the archives have, newest timeline first.
    archives: Vec<ArchiveView>,
}

/// Where a server writes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WalPosition)]
pub(in crate::http) struct PositionView {
    /// Its timeline.
    timeline: u32,
    /// The position.
    #[schema(example = "0/16B6C50")]
    lsn: String,
}

/// What waits to be archived.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Backlog {
    /// How many files.
    count: usize,
    /// The oldest.
    first: Option<String>,
    /// The newest.
    last: Option<String>,
}

/// What an archive has of one timeline.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WalArchive)]
pub(in crate::http) struct ArchiveView {
    /// The repository.
    repo: u16,
    /// The timeline.
    timeline: u32,
    /// The timeline that it branched off from, and where.
    parent: Option<PositionView>,
    /// Runs of segments without a gap.
    ranges: Vec<SegmentRange>,
}

/// A run of segments.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct SegmentRange {
    /// The first.
    first: String,
    /// The last.
    last: String,
    /// How many.
    segments: u64,
}

fn archives(ground: &Ground) -> Vec<ArchiveView> {
    let size = ground.catalogue.segment_size;
    let name = |timeline, number| {
        crate::domain::WalSegment::numbered(timeline, number, size)
            .map(|segment| segment.to_string())
            .unwrap_or_default()
    };
    let mut views: Vec<ArchiveView> = Vec::new();
    for (repo, archive) in &ground.archives {
        for (timeline, ranges) in archive.segments.timelines() {
            let parent = archive.timelines.history(timeline).and_then(|history| history.parent());
            views.push(ArchiveView {
                repo: repo.get(),
                timeline: timeline.get(),
                parent: parent.map(|(timeline, lsn)| PositionView {
                    timeline: timeline.get(),
                    lsn: lsn.to_string(),
                }),
                ranges: ranges
                    .iter()
                    .map(|(first, last)| SegmentRange {
                        first: name(timeline, first),
                        last: name(timeline, last),
                        segments: last - first + 1,
                    })
                    .collect(),
            });
        }
    }
    views.sort_by_key(|view| (std::cmp::Reverse(view.timeline), view.repo));
    views
}

/// How the WAL is archived, what waits, and what the archive has.
#[utoipa::path(get, path = "/stanzas/{stanza}/wal", tag = "restores", params(("stanza" = String, Path, example = "main")), responses(
    (status = 200, description = "the WAL", body = WalStateView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn show(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
) -> Outcome<Json<WalStateView>> {
    let wal = state.wal.state(&stanza).await?;
    let ground = state.planner.windows(&stanza).await?.ground;
    Ok(Json(WalStateView {
        position: wal.position.map(|position| PositionView {
            timeline: position.timeline.get(),
            lsn: position.lsn.to_string(),
        }),
        archiver: wal.archiver.map(ArchiverView::from),
        backlog: Backlog {
            count: wal.ready.len(),
            first: wal.ready.first().cloned(),
            last: wal.ready.last().cloned(),
        },
        segment_bytes: ground.catalogue.segment_size.get(),
        archives: archives(&ground),
    }))
}

/// A segment that was ended.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SwitchedWal)]
pub(in crate::http) struct SwitchedView {
    /// Its name.
    #[schema(example = "000000010000000000000009")]
    segment: String,
    /// Whether it is in the archive by now.
    archived: bool,
}

/// Commits an empty transaction and ends the WAL segment, so that everything until now can be
/// restored as soon as it is archived. Waits up to 15 s for that.
#[utoipa::path(post, path = "/stanzas/{stanza}/wal/switch", tag = "restores", params(("stanza" = String, Path, example = "main")), responses(
    (status = 200, description = "the segment that was ended", body = SwitchedView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn switch(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
) -> Outcome<Json<SwitchedView>> {
    let switched = state.wal.switch(&stanza).await?;
    state.planner.look_again(&stanza).await;
    Ok(Json(SwitchedView { segment: switched.segment, archived: switched.archived }))
}

/// A named moment.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RestorePoint)]
pub(in crate::http) struct PointView {
    /// Its name.
    #[schema(example = "before-release")]
    name: String,
    /// The timeline it was made on.
    timeline: u32,
    /// Its position.
    #[schema(example = "0/16B6C50")]
    lsn: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

impl From<RestorePoint> for PointView {
    fn from(point: RestorePoint) -> Self {
        Self {
            name: point.name.to_string(),
            timeline: point.timeline.get(),
            lsn: point.lsn.to_string(),
            at: point.at,
        }
    }
}

/// The named moments of a stanza.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Points {
    /// Newest first.
    items: Vec<PointView>,
}

/// The restore points that were made through Headrest, newest first.
#[utoipa::path(get, path = "/stanzas/{stanza}/restore-points", tag = "restores", params(("stanza" = String, Path, example = "main")), responses(
    (status = 200, description = "the points", body = Points),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn points(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
) -> Outcome<Json<Points>> {
    let points = state.store.restore_points(stanza).await?;
    Ok(Json(Points { items: points.into_iter().rev().map(PointView::from).collect() }))
}

/// A restore point that is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PointRequest {
    /// Its name: 1 to 63 of A-Z, a-z, 0-9, `_`, `.`, `:` and `-`.
    #[schema(example = "before-release")]
    name: String,
}

/// Names this moment, so that it can be restored to by its name.
#[utoipa::path(post, path = "/stanzas/{stanza}/restore-points", tag = "restores", params(("stanza" = String, Path, example = "main")), request_body = PointRequest, responses(
    (status = 201, description = "the point", body = PointView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn create_point(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
    Body(request): Body<PointRequest>,
) -> Outcome<Response> {
    let name = request.name.parse().map_err(|error: crate::domain::recovery::InvalidTarget| {
        Problem::field("name", error.to_string())
    })?;
    let point = state.wal.create_point(&stanza, name).await?;
    Ok((StatusCode::CREATED, Json(PointView::from(point))).into_response())
}

impl From<WalError> for Problem {
    fn from(error: WalError) -> Self {
        let detail = error.to_string();
        match error {
            WalError::NotSupervised(stanza) => Denied::NotSupervised(stanza).into(),
            WalError::NotReady(_) | WalError::Query(_) => {
                Self::new(ErrorCode::PostgresUnavailable, detail)
            }
            WalError::PointExists(_) => Self {
                field: Some("name".to_owned()),
                ..Self::new(ErrorCode::RestorePointExists, detail)
            },
            WalError::Store(error) => error.into(),
        }
    }
}
