//! The edge on real interfaces, sockets and files. Needs root.

mod child;
mod common;
mod life;
mod netns;
mod region;
mod workers;
