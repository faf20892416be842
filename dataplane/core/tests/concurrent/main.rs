//! Threads at one connection table; also under Miri (`make miri`), and apart from the tests that Miri is too slow for.

mod linearisable;
mod stress;
