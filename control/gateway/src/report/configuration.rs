//! The configuration as read, without secrets.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nomagic_xsk::InterfaceName;
use serde_json::{Value, json};

use super::bundle::{About, Bundle};
use super::gateway::Running;
use crate::config::Config;

const CONFIGURATION: About = About::new("configuration.json", "the configuration file as read, without comments and secrets");
/// Maximum size of the file, bytes.
const FILE_MAX: u64 = 1 << 20;
/// What stands for a secret.
const LEFT_OUT: &str = "(left out of the report)";
/// Parts of the names of fields that may hold secrets. Those that end in `File` name a file.
const SECRET_WORDS: [&str; 9] = ["seed", "token", "password", "passwd", "secret", "credential", "private", "clientkey", "client-key"];

/// What the rest of the report needs to know.
pub struct Configured {
    pub config: Config,
    pub interfaces: Vec<InterfaceName>,
}

/// Adds the configuration: the named one, or that of the running gateway.
pub fn collect(bundle: &mut Bundle, named: Option<&Path>, running: Option<&Running>) -> Configured {
    let of_running = || {
        let running = running?;
        let option = running.option("--config").or_else(|| running.option("--kube-proxy-config"))?;
        Some(running.file(option))
    };
    let path = named.map(Path::to_owned).or_else(of_running);
    let read = path.as_deref().map(read);
    bundle.add_json(
        CONFIGURATION,
        match (&path, &read) {
            (Some(path), Some(Ok(value))) => Ok(json!({ "path": path, "fields": without_secrets(value.clone()) })),
            (_, Some(Err(e))) => Err(e.clone()),
            _ => Err("no configuration is known: no gateway runs, or its process cannot be seen; name the file with --config".into()),
        },
    );
    let config = path.as_deref().and_then(|path| Config::load(path).ok()).unwrap_or_default();
    let of_command_line = running.and_then(|running| running.option("--interface")).and_then(|name| name.parse().ok());
    let interfaces = if config.interfaces.is_empty() { of_command_line.into_iter().collect() } else { config.interfaces.clone() };
    Configured { config, interfaces }
}

/// Reads a file. An error does not quote it: it may be a secret's.
fn read(path: &Path) -> Result<Value, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    file.take(FILE_MAX).read_to_string(&mut text).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_saphyr::from_str(&text).map_err(|_| format!("{} is no valid YAML; `nomagic check --config` says where", path.display()))
}

fn without_secrets(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let clean = |(key, value): (String, Value)| {
                let value = if is_secret(&key) && !value.is_null() { json!(LEFT_OUT) } else { without_secrets(value) };
                (key, value)
            };
            Value::Object(fields.into_iter().map(clean).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_secrets).collect()),
        // A URL with a user's name and password, or a block of PEM, wherever it stands.
        Value::String(text) if text.contains("-----BEGIN") || has_user(&text) => json!(LEFT_OUT),
        other => other,
    }
}

fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    (SECRET_WORDS.iter().any(|word| key.contains(word)) || key.ends_with("-data")) && !key.ends_with("file")
}

fn has_user(text: &str) -> bool {
    let rest = text.split_once("://").map(|(_, rest)| rest);
    rest.is_some_and(|rest| rest.split('/').next().is_some_and(|authority| authority.contains('@')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out() {
        let text = "hash: {seed: 4711, seedFile: /etc/seed}\nkubernetes: {url: 'https://a:b@c/', tokenFile: /t, token: abc}\n\
                    users: [{client-key-data: QUJD, name: x, ca: \"-----BEGIN CERTIFICATE-----\"}]\ninterfaces: [eth0]\nempty: {seed: null}";
        let clean = without_secrets(serde_saphyr::from_str(text).unwrap());
        let expected = json!({
            "hash": {"seed": LEFT_OUT, "seedFile": "/etc/seed"},
            "kubernetes": {"url": LEFT_OUT, "tokenFile": "/t", "token": LEFT_OUT},
            "users": [{"client-key-data": LEFT_OUT, "name": "x", "ca": LEFT_OUT}],
            "interfaces": ["eth0"],
            "empty": {"seed": null},
        });
        assert_eq!(clean, expected);
    }

    #[test]
    fn an_unreadable_file_is_named_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, "seed: 'hush\n: : [").unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.contains("c.yaml is no valid YAML") && !error.contains("hush"), "{error}");
        assert!(read(&dir.path().join("none")).unwrap_err().contains("No such file"));
    }
}
