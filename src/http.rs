//! The HTTP side: API, short routes, probes, dashboard. Sees handles and read queries only.
//!
//! [`router`] has every route on one page. Handlers check, convert and delegate; [`problem`] is the
//! only place that turns errors into statuses.

pub mod api;
mod auth;
mod dashboard;
mod extract;
mod metrics;
mod middleware;
mod openapi;
mod probes;
pub mod problem;
pub mod router;
mod short;
pub mod state;

pub use auth::{Auth, random_token};
pub use openapi::document;
pub use state::AppState;
