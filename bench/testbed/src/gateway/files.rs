//! The scene as ordinary Kubernetes YAML, and nomagic's configuration for it.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::rig::{GATEWAY_V4, GATEWAY_V6, POD_GATEWAY_V4, POD_GATEWAY_V6, PODS};

/// The cluster IP of the Service `nginx`.
pub const NGINX_V4: Ipv4Addr = Ipv4Addr::new(10, 109, 35, 24);
pub const NGINX_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x109, 0, 0, 0, 0, 0x24);
/// The cluster IP of the Service `echo`.
pub const ECHO_V4: Ipv4Addr = Ipv4Addr::new(10, 109, 35, 53);
pub const ECHO_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x109, 0, 0, 0, 0, 0x53);

/// The configuration for the scene's gateway; more lines can be appended. `detachOnExit` is on, so that a namespace can be reused. The hash
/// seed is set, so that `explain` knows the gateway's choices from the files alone.
pub fn scene_config(manifests: &Path, state_dir: &Path) -> String {
    format!(
        "node:\n  name: gw\n  ips: [{GATEWAY_V4}, {POD_GATEWAY_V4}, '{GATEWAY_V6}', '{POD_GATEWAY_V6}']\n  primaryIPs: [{GATEWAY_V4}, '{GATEWAY_V6}']\n\
         clusterCIDRs: [192.168.0.0/16, 'fd00:192::/64']\nserviceCIDRs: [10.96.0.0/12, 'fd00:10:109::/112']\n\
         interfaces: [cl0, pods0]\nmanifests: {}\nstateDir: {}\ndetachOnExit: true\nhash: {{seed: 0}}\n",
        manifests.display(),
        state_dir.display(),
    )
}

/// The dual-stack Services `nginx` (80/TCP) and `echo` (53/UDP), each with an EndpointSlice of the scene's pods for each family.
pub fn scene_manifests() -> String {
    let mut yaml = String::new();
    for (name, port, protocol, v4, v6) in [("nginx", 80, "TCP", NGINX_V4, NGINX_V6), ("echo", 53, "UDP", ECHO_V4, ECHO_V6)] {
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  type: ClusterIP\n  clusterIP: {v4}\n  \
             clusterIPs: [{v4}, '{v6}']\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n  \
             ports: [{{name: main, port: {port}, targetPort: {port}, protocol: {protocol}}}]\n"
        );
        for (family, address) in [("IPv4", (|p| IpAddr::V4(p.v4)) as fn(&crate::rig::PodAddr) -> IpAddr), ("IPv6", |p| IpAddr::V6(p.v6))] {
            let suffix = family.to_ascii_lowercase();
            let _ = write!(
                yaml,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{suffix}\n  namespace: default\n  \
                 labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\n\
                 ports: [{{name: main, port: {port}, protocol: {protocol}}}]\nendpoints:\n"
            );
            for pod in &PODS {
                let _ = writeln!(
                    yaml,
                    "- {{addresses: ['{}'], conditions: {{ready: true}}, targetRef: {{kind: Pod, name: {}, namespace: default}}}}",
                    address(pod),
                    pod.name
                );
            }
        }
    }
    yaml
}

/// Writes the configuration and the manifests into a directory. Returns the configuration's path and the state directory.
pub fn write_files(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (config, manifests, state_dir) = (dir.join("nomagic.yaml"), dir.join("manifests"), dir.join("state"));
    let write = |path: &Path, text: &str| std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()));
    std::fs::create_dir_all(&manifests).with_context(|| format!("cannot create {}", manifests.display()))?;
    write(&manifests.join("scene.yaml"), &scene_manifests())?;
    write(&config, &scene_config(&manifests, &state_dir))?;
    Ok((config, state_dir))
}
