//! Reads a Kubernetes ServiceCIDR: a range of cluster IPs.

use k8s_openapi::api::networking::v1 as k8s;
use nomagic_core::tuple::Prefix;

use super::node::read_cidrs;
use super::{Kind, NamespacedName, read_cluster_key};
use crate::problem::{Notes, Origin, Problem};

/// A ServiceCIDR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceCidr {
    pub key: NamespacedName,
    pub origin: Origin,
    /// `spec.cidrs`
    pub cidrs: Vec<Prefix>,
    pub problems: Vec<Problem>,
}

impl ServiceCidr {
    /// Reads a ServiceCIDR. `Err` without a valid name; invalid fields are skipped and listed in [`ServiceCidr::problems`].
    pub fn from_k8s(object: &k8s::ServiceCIDR, origin: &Origin) -> Result<ServiceCidr, Problem> {
        let key = read_cluster_key(Kind::ServiceCidr, &object.metadata, origin)?;
        let mut notes = Notes::new(origin, format!("{} {key}", Kind::ServiceCidr));
        let listed = object.spec.as_ref().and_then(|s| s.cidrs.as_deref()).unwrap_or(&[]);
        let cidrs = read_cidrs("spec.cidrs", listed, &mut notes);
        Ok(ServiceCidr { key, origin: origin.clone(), cidrs, problems: notes.finish() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_faults() {
        let read = |yaml: &str| ServiceCidr::from_k8s(&serde_saphyr::from_str(yaml).unwrap(), &Origin::default());
        let s = read("metadata: {name: kubernetes}\nspec: {cidrs: [10.96.0.0/12, 'fd00:96::/108', 10.96.0.1]}").unwrap();
        assert_eq!((s.key.to_string().as_str(), s.cidrs.len()), ("kubernetes", 2));
        assert_eq!(
            s.problems[0].to_string(),
            "ServiceCIDR kubernetes: spec.cidrs[2]: \"10.96.0.1\" is not a CIDR such as 10.0.0.0/8; it is skipped"
        );
        assert_eq!(read("metadata: {}").unwrap_err().field, "metadata.name");
        assert_eq!(read("metadata: {name: none}").unwrap().cidrs, []);
    }
}
