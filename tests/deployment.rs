//! The files to deploy with: they are what Kubernetes and Compose understand, and agree with the image.
//!
//! The types are made from Kubernetes' published OpenAPI schema. A misspelt or misplaced field is
//! lost in them, so what is written back must be what was read.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Secret, Service};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const KUBERNETES: &str = include_str!("../docker/kubernetes/headrest.yaml");
const COMPOSE: &str = include_str!("../docker/compose.yaml");
const COMPOSE_S3: &str = include_str!("../docker/compose.s3.yaml");
const DOCKERFILE: &str = include_str!("../docker/Dockerfile");
const OVERLAY: &str = include_str!("../docker/Dockerfile.overlay");

/// What a stop may take by our own defaults: jobs, the fast stop, the rungs after it,
/// notifications, HTTP.
const STOPPING_S: i64 = 30 + 120 + 70 + 2 + 3;

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}"))
}

/// The resource in the schema's type, which knows every field of it.
#[track_caller]
fn known<T: DeserializeOwned + Serialize>(resource: &Value) -> T {
    let typed: T = serde_json::from_value(resource.clone()).unwrap();
    // Without a value at all a field may be left out.
    assert_eq!(serde_json::to_value(&typed).unwrap(), *resource);
    typed
}

#[test]
fn kubernetes_knows_every_field() {
    let documents = KUBERNETES.split("\n---\n").map(yaml);
    let mut kinds = Vec::new();
    let mut stateful_set = None;
    for resource in documents {
        let kind = resource["kind"].as_str().unwrap().to_owned();
        match kind.as_str() {
            "Secret" => drop(known::<Secret>(&resource)),
            "Service" => drop(known::<Service>(&resource)),
            "StatefulSet" => stateful_set = Some(known::<StatefulSet>(&resource)),
            other => panic!("{other} is not looked at"),
        }
        kinds.push(kind);
    }
    assert_eq!(kinds, ["Secret", "Service", "Service", "StatefulSet"]);
    let pod = stateful_set.unwrap().spec.unwrap().template.spec.unwrap();
    assert!(pod.termination_grace_period_seconds.unwrap() > STOPPING_S);
    // A service called headrest would put HEADREST_PORT into the environment.
    assert_eq!(pod.enable_service_links, Some(false));
    let container = &pod.containers[0];
    let path = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
        probe.as_ref().unwrap().http_get.as_ref().unwrap().path.clone().unwrap()
    };
    let probes = [
        path(&container.startup_probe),
        path(&container.liveness_probe),
        path(&container.readiness_probe),
    ];
    assert_eq!(probes, ["/startupz", "/livez", "/readyz"]);
}

#[test]
fn what_is_misspelt_is_seen() {
    let text = KUBERNETES.replace("terminationGracePeriodSeconds", "terminationGracePeriod");
    let stateful_set = text.split("\n---\n").map(yaml).last().unwrap();
    let typed: StatefulSet = serde_json::from_value(stateful_set.clone()).unwrap();
    assert_ne!(serde_json::to_value(&typed).unwrap(), stateful_set);
}

#[test]
fn compose_agrees_with_the_image() {
    let compose = yaml(COMPOSE);
    let service = &compose["services"]["postgres"];
    assert_eq!(service["build"], json!({ "context": "..", "dockerfile": "docker/Dockerfile" }));
    let minutes = service["stop_grace_period"].as_str().unwrap().strip_suffix('m').unwrap();
    assert!(minutes.parse::<i64>().unwrap() * 60 > STOPPING_S);
    assert_eq!(service["healthcheck"]["test"], json!(["CMD", "headrest", "healthcheck"]));
    let volumes = service["volumes"].as_array().unwrap();
    let declared: Vec<_> = compose["volumes"].as_object().unwrap().keys().collect();
    for volume in volumes {
        let (name, path) = volume.as_str().unwrap().split_once(':').unwrap();
        assert!(declared.iter().any(|declared| *declared == name), "{name} is not declared");
        assert!(DOCKERFILE.contains(&format!("\"{path}\"")), "{path} is no volume of the image");
    }
    let s3 = yaml(COMPOSE_S3);
    let environment = s3["services"]["postgres"]["environment"].as_object().unwrap();
    let secrets: Vec<_> = s3["secrets"].as_object().unwrap().keys().collect();
    for (name, value) in environment {
        assert!(name.starts_with("PGBACKREST_"), "{name}");
        if let Some(secret) = value.as_str().unwrap().strip_prefix("/run/secrets/") {
            assert!(secrets.iter().any(|known| *known == secret), "{secret} is not declared");
        }
    }
}

/// What both images are built with must be the same, or the one would not be cached for the other.
#[test]
fn both_images_build_the_program_alike() {
    let builder = |text: &str| {
        let begin = text.find("FROM rust").unwrap();
        text[begin..begin + text[begin..].find("\nFROM").unwrap()].to_owned()
    };
    assert_eq!(builder(DOCKERFILE), builder(OVERLAY));
    for line in ["STOPSIGNAL SIGINT", "HEALTHCHECK", "ENTRYPOINT", "CMD [\"postgres\"]"] {
        let of = |text: &str| text.lines().rev().find(|l| l.starts_with(line)).map(str::to_owned);
        assert!(of(DOCKERFILE).is_some() && of(DOCKERFILE) == of(OVERLAY), "{line}");
    }
}
