//! The API server to watch, and the credentials.

use std::path::{Path, PathBuf};

use http::Uri;
use serde::Deserialize;

/// An API server and the credentials for it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "KubernetesFields")]
pub enum Kubernetes {
    /// From a kubeconfig file.
    Kubeconfig {
        path: PathBuf,
        /// The context. Default: the file's current context.
        context: Option<String>,
    },
    /// From a pod's environment and service account.
    InCluster,
    /// From a URL.
    Url {
        /// `https://HOST:PORT`
        url: Uri,
        /// The CA bundle for the server's certificate (PEM). Default: the system's.
        ca_file: Option<PathBuf>,
        /// A file with a bearer token; re-read at run time. Default: no token is sent.
        token_file: Option<PathBuf>,
    },
}

impl Kubernetes {
    /// Resolves relative paths against a directory.
    pub fn relative_to(self, dir: &Path) -> Kubernetes {
        match self {
            Kubernetes::Kubeconfig { path, context } => Kubernetes::Kubeconfig { path: dir.join(path), context },
            Kubernetes::InCluster => Kubernetes::InCluster,
            Kubernetes::Url { url, ca_file, token_file } => {
                Kubernetes::Url { url, ca_file: ca_file.map(|f| dir.join(f)), token_file: token_file.map(|f| dir.join(f)) }
            }
        }
    }
}

impl std::fmt::Display for Kubernetes {
    /// For messages: `https://10.0.0.1:6443`, `kubeconfig admin.conf`, `the cluster of this pod`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kubernetes::Kubeconfig { path, .. } => write!(f, "kubeconfig {}", path.display()),
            Kubernetes::InCluster => f.write_str("the cluster of this pod"),
            Kubernetes::Url { url, .. } => write!(f, "{}", url.to_string().trim_end_matches('/')),
        }
    }
}

/// The fields as written in the file.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct KubernetesFields {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    in_cluster: bool,
    url: Option<String>,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

impl TryFrom<KubernetesFields> for Kubernetes {
    type Error = String;

    fn try_from(fields: KubernetesFields) -> Result<Kubernetes, String> {
        let KubernetesFields { kubeconfig, context, in_cluster, url, ca_file, token_file } = fields;
        let set = usize::from(kubeconfig.is_some()) + usize::from(in_cluster) + usize::from(url.is_some());
        if set != 1 {
            return Err(format!("{set} of kubeconfig, inCluster and url are set: exactly one is required"));
        }
        if context.is_some() && kubeconfig.is_none() {
            return Err("context: allowed only with kubeconfig".into());
        }
        if url.is_none() && (ca_file.is_some() || token_file.is_some()) {
            return Err("caFile, tokenFile: allowed only with url; kubeconfig and inCluster have their own".into());
        }
        match (kubeconfig, url) {
            (Some(path), _) => Ok(Kubernetes::Kubeconfig { path, context }),
            (None, Some(url)) => Ok(Kubernetes::Url { url: read_url(&url, token_file.is_some())?, ca_file, token_file }),
            (None, None) => Ok(Kubernetes::InCluster),
        }
    }
}

fn read_url(text: &str, with_token: bool) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|e| format!("url: {text:?} is not a URL such as https://10.0.0.1:6443: {e}"))?;
    let plain = match url.scheme_str() {
        Some("https") => false,
        Some("http") => true,
        _ => return Err(format!("url: {text:?} does not begin with https:// (or http://)")),
    };
    if url.query().is_some() || url.authority().is_none_or(|a| a.as_str().contains('@')) {
        return Err(format!("url: {text:?}: only a host, a port and a path are allowed"));
    }
    let loopback = matches!(url.host(), Some("127.0.0.1" | "[::1]" | "localhost"));
    if plain && with_token && !loopback {
        return Err(format!("tokenFile: the token would be sent to {text} without encryption: use https://"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> Result<Kubernetes, String> {
        let config = Config::parse(&format!("kubernetes: {text}"), Path::new("nomagic.yaml"));
        config.map(|c| c.kubernetes.unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn three_forms() {
        let context = Some("prod".to_owned());
        assert_eq!(read("{kubeconfig: k.conf, context: prod}").unwrap(), Kubernetes::Kubeconfig { path: "k.conf".into(), context });
        assert_eq!(read("{inCluster: true}").unwrap(), Kubernetes::InCluster);
        let url = read("{url: 'https://10.0.0.1:6443', caFile: ca.pem, tokenFile: /t}").unwrap().relative_to(Path::new("/etc/nomagic"));
        let expected = Kubernetes::Url {
            url: Uri::from_static("https://10.0.0.1:6443"),
            ca_file: Some("/etc/nomagic/ca.pem".into()),
            token_file: Some("/t".into()),
        };
        assert_eq!((url.to_string().as_str(), url), ("https://10.0.0.1:6443", expected));
        read("{url: 'http://127.0.0.1:8001', tokenFile: t}").unwrap();
    }

    #[test]
    fn errors_name_the_allowed_values() {
        for (text, words) in [
            ("{}", "0 of kubeconfig, inCluster and url"),
            ("{inCluster: true, url: 'https://a'}", "2 of kubeconfig, inCluster and url"),
            ("{url: 'https://a', context: b}", "context"),
            ("{kubeconfig: k, caFile: c}", "caFile"),
            ("{url: '10.0.0.1:6443'}", "https://"),
            ("{url: 'ftp://a'}", "https://"),
            ("{url: 'https://user@a'}", "only a host"),
            ("{url: 'http://a', tokenFile: t}", "use https://"),
            ("{kubeconfg: k}", "unknown field"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(words) && error.contains("nomagic.yaml") && error.contains("kubernetes"), "{text}: {error}");
        }
        let both = Config::parse("manifests: m\nkubernetes: {inCluster: true}", Path::new("nomagic.yaml")).unwrap_err().to_string();
        assert!(both.contains("kubernetes: `manifests` is set as well"), "{both}");
    }
}
