//! Replays case files through manifests, index and compiler, like `nomagic run`.

use std::collections::BTreeSet;
use std::path::Path;

use nomagic::config::Config;
use nomagic::manifests;
use nomagic_table::compile::serving::Serving;
use nomagic_table::compile::{Compiled, Compiler, TARGETS_MAX};
use nomagic_table::explain::{Explainer, parse_flow};
use nomagic_table::index::Index;
use nomagic_table::objects::NamespacedName;
use nomagic_table::objects::addr::socket;
use nomagic_table::settings::Settings;
use serde_json::{Value, json};

/// Files of first-packet cases.
pub const FIRST_PACKETS: [&str; 2] = ["kubeproxy-cases.yaml", "more-cases.yaml"];

/// A file of cases.
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

/// The default configuration overridden by a case's fields, parsed by the real configuration parser.
pub fn settings(defaults: &Value, case: &Value) -> Settings {
    let mut config = defaults.clone();
    if let (Some(all), Some(own)) = (config.as_object_mut(), case["config"].as_object()) {
        all.extend(own.clone());
    }
    // The cases' pod detection mode is informational.
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

/// The serving endpoints of these objects, after those of `before`. `known` are all Services so far, including deleted ones.
pub fn serving(index: &Index, before: &Serving, known: &mut BTreeSet<NamespacedName>) -> Serving {
    known.extend(index.services().map(|service| service.key.clone()));
    let mut serving = before.clone();
    serving.follow(index, known);
    serving
}

/// A step's objects, compiled.
pub struct CaseTable {
    pub index: Index,
    pub settings: Settings,
    pub compiled: Compiled,
}

impl CaseTable {
    pub fn new(objects: &Value, settings: Settings) -> CaseTable {
        let index = index(objects);
        let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
        CaseTable { index, settings, compiled }
    }

    /// `explain`'s JSON for the flow from one source port.
    pub fn explain(&self, flow: &Value, source_port: u16) -> Value {
        let port = flow["port"].as_u64().unwrap() as u16;
        let proto = flow["proto"].as_str().unwrap_or("TCP").to_lowercase();
        let from = socket(text(flow, "from").parse().unwrap(), source_port);
        let to = socket(text(flow, "to").parse().unwrap(), port);
        let question = format!("{proto} {from} -> {to}");
        let explainer = Explainer::new(&self.index, &self.settings, &self.compiled);
        serde_json::to_value(explainer.answer(&question, &parse_flow(&question).unwrap())).unwrap()
    }
}
