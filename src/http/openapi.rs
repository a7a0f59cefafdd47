//! The OpenAPI document, made from the routes themselves.

use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{OpenApi, SecurityRequirement};
use utoipa::{Modify, OpenApi as _};
use utoipa_axum::router::OpenApiRouter;

use super::router;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Headrest",
        description = "The head on pgBackRest: backups, restores and supervision of PostgreSQL. \
                       Every answer that is not a success is an application/problem+json; its \
                       `code` is one of those listed with the schema ErrorCode.",
        license(name = "MIT")
    ),
    components(schemas(CodeList)),
    tags(
        (name = "stanzas", description = "what stands where"),
        (name = "backups", description = "backups in the repositories"),
        (name = "restores", description = "bringing data back"),
        (name = "jobs", description = "everything long, with its log"),
        (name = "schedules", description = "what is done by itself, and when"),
        (name = "processes", description = "the supervised server"),
        (name = "service", description = "Headrest itself"),
        (name = "probes", description = "for orchestrators; open to everybody"),
    ),
    modifiers(&Bearer)
)]
struct Base;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        if let Some(components) = document.components.as_mut() {
            components.add_security_scheme("bearer", scheme);
        }
        let none: [&str; 0] = [];
        document.security = Some(vec![SecurityRequirement::new("bearer", none)]);
    }
}

/// The codes of problems, as a schema.
struct CodeList;

impl utoipa::PartialSchema for CodeList {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use super::problem::ErrorCode;
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .enum_values(Some(ErrorCode::ALL.iter().map(|code| code.as_str())))
            .description(Some("The kind of a problem, for programs"))
            .into()
    }
}

impl utoipa::ToSchema for CodeList {
    fn name() -> std::borrow::Cow<'static, str> {
        "ErrorCode".into()
    }
}

/// The document.
pub fn document() -> OpenApi {
    let (_, document) = OpenApiRouter::with_openapi(Base::openapi())
        .nest("/api/v1", router::api())
        .merge(router::probes())
        .merge(router::metrics())
        .split_for_parts();
    document
}
