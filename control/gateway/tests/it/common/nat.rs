//! A Service on the scene's first pod, by nomagic or by the kernel's NAT, which says what is right.

use nomagic_testbed::peers::{PodOptions, PodThread, start_pod};
use nomagic_testbed::rig::{PODS, Scene};

use super::kernel_nat::{kernel_rules, load_rules};
use super::{CpuLock, Gateway};

/// Whoever translates.
pub enum Nat {
    Nomagic(Box<Gateway>),
    Kernel { scene: Box<Scene>, _pod: PodThread, _cpus: CpuLock },
}

impl Nat {
    /// Starts it in this scene. `manifests`: for nomagic; the kernel translates all ports.
    pub fn start(scene: Scene, manifests: &str, nomagic: bool) -> Nat {
        if nomagic {
            return Nat::Nomagic(Box::new(Gateway::start_in(scene, "", manifests)));
        }
        let cpus = CpuLock::take();
        let pod = start_pod(&scene.pods[0], PodOptions::new("pod-1")).unwrap();
        load_rules(&scene, &kernel_rules(&[PODS[0].v4.to_string(), PODS[0].v6.to_string()], false));
        Nat::Kernel { scene: Box::new(scene), _pod: pod, _cpus: cpus }
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
