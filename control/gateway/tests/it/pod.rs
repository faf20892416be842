//! nomagic as the DaemonSet of `deploy/base` runs it: a read-only root, a container's `/proc/sys`, and exactly the pod's mounts and
//! capabilities. The container is built without a runtime (overlay, bind mounts, setpriv). Needs root.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nomagic_testbed::rig::{Process, Scene, run};
use serde_json::Value;

use crate::common::*;

const TO: &str = "10.109.35.24:80";

/// Prepares the container's root in a new mount namespace and executes the command in it. Arguments: an empty directory, the directory of
/// configuration and state, the directory of the binary, the read-only flag of /host (0: omit it), capabilities, command.
const CONTAINER: &str = r#"
set -e
dir=$1 data=$2 bin=$3 host=$4 capabilities=$5; shift 5
mount --make-rprivate /
mount -t tmpfs tmpfs "$dir"
root=$dir/root
mkdir "$dir/upper" "$dir/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root"
mkdir -p "$root$data" "$root$bin" "$root/host/proc/sys/net"
mount --rbind "$data" "$root$data"
mount --rbind "$bin" "$root$bin"
if [ "$host" = 1 ]; then mount --bind /proc/sys/net "$root/host/proc/sys/net"; fi
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --no-new-privs --inh-caps=-all "--bounding-set=$capabilities" "$@"
"#;

/// The DaemonSet's container.
fn container() -> Value {
    let all = kustomize::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/base")).unwrap();
    let set = all.objects.into_iter().map(|(_, o)| o).find(|o| o["kind"] == "DaemonSet").unwrap();
    set["spec"]["template"]["spec"]["containers"][0].clone()
}

/// `-all,+net_admin,...`
fn bounding_set() -> String {
    let context = &container()["securityContext"];
    assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
    let added = context["capabilities"]["add"].as_array().unwrap().iter().map(|c| format!(",+{}", c.as_str().unwrap().to_lowercase()));
    format!("-all{}", added.collect::<String>())
}

/// Starts the container in the gateway's network namespace with the DaemonSet's arguments, without waiting for it.
fn start(scene: &Scene, data: &Path, host: bool) -> Process {
    let root = data.join("container");
    std::fs::create_dir_all(&root).unwrap();
    let bin = Path::new(NOMAGIC).parent().unwrap();
    let args = container()["args"].as_array().unwrap().clone();
    let mut words: Vec<String> = ["-m", "sh", "-c", CONTAINER, "container"].map(str::to_owned).into();
    words.extend([root.as_path(), data, bin].map(|p: &Path| p.to_string_lossy().into_owned()));
    words.extend([if host { "1" } else { "0" }.to_owned(), bounding_set(), NOMAGIC.to_owned()]);
    let config = data.join("nomagic.yaml").to_string_lossy().into_owned();
    words.extend(args.iter().map(|a| a.as_str().unwrap().replace("/etc/nomagic/nomagic.yaml", &config).replace("$(NODE_NAME)", "gw")));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    scene.gw.spawn("unshare", &words).expect("a container")
}

/// Writes configuration and manifests, and mounts the bpffs that the pod uses.
fn prepare() -> (tempfile::TempDir, Mount) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let extra = "graceMs: 15000\nconntrack: {capacity: 65536, file: $STATE/conntrack}";
    std::fs::write(dir.path().join("nomagic.yaml"), config(dir.path(), extra)).unwrap();
    std::fs::write(dir.path().join("manifests.yaml"), nginx(&[0, 1, 2])).unwrap();
    let bpf = dir.path().join("state/bpf");
    std::fs::create_dir_all(&bpf).unwrap();
    run("mount", &["-t", "bpf", "bpffs", &bpf.to_string_lossy()]).unwrap();
    (dir, Mount(bpf))
}

/// Unmounts on drop, unless `nomagic cleanup` has.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &["-q", &self.0.to_string_lossy()]);
    }
}

#[test]
fn the_daemon_sets_privileges_suffice_and_connections_outlive_the_pod() {
    let (dir, _mount) = prepare();
    let scene = Scene::new("pod").expect("a scene (needs root)");
    let pods = scene.pods.iter().zip(nomagic_testbed::rig::PODS);
    let pods = pods
        .map(|(ns, p)| nomagic_testbed::peers::start_pod(ns, nomagic_testbed::peers::PodOptions::new(p.name)).expect("a pod"))
        .collect();
    let mut process = start(&scene, dir.path(), true);
    let ready = process.wait_for_line("nomagic is ready", START);
    let mut g = Gateway { process, _pods: pods, scene, dir, _cpus: CpuLock::take() };
    ready.expect("ready");
    assert!(!g.process.output().contains("capabilities"), "{}", g.process.output());
    assert_eq!(g.http(&g.scene.client, TO, 20).answered(), 20);
    assert!(g.status().ready);
    assert_eq!(g.scene.gw.sysctl_get("net.ipv4.conf.nm0.accept_local").unwrap().trim(), "1", "written through the host's mount");

    // The pod is replaced: pins and connection table belong to the node, so a connection continues.
    let (mut stream, pod) = g.scene.client.run(|| keep_alive(TO.parse().unwrap())).unwrap();
    g.process.terminate(Duration::from_secs(10)).unwrap();
    g.process = start(&g.scene, g.dir.path(), true);
    g.process.wait_for_line("nomagic is ready", START).expect("ready again");
    assert_eq!(ask(&mut stream), pod);
    assert_eq!(g.http(&g.scene.client, TO, 20).answered(), 20);
}

#[test]
fn without_the_hosts_mount_the_error_names_it() {
    let (dir, _mount) = prepare();
    let scene = Scene::new("podro").expect("a scene (needs root)");
    let mut process = start(&scene, dir.path(), false);
    let line = process.wait_for_line("error: ", START).expect("an error");
    assert!(line.contains("/proc/sys/net/ipv4/conf/nm0/") && line.contains("mount the host's /proc/sys/net"), "{line}");
    assert_eq!(process.wait(Duration::from_secs(5)).unwrap().code(), Some(1));
}
