//! A strict reader of `deploy/`: the kustomize features used there, and Kubernetes objects without unknown or missing fields.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The supported fields of a kustomization; others are errors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    api_version: String,
    kind: String,
    namespace: String,
    #[serde(default)]
    resources: Vec<PathBuf>,
    #[serde(default)]
    config_map_generator: Vec<ConfigMapGenerator>,
    #[serde(default)]
    images: Vec<Image>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ConfigMapGenerator {
    name: String,
    #[serde(default)]
    behavior: Option<String>,
    files: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Image {
    name: String,
    new_name: String,
    new_tag: String,
}

/// What `kubectl apply -k` would apply.
#[derive(Clone, Debug, Default)]
pub struct BuiltObjects {
    pub namespace: String,
    /// Each with the file it is from.
    pub objects: Vec<(PathBuf, Value)>,
    /// The files of generated ConfigMaps by the map's name and the file's.
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
}

/// Reads a kustomization and its bases.
pub fn read(dir: &Path) -> Result<BuiltObjects, String> {
    let file = dir.join("kustomization.yaml");
    let k: Kustomization = serde_saphyr::from_str(&text(&file)?).map_err(|e| format!("{}: {e}", file.display()))?;
    if (k.api_version.as_str(), k.kind.as_str()) != ("kustomize.config.k8s.io/v1beta1", "Kustomization") {
        return Err(format!("{}: {} {} is no Kustomization", file.display(), k.api_version, k.kind));
    }
    let mut all = BuiltObjects { namespace: k.namespace, ..BuiltObjects::default() };
    for resource in &k.resources {
        let path = dir.join(resource);
        if path.is_dir() {
            let base = read(&path)?;
            all.objects.extend(base.objects);
            all.config_maps.extend(base.config_maps);
        } else {
            all.objects
                .extend(documents(&text(&path)?).map_err(|e| format!("{}: {e}", path.display()))?.into_iter().map(|d| (path.clone(), d)));
        }
    }
    for generator in &k.config_map_generator {
        let there = all.config_maps.contains_key(&generator.name);
        match generator.behavior.as_deref() {
            None | Some("create") if !there => {}
            Some("replace") if there => {}
            other => return Err(format!("{}: ConfigMap {}: behavior {other:?}, and it is there: {there}", file.display(), generator.name)),
        }
        let read = |f: &PathBuf| Ok((f.file_name().ok_or("no file name")?.to_string_lossy().into_owned(), text(&dir.join(f))?));
        let files = generator.files.iter().map(read).collect::<Result<_, String>>()?;
        all.config_maps.insert(generator.name.clone(), files);
    }
    for image in &k.images {
        let containers =
            all.objects.iter_mut().filter_map(|(_, o)| o.pointer_mut("/spec/template/spec/containers")?.as_array_mut()).flatten();
        let found = containers.filter_map(|c| c["image"].as_str().filter(|i| i.split(':').next() == Some(&image.name)).map(str::to_owned));
        if found.count() == 0 || image.new_name.is_empty() || image.new_tag.is_empty() {
            return Err(format!("{}: no container has the image {}", file.display(), image.name));
        }
    }
    Ok(all)
}

fn text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// The documents of a YAML text.
pub fn documents(text: &str) -> Result<Vec<Value>, String> {
    let parts = format!("\n{text}");
    let read = parts.split("\n---").map(|part| serde_saphyr::from_str::<Value>(part).map_err(|e| e.to_string()));
    read.filter(|r| !matches!(r, Ok(Value::Null))).collect()
}

/// Checks an object against Kubernetes' schema: all fields known and of the right type, all required fields present, and enumerated
/// values valid that the server checks but the schema does not.
pub fn check(object: &Value) -> Result<(), String> {
    match (object["apiVersion"].as_str(), object["kind"].as_str()) {
        (Some("v1"), Some("ServiceAccount")) => round_trip::<ServiceAccount>(object),
        (Some("rbac.authorization.k8s.io/v1"), Some("ClusterRole")) => round_trip::<ClusterRole>(object),
        (Some("rbac.authorization.k8s.io/v1"), Some("ClusterRoleBinding")) => round_trip::<ClusterRoleBinding>(object),
        (Some("apps/v1"), Some("DaemonSet")) => round_trip::<DaemonSet>(object),
        (version, kind) => Err(format!("apiVersion {version:?}, kind {kind:?}: not one of the kinds that are checked here")),
    }?;
    words("", object)
}

/// Deserialises the object into its type and serialises it again. Unknown fields are then missing, and missing required fields present.
fn round_trip<T: DeserializeOwned + Serialize>(object: &Value) -> Result<(), String> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
    let written = serde_json::to_value(&typed).map_err(|e| e.to_string())?;
    same("", object, &written)
}

fn same(path: &str, ours: &Value, written: &Value) -> Result<(), String> {
    match (ours, written) {
        (Value::Object(a), Value::Object(b)) => {
            if let Some(missing) = b.keys().find(|k| !a.contains_key(*k)) {
                return Err(format!("{path}/{missing}: required, and missing"));
            }
            a.iter().try_for_each(|(k, v)| {
                let there = b.get(k).ok_or_else(|| format!("{path}/{k}: no such field"))?;
                same(&format!("{path}/{k}"), v, there)
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().try_for_each(|(i, (a, b))| same(&format!("{path}/{i}"), a, b))
        }
        (a, b) if a == b => Ok(()),
        (a, b) => Err(format!("{path}: {a} was read as {b}")),
    }
}

/// Fields whose values the server takes from a list.
const WORDS: [(&str, &[&str]); 8] = [
    ("dnsPolicy", &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]),
    ("imagePullPolicy", &["Always", "IfNotPresent", "Never"]),
    ("operator", &["Exists", "Equal", "In", "NotIn", "DoesNotExist", "Gt", "Lt"]),
    ("protocol", &["TCP", "UDP", "SCTP"]),
    ("restartPolicy", &["Always"]),
    ("scheme", &["HTTP", "HTTPS"]),
    (
        "type",
        &[
            "RollingUpdate",
            "OnDelete",
            "RuntimeDefault",
            "Localhost",
            "Unconfined",
            "",
            "DirectoryOrCreate",
            "Directory",
            "FileOrCreate",
            "File",
        ],
    ),
    ("mountPropagation", &["None", "HostToContainer", "Bidirectional"]),
];

fn words(path: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let allowed = WORDS.iter().find(|(n, _)| n == name).map(|(_, words)| *words);
            if let (Some(allowed), Some(word)) = (allowed, value.as_str())
                && !allowed.contains(&word)
            {
                return Err(format!("{path}/{name}: {word:?} is none of {allowed:?}"));
            }
            words(&format!("{path}/{name}"), value)
        }),
        Value::Array(items) => items.iter().enumerate().try_for_each(|(i, v)| words(&format!("{path}/{i}"), v)),
        _ => Ok(()),
    }
}
