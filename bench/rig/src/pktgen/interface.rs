//! Interfaces by name and namespace. The host's own interfaces need the user's consent.

use std::fmt;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use nomagic_testbed::rig::{enter_netns, run};
use nomagic_xsk::{InterfaceName, Link};

/// An interface on the command line: `NAME`, or `NAME@NAMESPACE` with a namespace of `ip netns`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub name: String,
    /// `None` for this process's namespace.
    pub netns: Option<String>,
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Place> {
        let (name, netns) = text.split_once('@').map_or((text, None), |(name, netns)| (name, Some(netns)));
        InterfaceName::try_from(name).with_context(|| format!("`{text}`: give INTERFACE or INTERFACE@NETNS"))?;
        ensure!(netns.is_none_or(|n| !n.is_empty() && !n.contains('/')), "`{text}`: `ip netns list` names the namespaces");
        Ok(Place { name: name.into(), netns: netns.map(str::to_owned) })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            Some(netns) => write!(f, "{}@{netns}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// An interface, looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Index, MAC address, MTU, XDP program.
    pub link: Link,
    /// Receive queues that it was created with.
    pub queues: u32,
    /// It is in a namespace of `ip netns`.
    pub named_namespace: bool,
}

impl Place {
    /// Moves the calling thread into the namespace and looks the interface up. Outside of the namespaces of `ip netns` that needs `allow_host`.
    pub fn enter(&self, allow_host: bool) -> Result<Interface> {
        if let Some(netns) = &self.netns {
            let path = PathBuf::from("/run/netns").join(netns);
            let file = File::open(&path).with_context(|| format!("{self}: cannot open {}", path.display()))?;
            enter_netns(&file).with_context(|| format!("{self}: cannot enter the namespace"))?;
        }
        let named_namespace = in_named_namespace()?;
        if !allow_host && !named_namespace {
            bail!(
                "{self} is in none of the namespaces of `ip netns`: frames would reach a real network. Name a namespace \
                 ({}@NETNS), or give --allow-host-interface",
                self.name
            );
        }
        let link = Link::query(&self.name).with_context(|| format!("{self}"))?;
        ensure!(link.state != nomagic_xsk::LinkState::Down, "{self} is down (`ip link set {} up`)", self.name);
        Ok(Interface { queues: queues(&self.name)?, link, named_namespace })
    }
}

/// Whether the calling thread is in a namespace of `ip netns`: those exist for purposes like this one. Comparing with process 1's namespace does not work
/// everywhere, for instance in a container.
fn in_named_namespace() -> Result<bool> {
    let inode = |m: Metadata| (m.dev(), m.ino());
    let own = std::fs::metadata("/proc/thread-self/ns/net").context("cannot look at /proc/thread-self/ns/net").map(inode)?;
    let named = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    Ok(named.filter_map(|e| std::fs::metadata(e.path()).ok()).any(|m| inode(m) == own))
}

/// What `ip -d -j link show` says of an interface.
#[derive(serde::Deserialize)]
struct Details {
    num_rx_queues: Option<u32>,
}

fn queues(name: &str) -> Result<u32> {
    // A child runs in this thread's namespace.
    let text = run("ip", &["-d", "-j", "link", "show", "dev", name])?;
    let links: Vec<Details> = serde_json::from_str(&text).context("`ip -d -j link show` did not write what is known")?;
    Ok(links.first().and_then(|link| link.num_rx_queues).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_named_with_their_namespace() {
        let place: Place = "eth0@client".parse().unwrap();
        assert_eq!(place, Place { name: "eth0".into(), netns: Some("client".into()) });
        assert_eq!(place.to_string(), "eth0@client");
        assert_eq!("cl0".parse::<Place>().unwrap().netns, None);
        for bad in ["", "@x", "eth0@", "eth0@../x", "sixteen-letters-", "a/b", "a b"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_host_s_own_interfaces_need_consent() {
        let place: Place = "lo".parse().unwrap();
        // Tests may themselves run in a namespace.
        if !in_named_namespace().unwrap() {
            let error = place.enter(false).unwrap_err().to_string();
            assert!(error.contains("--allow-host-interface"), "{error}");
        }
        let error = format!("{:#}", "eth0@no-such-namespace".parse::<Place>().unwrap().enter(true).unwrap_err());
        assert!(error.contains("/run/netns/no-such-namespace"), "{error}");
    }
}
