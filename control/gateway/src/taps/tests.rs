//! What a tap may be asked for.

use super::*;
use nomagic_api::flows::{FlowFilter, FlowState};

fn request() -> TapRequest {
    TapRequest { filter: FlowFilter::default(), snap_len: 96, packets_per_s: 10, lasts_s: 60 }
}

#[test]
fn requests_are_checked() {
    assert_eq!(options(&request()).unwrap().snap_len, 96);
    let filter = |filter| TapRequest { filter, ..request() };
    for (asked, words) in [
        (TapRequest { snap_len: 0, ..request() }, "snap_len 0: not from 1 to 65535"),
        (TapRequest { packets_per_s: 2_000_000, ..request() }, "packets_per_s 2000000: not from 1 to 1000000"),
        (TapRequest { lasts_s: 90_000, ..request() }, "lasts_s 90000: not from 1 to 86400"),
        (filter(FlowFilter { state: Some(FlowState::Established), ..FlowFilter::default() }), "state: "),
        (filter(FlowFilter { client: Some("x".into()), ..FlowFilter::default() }), "client `x`: not "),
    ] {
        let error = options(&asked).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}
