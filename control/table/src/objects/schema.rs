//! The fields that nomagic reads, with their types and with what a wrong value costs. A field that a reader uses must be here too: in an
//! object with a wrong value, only these are read.

use super::Kind;
use super::limits::{PER_CLIENT, PER_SECOND};
use super::service::PROXY_NAME_LABEL;
use super::shape::{Cost, Shape};
use super::slice::{SERVICE_NAME_LABEL, TRIGGER_ANNOTATION};

const TEXTS: Shape = Shape::List { of: &Shape::Text, what: "entry", needed: false };

/// The metadata of an object whose labels are read, or lost at this cost.
const fn metadata(labels: Cost, named: &'static [&'static str], annotations: &'static [&'static str]) -> [(&'static str, Cost, Shape); 6] {
    [
        ("name", Cost::Object, Shape::Text),
        ("namespace", Cost::Object, Shape::Text),
        ("labels", labels, Shape::Texts(named)),
        ("annotations", Cost::Field, Shape::Texts(annotations)),
        ("creationTimestamp", Cost::Field, Shape::Time),
        ("deletionTimestamp", Cost::Field, Shape::Time),
    ]
}

static SERVICE_METADATA: [(&str, Cost, Shape); 6] = metadata(Cost::Field, &[PROXY_NAME_LABEL], &[PER_SECOND, PER_CLIENT]);
static SLICE_METADATA: [(&str, Cost, Shape); 6] = metadata(Cost::Object, &[SERVICE_NAME_LABEL], &[TRIGGER_ANNOTATION]);
static OTHER_METADATA: [(&str, Cost, Shape); 6] = metadata(Cost::Field, &[super::ZONE_LABEL], &[]);

static SERVICE_PORT: Shape = Shape::Fields(&[
    ("name", Cost::Entry, Shape::Text),
    ("protocol", Cost::Entry, Shape::Word),
    ("port", Cost::Entry, Shape::Number),
    ("nodePort", Cost::Field, Shape::Number),
]);
static INGRESS: Shape = Shape::Fields(&[("ip", Cost::Entry, Shape::Text), ("ipMode", Cost::Field, Shape::Word)]);
static SERVICE: Shape = Shape::Fields(&[
    ("metadata", Cost::Object, Shape::Fields(&SERVICE_METADATA)),
    (
        "spec",
        Cost::Object,
        Shape::Fields(&[
            ("type", Cost::Field, Shape::Word),
            ("clusterIP", Cost::Field, Shape::Text),
            ("clusterIPs", Cost::Field, TEXTS),
            ("externalIPs", Cost::Field, TEXTS),
            ("loadBalancerSourceRanges", Cost::Clients, TEXTS),
            ("ports", Cost::Object, Shape::List { of: &SERVICE_PORT, what: "port", needed: true }),
            ("internalTrafficPolicy", Cost::Field, Shape::Word),
            ("externalTrafficPolicy", Cost::Field, Shape::Word),
            ("sessionAffinity", Cost::Field, Shape::Word),
            (
                "sessionAffinityConfig",
                Cost::Field,
                Shape::Fields(&[("clientIP", Cost::Field, Shape::Fields(&[("timeoutSeconds", Cost::Field, Shape::Number)]))]),
            ),
            ("healthCheckNodePort", Cost::Field, Shape::Number),
            ("trafficDistribution", Cost::Field, Shape::Word),
        ]),
    ),
    (
        "status",
        Cost::Field,
        Shape::Fields(&[(
            "loadBalancer",
            Cost::Field,
            Shape::Fields(&[("ingress", Cost::Field, Shape::List { of: &INGRESS, what: "address", needed: false })]),
        )]),
    ),
]);

static PORT: Shape =
    Shape::Fields(&[("name", Cost::Entry, Shape::Text), ("protocol", Cost::Entry, Shape::Word), ("port", Cost::Entry, Shape::Number)]);
static NAMED: Shape = Shape::Fields(&[("name", Cost::Entry, Shape::Text)]);
static ENDPOINT: Shape = Shape::Fields(&[
    ("addresses", Cost::Entry, Shape::First(&Shape::Text)),
    // A condition in doubt is no reason to send clients to the endpoint.
    (
        "conditions",
        Cost::Entry,
        Shape::Fields(&[
            ("ready", Cost::Entry, Shape::Truth),
            ("serving", Cost::Entry, Shape::Truth),
            ("terminating", Cost::Entry, Shape::Truth),
        ]),
    ),
    ("nodeName", Cost::Field, Shape::Text),
    (
        "hints",
        Cost::Field,
        Shape::Fields(&[
            ("forZones", Cost::Field, Shape::List { of: &NAMED, what: "hint", needed: false }),
            ("forNodes", Cost::Field, Shape::List { of: &NAMED, what: "hint", needed: false }),
        ]),
    ),
]);
static SLICE: Shape = Shape::Fields(&[
    ("metadata", Cost::Object, Shape::Fields(&SLICE_METADATA)),
    ("addressType", Cost::Object, Shape::Word),
    ("ports", Cost::Object, Shape::List { of: &PORT, what: "port", needed: true }),
    ("endpoints", Cost::Object, Shape::List { of: &ENDPOINT, what: "endpoint", needed: true }),
]);

static ENDPOINT_ADDRESS: Shape = Shape::Fields(&[("ip", Cost::Entry, Shape::Text), ("nodeName", Cost::Field, Shape::Text)]);
const ADDRESSES: Shape = Shape::List { of: &ENDPOINT_ADDRESS, what: "endpoint", needed: false };
static SUBSET: Shape = Shape::Fields(&[
    ("addresses", Cost::Entry, ADDRESSES),
    ("notReadyAddresses", Cost::Field, ADDRESSES),
    ("ports", Cost::Entry, Shape::List { of: &PORT, what: "port", needed: false }),
]);
/// The fields of an `Endpoints` object.
pub(super) static ENDPOINTS: Shape = Shape::Fields(&[
    ("metadata", Cost::Object, Shape::Fields(&OTHER_METADATA)),
    ("subsets", Cost::Object, Shape::List { of: &SUBSET, what: "subset", needed: true }),
]);

static NODE_ADDRESS: Shape = Shape::Fields(&[("type", Cost::Entry, Shape::Text), ("address", Cost::Entry, Shape::Text)]);
static TAINT: Shape = Shape::Fields(&[("key", Cost::Entry, Shape::Text)]);
static NODE: Shape = Shape::Fields(&[
    ("metadata", Cost::Object, Shape::Fields(&OTHER_METADATA)),
    (
        "spec",
        Cost::Field,
        Shape::Fields(&[
            ("podCIDRs", Cost::Field, TEXTS),
            ("taints", Cost::Field, Shape::List { of: &TAINT, what: "taint", needed: false }),
        ]),
    ),
    (
        "status",
        Cost::Field,
        Shape::Fields(&[("addresses", Cost::Field, Shape::List { of: &NODE_ADDRESS, what: "address", needed: false })]),
    ),
]);

static SERVICE_CIDR: Shape = Shape::Fields(&[
    ("metadata", Cost::Object, Shape::Fields(&OTHER_METADATA)),
    ("spec", Cost::Object, Shape::Fields(&[("cidrs", Cost::Object, TEXTS)])),
]);

/// The fields of a kind.
pub(super) fn of(kind: Kind) -> &'static Shape {
    match kind {
        Kind::Service => &SERVICE,
        Kind::EndpointSlice => &SLICE,
        Kind::Node => &NODE,
        Kind::ServiceCidr => &SERVICE_CIDR,
    }
}
