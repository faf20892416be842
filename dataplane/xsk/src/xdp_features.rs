//! Queries the kernel for a driver's XDP features. No file in /sys and no common tool reports them.
#![allow(unsafe_code, reason = "a function of libbpf")]

/// Bits of `enum netdev_xdp_act` (linux/netdev.h); `None` if the question fails.
pub fn xdp_features(interface: &str) -> Option<u64> {
    let ifindex = i32::try_from(crate::Link::query(interface).ok()?.ifindex).ok()?;
    let mut answer =
        libbpf_sys::bpf_xdp_query_opts { sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t, ..Default::default() };
    // SAFETY: `answer` is a valid structure that names its own size; the call writes into it and keeps nothing.
    let code = unsafe { libbpf_sys::bpf_xdp_query(ifindex, 0, &raw mut answer) };
    (code == 0).then_some(answer.feature_flags)
}
