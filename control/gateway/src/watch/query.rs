//! List and watch requests. The selectors are kube-proxy's, except that Services of other proxies are read too: their addresses must be left
//! alone, and so must be known. They are few, and only their names and addresses stay in memory.

use http::Request;
use kube::api::{GetParams, ListParams, WatchParams};
use kube::core::Request as Path;
use nomagic_table::objects::Kind;

use super::backoff::random;
use super::fault::ApiFault;

/// Random range of the timeout of a watch, seconds, so that not all gateways reconnect at the same time.
const TIMEOUT_RANGE_S: (u32, u32) = (200, 290);

/// The requests for one kind.
#[derive(Clone, Debug)]
pub(super) struct KindQuery {
    path: &'static str,
    labels: Option<&'static str>,
    fields: Option<String>,
}

impl KindQuery {
    /// `node`: the name of the only Node to watch.
    pub(super) fn new(kind: Kind, node: &str) -> KindQuery {
        let (path, labels, fields) = match kind {
            Kind::Service => ("/api/v1/services", None, Some("spec.clusterIP!=None".to_owned())),
            Kind::EndpointSlice => ("/apis/discovery.k8s.io/v1/endpointslices", Some("!service.kubernetes.io/headless"), None),
            Kind::Node => ("/api/v1/nodes", None, Some(format!("metadata.name={node}"))),
            Kind::ServiceCidr => ("/apis/networking.k8s.io/v1/servicecidrs", None, None),
        };
        KindQuery { path, labels, fields }
    }

    /// One page of a list of the latest version, not of one in a cache. `limit` 0: all objects.
    pub(super) fn list(&self, limit: u32, after: Option<String>) -> Result<Request<Vec<u8>>, ApiFault> {
        let params = ListParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            limit: (limit > 0).then_some(limit),
            continue_token: after,
            ..ListParams::default()
        };
        Path::new(self.path).list(&params).map_err(unusable)
    }

    /// A watch from a version; `None`: a streaming list that continues as a watch.
    pub(super) fn watch(&self, version: Option<&str>) -> Result<Request<Vec<u8>>, ApiFault> {
        let (least, most) = TIMEOUT_RANGE_S;
        #[expect(clippy::cast_sign_loss, reason = "between 0 and the range")]
        let more = (f64::from(most - least) * random()) as u32;
        let params = WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(least + more),
            bookmarks: true,
            send_initial_events: version.is_none(),
        };
        Path::new(self.path).watch(&params, version.unwrap_or("")).map_err(unusable)
    }
}

/// The request for the Namespace that every cluster has.
pub(super) fn kube_system() -> Result<Request<Vec<u8>>, ApiFault> {
    Path::new("/api/v1/namespaces").get("kube-system", &GetParams::default()).map_err(unusable)
}

fn unusable(error: kube::core::request::Error) -> ApiFault {
    ApiFault::Unusable(format!("cannot build the request: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_their_selectors() {
        let list = |kind| KindQuery::new(kind, "gw-1").list(500, None).unwrap().uri().to_string();
        assert_eq!(list(Kind::Service), "/api/v1/services?&fieldSelector=spec.clusterIP%21%3DNone&limit=500");
        assert_eq!(
            list(Kind::EndpointSlice),
            "/apis/discovery.k8s.io/v1/endpointslices?&labelSelector=%21service.kubernetes.io%2Fheadless&limit=500"
        );
        assert_eq!(list(Kind::Node), "/api/v1/nodes?&fieldSelector=metadata.name%3Dgw-1&limit=500");
        assert_eq!(list(Kind::ServiceCidr), "/apis/networking.k8s.io/v1/servicecidrs?&limit=500");
        assert_eq!(kube_system().unwrap().uri().to_string(), "/api/v1/namespaces/kube-system");
        let watch = |version| KindQuery::new(Kind::ServiceCidr, "").watch(version).unwrap().uri().to_string();
        let resumed = watch(Some("17"));
        assert!(resumed.contains("allowWatchBookmarks=true") && resumed.ends_with("resourceVersion=17"), "{resumed}");
        assert!(!resumed.contains("sendInitialEvents"));
        let streamed = watch(None);
        assert!(
            streamed.contains("sendInitialEvents=true&resourceVersionMatch=NotOlderThan") && streamed.ends_with("resourceVersion="),
            "{streamed}"
        );
    }
}
