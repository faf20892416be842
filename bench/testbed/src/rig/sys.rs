//! System calls that std does not offer.

pub use nomagic_sys::netns::{enter as enter_netns, run_inside};
pub use nomagic_sys::process::{effective_user as effective_uid, signal};
