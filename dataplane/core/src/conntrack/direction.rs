//! The two directions of a connection.

/// Which way a packet of a connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Client to Service.
    Original = 0,
    /// Backend to client.
    Reply = 1,
}
