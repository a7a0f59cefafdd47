//! The checked-in OpenAPI document is the one the code makes.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::service::Service;

#[test]
fn the_checked_in_document_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
    let made = headrest::http::document().to_pretty_json().unwrap() + "\n";
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(made == kept, "run: cargo run -- openapi > openapi/openapi.json");
}

#[tokio::test]
async fn the_document_is_served_and_complete() {
    let service = Service::new().await;
    let document = service.get("/api/v1/openapi.json").await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let at = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{at} has no summary");
            let id = operation["operationId"].as_str().unwrap().to_owned();
            assert!(ids.insert(format!("{path} {id}")), "{at}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{at}");
            let guarded = path.starts_with("/api/");
            assert!(!guarded || responses.contains_key("4XX"), "{at} documents no problem");
        }
    }
    assert!(document["paths"]["/api/v1/stanzas/{stanza}/backups"]["post"].is_object());
    let codes = &document["components"]["schemas"]["ErrorCode"]["enum"];
    assert!(codes.as_array().unwrap().contains(&Value::from("lane-busy")), "{codes}");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        for (field, described) in schema["properties"].as_object().into_iter().flatten() {
            let told = described["description"].is_string()
                || described["$ref"].is_string()
                || described["oneOf"].is_array();
            assert!(told, "{name}.{field} has no description");
        }
    }
}
