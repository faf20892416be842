//! What happens to traffic after the process has ended, in words.

use nomagic_xsk::OnFailure;

use crate::config::Config;

/// The message of a process that ends. `on_failure` is the policy in force.
pub(super) fn text(config: &Config, on_failure: OnFailure) -> String {
    if config.detach_on_exit {
        return "the XDP programs are detached now (detachOnExit), so the kernel gets all packets: connections to Services break unless a \
                kube-proxy serves them"
            .into();
    }
    let grace = f64::from(config.grace_ms) / 1_000.0;
    let then = match on_failure {
        OnFailure::Drop => "they go on being dropped (onFailure: drop)",
        OnFailure::Pass => "they go to the kernel (onFailure: pass)",
    };
    let connections = match &config.conntrack.file {
        Some(file) => format!("Open connections are kept in {}", file.display()),
        None => "Without conntrack.file, the next nomagic resets connections with SNAT and continues the others".into(),
    };
    format!(
        "the XDP programs stay attached. Packets to Services are dropped until the next nomagic runs; if none does within {grace} s \
         (graceMs), {then}. {connections}. Other traffic goes on"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_says_what_happens_and_when() {
        let config = Config::default();
        let dropped = text(&config, OnFailure::Drop);
        assert!(dropped.contains("within 2 s (graceMs), they go on being dropped (onFailure: drop). Without"), "{dropped}");
        let passed = text(&config, OnFailure::Pass);
        assert!(passed.contains("within 2 s (graceMs), they go to the kernel (onFailure: pass)"), "{passed}");
        let mut kept = config.clone();
        kept.conntrack.file = Some("/run/nomagic/conntrack".into());
        assert!(text(&kept, OnFailure::Drop).contains("kept in /run/nomagic/conntrack"));
        assert!(text(&Config { detach_on_exit: true, ..config }, OnFailure::Drop).contains("detached now"));
    }
}
