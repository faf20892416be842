//! The one question about XDP that no file and no common program answers.
#![allow(unsafe_code)]

/// What a driver can do with XDP: bits of `enum netdev_xdp_act` (linux/netdev.h). `None` if the question fails.
pub fn xdp_features(interface: &str) -> Option<u64> {
    let ifindex = nomagic_xsk::Link::query(interface).ok()?.ifindex;
    let mut answer =
        libbpf_sys::bpf_xdp_query_opts { sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t, ..Default::default() };
    // SAFETY: `answer` is a valid structure that names its own size; the call writes into it and keeps nothing.
    let code = unsafe { libbpf_sys::bpf_xdp_query(i32::try_from(ifindex).ok().filter(|i| *i > 0)?, 0, &mut answer) };
    (code == 0).then_some(answer.feature_flags)
}
