//! `nomagic-bench floods`: how floods affect honest clients, with nomagic and with the kernel's rules.
//!
//! Honest [`clients`] open connections at a steady rate and use some that are established, over real sockets. Beside them a [`sender`] floods the
//! same Service with forged frames of one [`kind`]. [`cli`] runs each flood through each subject and prints what share of the clients' tries
//! succeeded within a second.

pub mod cli;
pub mod clients;
pub mod kind;
pub mod path;
pub mod sender;
pub mod servers;
