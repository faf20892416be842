//! List and watch requests, with kube-proxy's selectors.

use http::Request;
use kube::api::{ListParams, WatchParams};
use kube::core::Request as Path;
use nomagic_table::objects::Kind;

use super::backoff::random;
use super::fault::Fault;

/// Random range of the timeout of a watch, seconds, so that not all gateways reconnect at the same time.
const TIMEOUT_RANGE_S: (u32, u32) = (200, 290);

/// The requests for one kind.
#[derive(Clone, Debug)]
pub(super) struct Query {
    path: &'static str,
    labels: Option<&'static str>,
    fields: Option<String>,
}

impl Query {
    /// `node`: the name of the only Node to watch.
    pub(super) fn new(kind: Kind, node: &str) -> Query {
        let (path, labels, fields) = match kind {
            Kind::Service => {
                ("/api/v1/services", Some("!service.kubernetes.io/service-proxy-name"), Some("spec.clusterIP!=None".to_owned()))
            }
            Kind::EndpointSlice => ("/apis/discovery.k8s.io/v1/endpointslices", Some("!service.kubernetes.io/headless"), None),
            Kind::Node => ("/api/v1/nodes", None, Some(format!("metadata.name={node}"))),
            Kind::ServiceCidr => ("/apis/networking.k8s.io/v1/servicecidrs", None, None),
        };
        Query { path, labels, fields }
    }

    /// One page of a list of the latest version, not of one in a cache. `limit` 0: all objects.
    pub(super) fn list(&self, limit: u32, after: Option<String>) -> Result<Request<Vec<u8>>, Fault> {
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
    pub(super) fn watch(&self, version: Option<&str>) -> Result<Request<Vec<u8>>, Fault> {
        let (least, most) = TIMEOUT_RANGE_S;
        let params = WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(least + (f64::from(most - least) * random()) as u32),
            bookmarks: true,
            send_initial_events: version.is_none(),
        };
        Path::new(self.path).watch(&params, version.unwrap_or("")).map_err(unusable)
    }
}

fn unusable(error: kube::core::request::Error) -> Fault {
    Fault::Unusable(format!("cannot build the request: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_contract_has_it() {
        let list = |kind| Query::new(kind, "gw-1").list(500, None).unwrap().uri().to_string();
        assert_eq!(
            list(Kind::Service),
            "/api/v1/services?&fieldSelector=spec.clusterIP%21%3DNone&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name&limit=500"
        );
        assert_eq!(
            list(Kind::EndpointSlice),
            "/apis/discovery.k8s.io/v1/endpointslices?&labelSelector=%21service.kubernetes.io%2Fheadless&limit=500"
        );
        assert_eq!(list(Kind::Node), "/api/v1/nodes?&fieldSelector=metadata.name%3Dgw-1&limit=500");
        assert_eq!(list(Kind::ServiceCidr), "/apis/networking.k8s.io/v1/servicecidrs?&limit=500");
        let watch = |version| Query::new(Kind::ServiceCidr, "").watch(version).unwrap().uri().to_string();
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
