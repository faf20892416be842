//! Rules of a kube-proxy from files, or from this machine's kernel.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use nomagic_kube_proxy_rules::{ReadError, Ruleset, TEXT_MAX};

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    #[error("{path}: the rules cannot be read: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{name}: {source}")]
    Text { name: String, source: ReadError },
    #[error("this machine has no rules of a kube-proxy that can be listed ({0}); run as root on the node, or give files with --rules")]
    None(String),
}

/// The commands that print the rules of this machine.
const COMMANDS: [(&str, &[&str]); 3] = [("nft", &["-j", "list", "ruleset"]), ("iptables-save", &[]), ("ip6tables-save", &[])];

/// Reads files: `nft -j list ruleset`, `iptables-save`, `ip6tables-save`, in any order. `-` is standard input.
///
/// # Errors
/// A file that cannot be read or understood, with its name and the place in it.
pub fn from_files(paths: &[PathBuf]) -> Result<Ruleset, RulesError> {
    let mut rules = Ruleset::default();
    for path in paths {
        let text = read(path).map_err(|source| RulesError::File { path: path.clone(), source })?;
        rules.read(&text).map_err(|source| RulesError::Text { name: path.display().to_string(), source })?;
    }
    Ok(rules)
}

/// Reads one byte more than is allowed, so that the limit is seen.
fn read(path: &Path) -> io::Result<String> {
    let limit = TEXT_MAX as u64 + 1;
    let mut bytes = Vec::new();
    match path == Path::new("-") {
        true => io::stdin().lock().take(limit).read_to_end(&mut bytes)?,
        false => std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?,
    };
    String::from_utf8(bytes)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("not UTF-8 from byte {} on", e.utf8_error().valid_up_to())))
}

/// Runs the commands that list this machine's rules. A command that is not installed counts as one without rules, if another one lists
/// some of a kube-proxy.
///
/// # Errors
/// No command lists rules of a kube-proxy, or one prints what cannot be understood.
pub fn from_kernel() -> Result<Ruleset, RulesError> {
    let (mut rules, mut silent) = (Ruleset::default(), Vec::new());
    for (program, args) in COMMANDS {
        match Command::new(program).args(args).env("LC_ALL", "C").output() {
            Ok(out) if out.status.success() => {
                let text = String::from_utf8_lossy(&out.stdout);
                // iptables-save prints nothing if no table is in use.
                if text.lines().any(|line| !line.is_empty() && !line.starts_with('#')) {
                    rules.read(&text).map_err(|source| RulesError::Text { name: program.into(), source })?;
                }
            }
            Ok(out) => {
                let said = String::from_utf8_lossy(&out.stderr);
                silent.push(format!("{program}: {}", said.lines().next().unwrap_or("failed").chars().take(200).collect::<String>()));
            }
            Err(e) => silent.push(format!("{program}: {e}")),
        }
    }
    if rules.has_kube_proxy(false) || rules.has_kube_proxy(true) {
        return Ok(rules);
    }
    silent.push("no chain of a kube-proxy is listed".into());
    Err(RulesError::None(silent.join("; ")))
}
