//! Whether a kernel proxy (kube-proxy in iptables, nftables or IPVS mode) has its rules in place: then passing frames to the kernel when
//! nomagic fails is better than dropping them.

use std::process::Command;

/// What to look for: a command that lists rules, and what kube-proxy's rules are called in it.
const PLACES: [(&str, &[&str], &str, &str); 4] = [
    ("nft", &["list", "tables"], "kube-proxy", "kube-proxy's nftables table found"),
    ("iptables-save", &["-t", "nat"], "KUBE-SERVICES", "kube-proxy's iptables chains found"),
    ("ip6tables-save", &["-t", "nat"], "KUBE-SERVICES", "kube-proxy's ip6tables chains found"),
    ("ip", &["-br", "link", "show", "kube-ipvs0"], "kube-ipvs0", "kube-proxy's IPVS interface found"),
];

/// The first sign of a kernel proxy, in words. Tools that are not installed find nothing.
pub fn find() -> Option<String> {
    PLACES.iter().find_map(|(program, args, sign, words)| {
        let output = Command::new(program).args(*args).output().ok()?;
        let seen = output.status.success() && String::from_utf8_lossy(&output.stdout).contains(sign);
        seen.then(|| (*words).to_owned())
    })
}
