//! The integration tests of the testbed, in one binary.

mod scene;
mod signals;
