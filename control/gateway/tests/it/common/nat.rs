//! A Service on the scene's first pod, by nomagic or by the kernel's NAT, which says what is right.

use nomagic_testbed::peers::{PodOptions, PodThread, start_pod};
use nomagic_testbed::rig::{PODS, Scene};

use super::Gateway;

/// The Service's addresses.
pub const SERVICE: [&str; 2] = ["10.109.35.24", "fd00:10:109::24"];

/// Whoever translates.
pub enum Nat {
    Nomagic(Box<Gateway>),
    Kernel { scene: Box<Scene>, _pod: PodThread },
}

impl Nat {
    /// Starts it in this scene. `manifests`: for nomagic; the kernel translates all ports.
    pub fn start(scene: Scene, manifests: &str, nomagic: bool) -> Nat {
        if nomagic {
            return Nat::Nomagic(Box::new(Gateway::start_in(scene, "", manifests)));
        }
        let pod = start_pod(&scene.pods[0], PodOptions::new("pod-1")).unwrap();
        let mut rules = String::new();
        for (family, service, endpoint) in [("ip", SERVICE[0], PODS[0].v4.to_string()), ("ip6", SERVICE[1], PODS[0].v6.to_string())] {
            rules += &format!(
                "table {family} t {{\n chain pre {{ type nat hook prerouting priority -100; {family} daddr {service} dnat to {endpoint}; }}\n \
                 chain post {{ type nat hook postrouting priority 100; }}\n}}\n"
            );
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), rules).unwrap();
        scene.gw.exec("nft", &["-f", &file.path().to_string_lossy()]).unwrap();
        Nat::Kernel { scene: Box::new(scene), _pod: pod }
    }

    pub fn scene(&self) -> &Scene {
        match self {
            Nat::Nomagic(gateway) => &gateway.scene,
            Nat::Kernel { scene, .. } => scene,
        }
    }

    pub fn account(&self) -> String {
        match self {
            Nat::Nomagic(gateway) => gateway.account(),
            Nat::Kernel { .. } => "the kernel".into(),
        }
    }
}
