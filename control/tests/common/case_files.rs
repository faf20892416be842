//! Reading kube-proxy's behaviour cases (`tests/data/cases`).
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::path::Path;

use nomagic::compile::Settings;
use nomagic::config::Config;
use nomagic::index::Index;
use nomagic::manifests;
use serde_json::{Value, json};

pub fn cases(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases").join(file);
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}"))
}

pub fn strings(value: &Value) -> BTreeSet<String> {
    list(value).iter().map(|v| v.as_str().unwrap().to_string()).collect()
}

/// The defaults with a case's fields on top, read by the real configuration reader.
pub fn settings(defaults: &Value, case: &Value) -> Settings {
    let mut config = defaults.clone();
    if let (Some(all), Some(own)) = (config.as_object_mut(), case["config"].as_object()) {
        all.extend(own.clone());
    }
    // The cases name how pods are detected, for information.
    config.as_object_mut().unwrap().remove("detectLocalMode");
    let config = Config::parse(&config.to_string(), Path::new("case")).unwrap_or_else(|e| panic!("{}: {e}", case["id"]));
    config.settings(&[])
}

/// Writes the objects as a manifest and reads them back as `nomagic run` would.
pub fn index(objects: &Value) -> Index {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("objects.yaml");
    std::fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
    let loaded = manifests::load(&file, None).unwrap();
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    Index::of(loaded.objects)
}
