//! Follows a packet through all base chains, in the kernel's order.
//!
//! Where a rule decides by chance, both ways are followed with their shares; where a rule asks something that is not known here, both ways
//! are followed and the second one is marked as a guess.

mod path;
mod rule;

use crate::decision::Decision;
use crate::model::{Action, Hook, Ruleset};
use crate::packet::{Node, Origin, Packet};
pub(crate) use path::{End, Event, Frame, Path, What};

/// Maximum number of rules that a packet meets, on all its ways together.
const WORK_MAX: usize = 1_000_000;

/// Maximum number of ways of a packet: of endpoints of a Service.
const PATHS_MAX: usize = 16_384;

/// Maximum number of chains that wait for the return of another one; the kernel's limit for nftables is 16.
const DEPTH_MAX: usize = 128;

/// Maximum number of ways that a rule which is not known opens.
const GUESSES_MAX: usize = 8;

pub(crate) struct Walk<'r> {
    pub rules: &'r Ruleset,
    pub node: &'r Node,
    pub packet: Packet,
    /// Ways to follow.
    pub open: Vec<Path>,
    pub done: Vec<Path>,
    work: usize,
    /// A limit ended the walk.
    pub cut: bool,
}

impl Ruleset {
    /// What the rules do with the first packet of a connection.
    pub fn follow(&self, packet: &Packet, node: &Node) -> Decision {
        let mut walk = Walk { rules: self, node, packet: *packet, open: Vec::new(), done: Vec::new(), work: 0, cut: false };
        walk.open.push(Path::new(packet));
        while let Some(path) = walk.open.pop() {
            walk.follow(path);
        }
        walk.done.reverse();
        Decision::of(&walk)
    }
}

impl Walk<'_> {
    /// Follows a path to its end, or to where it divides: its parts are added to the open ones.
    fn follow(&mut self, mut path: Path) {
        loop {
            if self.work >= WORK_MAX || path.stack.len() > DEPTH_MAX {
                self.cut = true;
                return self.done.push(path);
            }
            let Some(frame) = path.stack.last_mut() else {
                if !self.enter_next_chain(&mut path) {
                    return self.done.push(path);
                }
                continue;
            };
            let (rules, shortcut) = (&self.rules.chains[frame.chain].rules, &self.rules.chains[frame.chain].shortcut);
            if let Some(shortcut) = shortcut.as_ref().filter(|_| frame.part == 0 && frame.rule < rules.len()) {
                frame.rule = shortcut.next(&path.fields, frame.rule, rules.len());
            }
            let frame = *frame;
            if frame.rule >= rules.len() {
                self.leave(&mut path, frame);
            } else {
                self.work += 1;
                match self.step(path, frame) {
                    Some(next) => path = next,
                    None => return,
                }
            }
            if path.end.is_some() {
                return self.done.push(path);
            }
        }
    }

    /// The end of a chain: back to the caller, or the policy of a base chain.
    fn leave(&self, path: &mut Path, frame: Frame) {
        path.stack.pop();
        if path.stack.is_empty() && frame.last_resort(self.rules, path).is_some_and(|base| base.drops) {
            path.note(frame, What::Policy);
            path.end = Some(End::Drop);
        }
    }

    /// Enters the next base chain that sees this packet. False: there is none any more.
    fn enter_next_chain(&self, path: &mut Path) -> bool {
        loop {
            let v6 = self.packet.tuple.v6;
            let chains = self.rules.hooks.get(&path.hook).map_or(&[][..], Vec::as_slice);
            while let Some(id) = chains.get(path.base) {
                path.base += 1;
                let chain = &self.rules.chains[*id];
                let Some(base) = &chain.base else { continue };
                let decided = match path.hook {
                    Hook::Prerouting | Hook::Output => path.fields.dnat || path.looped,
                    _ => path.snat || path.looped,
                };
                if self.rules.tables[chain.table].family.has(v6) && !(base.nat && decided) {
                    path.stack.push(Frame { chain: *id, rule: 0, part: 0 });
                    return true;
                }
            }
            let to_node = self.node.is_local(path.fields.tuple.dst_addr());
            let next = match path.hook {
                Hook::Prerouting if to_node => Hook::Input,
                Hook::Prerouting => Hook::Forward,
                Hook::Forward | Hook::Output => Hook::Postrouting,
                // By the loopback interface; the connection keeps its translation.
                Hook::Postrouting if self.packet.origin == Origin::Node && to_node && !path.looped => {
                    path.looped = true;
                    Hook::Prerouting
                }
                Hook::Postrouting | Hook::Input => return false,
            };
            (path.hook, path.base) = (next, 0);
        }
    }

    /// Adds a way with its share, unless there are too many.
    fn fork(&mut self, path: Path) {
        if self.open.len() + self.done.len() >= PATHS_MAX {
            self.cut = true;
            return;
        }
        self.open.push(path);
    }

    /// Adds the way on which a rule that is not known holds.
    fn guess(&mut self, mut path: Path, frame: Frame) {
        path.guesses += 1;
        path.note(frame, What::Guess);
        if path.guesses <= GUESSES_MAX {
            self.fork(path);
        } else {
            self.cut = true;
        }
    }

    /// Carries out an action of the rule at `frame`, which is on top of the stack and points behind its part.
    fn act(&self, path: &mut Path, frame: Frame, action: &Action) {
        let ends_chain = |path: &mut Path| path.stack.clear();
        match action {
            Action::Continue => path.next_rule(),
            // To the end of the chain, where a base chain's policy counts.
            Action::Return => path.stack.iter_mut().next_back().into_iter().for_each(|top| top.rule = usize::MAX),
            Action::Accept => {
                path.note(frame, What::Accept);
                ends_chain(path);
            }
            Action::Drop => {
                path.note(frame, What::Drop);
                path.end = Some(End::Drop);
            }
            Action::Reject(_) => {
                path.note(frame, What::Reject);
                path.end = Some(End::Reject);
            }
            Action::Jump(to) | Action::Goto(to) => {
                path.note(frame, What::Jump(*to));
                if matches!(action, Action::Goto(_)) {
                    path.stack.pop();
                } else {
                    path.next_rule();
                }
                path.stack.push(Frame { chain: *to, rule: 0, part: 0 });
            }
            Action::Dnat(address, port) => {
                path.translate(address.unwrap_or(path.fields.tuple.dst_addr()), *port);
                path.note(frame, What::Dnat(path.fields.tuple.dst_addr(), path.fields.tuple.dport));
                ends_chain(path);
            }
            Action::Redirect(port) => {
                let own = self.node.addresses.iter().find(|a| a.is_ipv6() == path.fields.tuple.v6).copied();
                path.translate(own.unwrap_or(path.fields.tuple.dst_addr()), *port);
                path.note(frame, What::Dnat(path.fields.tuple.dst_addr(), path.fields.tuple.dport));
                ends_chain(path);
            }
            Action::Masquerade | Action::Snat(_) => {
                path.snat = true;
                path.note(frame, What::Snat);
                ends_chain(path);
            }
            Action::Unknown(_) => {
                path.guesses += 1;
                path.note(frame, What::Guess);
                path.next_rule();
            }
        }
    }
}
