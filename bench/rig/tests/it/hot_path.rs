//! The compiled packet path: counts its instructions and inspects them. Needs valgrind and objdump (`make setup`).

use std::path::{Path, PathBuf};
use std::process::Command;

/// The most instructions of one ordinary packet of a known connection, counted by valgrind: about a tenth above the
/// current number. Lower them when the path gets shorter.
const IPV4_MOST: u64 = 410;
const IPV6_MOST: u64 = 490;
const BATCH: u64 = 64;
/// Batches of the shorter and of the longer run: what they differ in is the packet path alone.
const BATCHES: [u64; 2] = [100, 600];
/// The packet path's outermost function; the straight line for ordinary packets is inlined into it.
const PROCESS: &str = "nomagic_core::pipeline::process";

fn output(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e} (is it installed? `make setup`)"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{command:?}: {}\n{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout) + &text(&out.stderr)
}

/// A program that only forwards ordinary packets, optimised as for production.
fn program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    output(Command::new(cargo).current_dir(&root).args(["build", "--release", "--locked", "-p", "nomagic-core", "--example", "hot_path"]));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("release/examples/hot_path")
}

fn instructions(program: &Path, batches: u64, family: &str) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", &format!("--toggle-collect={PROCESS}")]);
    let said = output(valgrind.arg(program).arg(batches.to_string()).arg(family));
    let count = said.lines().find_map(|l| l.split_once("Collected : ")).and_then(|(_, n)| n.trim().parse().ok());
    count.filter(|&n| n > 0).unwrap_or_else(|| panic!("no count in what valgrind said:\n{said}"))
}

#[test]
fn an_ordinary_packet_takes_few_instructions_and_none_is_locked() {
    let program = program();
    for (family, most) in [("v4", IPV4_MOST), ("v6", IPV6_MOST)] {
        let [short, long] = BATCHES.map(|batches| instructions(&program, batches, family));
        let each = (long - short) / ((BATCHES[1] - BATCHES[0]) * BATCH);
        println!("{family}: {each} instructions a packet, at most {most}");
        assert!(each > 100, "{each} instructions cannot be the packet path");
        assert!(each <= most, "the packet path has grown: see the flame of `valgrind --tool=callgrind --dump-instr=yes`");
    }
    let code = output(Command::new("objdump").args(["-d", "-C", "--no-show-raw-insn", &format!("--disassemble={PROCESS}")]).arg(&program));
    let instructions: Vec<&str> = code.lines().filter_map(|l| l.split_once(":\t").map(|(_, i)| i.trim())).collect();
    assert!(instructions.len() > 300, "{} instructions of `{PROCESS}` found", instructions.len());
    let slow = ["lock ", "xchg ", "mfence", "cpuid"];
    // Two bytes of padding look like an exchange.
    let padding = |i: &str| i.split_whitespace().eq(["xchg", "%ax,%ax"]);
    let locked: Vec<&&str> = instructions.iter().filter(|i| slow.iter().any(|s| i.starts_with(s)) && !padding(i)).collect();
    assert!(locked.is_empty(), "locked instructions on the packet path: {locked:?}");
    println!("{} instructions in `{PROCESS}`, none locked", instructions.len());
}
