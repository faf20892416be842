//! What the driver can do with XDP and AF_XDP, and who is there already.

use crate::preflight::drivers::{self, Driver, Version};
use crate::preflight::facts::{Machine, Wanted};
use crate::preflight::finding::{Finding, State};
use crate::preflight::nic::Nic;

/// Bits of `enum netdev_xdp_act` (linux/netdev.h).
pub const ACT_REDIRECT: u64 = 1 << 1;
/// Frames can be sent to it by XDP_REDIRECT.
pub const ACT_NDO_XMIT: u64 = 1 << 2;
/// AF_XDP without a copy.
pub const ACT_ZERO_COPY: u64 = 1 << 3;
/// From here on the kernel tells them.
const TELLS: Version = (6, 3);

/// Where an answer comes from.
enum Answer {
    /// The kernel itself.
    Kernel(bool),
    /// The table of drivers, with its note.
    Table(bool, &'static Driver),
    /// Nobody.
    Nobody(String),
}

/// The kernel's word, else the table's.
fn ask(machine: &Machine, nic: &Nic, bit: u64, since: impl Fn(&Driver) -> Option<Version>) -> Answer {
    let version = machine.version();
    match (nic.xdp_features, version) {
        (Some(bits), _) if bits != 0 => return Answer::Kernel(bits & bit != 0),
        (Some(_), Some(v)) if v >= TELLS => return Answer::Kernel(false),
        _ => {}
    }
    match (nic.driver.as_ref().ok().and_then(|d| drivers::find(d)), &nic.driver, version) {
        (Some(driver), _, Some(v)) if v < TELLS => Answer::Table(since(driver).is_some_and(|s| v >= s), driver),
        (None, Ok(driver), _) => Answer::Nobody(format!("driver {driver} is in no table here, and the kernel does not tell")),
        (_, Err(why), _) => Answer::Nobody(why.clone()),
        _ => Answer::Nobody("the kernel does not tell".into()),
    }
}

fn judge(name: &'static str, answer: Answer, wanted: &str, remedy: &str) -> Finding {
    let word = |yes| if yes { "yes" } else { "no" };
    let finding = match answer {
        Answer::Nobody(why) => Finding::unknown(name, why, wanted),
        Answer::Kernel(yes) => Finding::judged(name, yes, State::Missing, format!("{}, says the kernel", word(yes)), wanted),
        Answer::Table(yes, driver) => {
            let note = if driver.note.is_empty() { String::new() } else { format!("; {}", driver.note) };
            Finding::judged(
                name,
                yes,
                State::Missing,
                format!("{}, as upstream's driver {} of this kernel{note}", word(yes), driver.name),
                wanted,
            )
        }
    };
    finding.remedy(remedy)
}

/// XDP in the driver, with the redirect that AF_XDP lives on.
pub fn native(_: &Wanted, machine: &Machine, nic: &Nic) -> Finding {
    let answer = ask(machine, nic, ACT_REDIRECT, |d| Some(d.native));
    judge("native XDP", answer, "yes", "take a NIC or kernel whose driver has it; generic XDP is slow and says nothing about the dataplane")
}

/// AF_XDP without a copy.
pub fn zero_copy(_: &Wanted, machine: &Machine, nic: &Nic) -> Finding {
    let answer = ask(machine, nic, ACT_ZERO_COPY, |d| d.zero_copy);
    judge("AF_XDP zero-copy", answer, "yes", "take a NIC or kernel whose driver has it; copy mode works, and its figures are the copy's")
}

/// Only one program can be there.
pub fn attached(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) = ("XDP program", "none, or nomagic's own");
    let Ok(link) = &nic.link else { return Finding::unknown(name, "not known", wanted) };
    let Some(program) = &link.program else { return Finding::new(name, State::Ok, "none", wanted) };
    let id = program.id;
    match program.name.as_deref() {
        // The kernel keeps 15 bytes of a name.
        Some(n) if n.starts_with("nomagic") => {
            Finding::new(name, State::Warning, format!("`{n}`, id {id}: nomagic is or was here"), wanted)
                .remedy("nomagic status; nomagic cleanup")
        }
        n => Finding::new(name, State::Missing, format!("`{}`, id {id}: somebody else's", n.unwrap_or("no name")), wanted)
            .remedy(format!("bpftool prog show id {id}; ip link set {} xdp off    # once it is known whose", nic.name)),
    }
}
