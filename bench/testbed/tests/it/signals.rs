//! A signal or a crash leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nomagic_testbed::rig::{Netns, remove_leftovers};

/// A running `nomagic-testbed scene` and its namespaces.
fn scene() -> (Child, Vec<String>) {
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_nomagic-testbed")).arg("scene").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let names = lines.take_while(|l| !l.contains("is ready")).filter_map(|l| l.split_whitespace().nth(4).map(str::to_owned)).collect();
    (child, names)
}

fn standing(names: &[String]) -> usize {
    names.iter().filter(|n| std::path::Path::new("/run/netns").join(n).exists()).count()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn signals_take_the_scene_down() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let (mut child, names) = scene();
        assert_eq!((names.len(), standing(&names)), (6, 6), "{names:?}");
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(standing(&names), 0);
    }
}

#[test]
fn the_next_start_removes_what_a_crash_left() {
    let own = Netns::new("living").unwrap();
    let (mut child, names) = scene();
    signal(&child, "KILL");
    child.wait().unwrap();
    assert_eq!(standing(&names), 6);
    // Another test may do the same at this moment.
    for _ in 0..100 {
        remove_leftovers();
        if standing(&names) == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(standing(&names), 0);
    assert!(own.path().exists(), "a living process's namespace stays");
}
