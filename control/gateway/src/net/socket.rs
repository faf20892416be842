//! Netlink sockets: one for requests and dumps, one for the kernel's notifications.
//!
//! rtnetlink's `Handle` (0.24) does not fit: it drops message headers, so a dump interrupted by a change (`NLM_F_DUMP_INTR`) looks
//! complete; it queues notifications without a limit; and it needs an async runtime, which `nomagic cleanup` and the start do not have.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{AsyncSocket, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

use super::NetError;

/// Receive buffer, bytes. The kernel sends datagrams of at most 32 KiB.
const DATAGRAM_MAX: usize = 64 << 10;
/// Time limit for a response. The kernel responds while the request is being sent, so this is never reached in practice.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Attempts at a dump that the kernel reports as inconsistent because the table changed meanwhile.
const DUMP_TRIES: u32 = 5;

/// RTM_NEWNEXTHOP to RTM_GETNEXTHOP of linux/rtnetlink.h: neither libc nor the packet crate knows next hop objects.
const NEXT_HOP_TYPES: std::ops::RangeInclusive<u16> = 104..=106;

/// A message with its header.
type Received = (NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>);

/// Splits a datagram into messages. A malformed one, or one of an unknown type, is an error with its type; those after it are still returned.
fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Received, u16>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = NetlinkBuffer::new_checked(rest).ok()?;
        let (length, kind) = (header.length() as usize, header.message_type());
        let (one, more) = rest.split_at_checked(length)?;
        rest = more.get(length.next_multiple_of(4) - length..).unwrap_or_default();
        Some(NetlinkMessage::<RouteNetlinkMessage>::deserialize(one).map(NetlinkMessage::into_parts).map_err(|_| kind))
    })
}

fn socket_error(what: &'static str) -> impl FnOnce(io::Error) -> NetError {
    move |source| NetError::Socket { what, source }
}

/// A socket for requests. Calls block until the kernel has responded, which it does at once.
pub(super) struct Requests {
    socket: Socket,
    sequence: u32,
    buf: Vec<u8>,
}

impl Requests {
    pub(super) fn open() -> Result<Requests, NetError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(socket_error("open"))?;
        socket.bind_auto().map_err(socket_error("bind"))?;
        socket.set_non_blocking(true).map_err(socket_error("configure"))?;
        Ok(Requests { socket, sequence: 0, buf: Vec::with_capacity(DATAGRAM_MAX) })
    }

    /// Like `open`, with filtered dumps. Kernels before 4.20 do not filter and send whole tables.
    pub(super) fn open_strict() -> Result<Requests, NetError> {
        let requests = Requests::open()?;
        if let Err(e) = requests.socket.set_netlink_get_strict_chk(true) {
            tracing::debug!("the kernel does not filter dumps: {e}");
        }
        Ok(requests)
    }

    /// Sends a request and waits for the acknowledgement. `what` completes the error "the kernel refused to ...".
    pub(super) fn request(&mut self, what: impl FnOnce() -> String, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetError> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        let deadline = Instant::now() + RESPONSE_TIMEOUT;
        loop {
            let Some(datagram) = receive_until(&self.socket, &mut self.buf, deadline)? else { return Err(NetError::NoResponse(what())) };
            for (header, payload) in messages(datagram).flatten() {
                let NetlinkPayload::Error(response) = payload else { continue };
                match response.code {
                    _ if header.sequence_number != self.sequence => {}
                    None => return Ok(()),
                    Some(_) => return Err(NetError::Refused { what: what(), source: response.to_io() }),
                }
            }
        }
    }

    /// Dumps a table. Repeats a dump that was interrupted by a change; counts and skips malformed messages.
    pub(super) fn dump(&mut self, what: &str, message: RouteNetlinkMessage) -> Result<Dump, NetError> {
        for _ in 0..DUMP_TRIES {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if let Some(dump) = self.read_dump(what)? {
                return Ok(dump);
            }
        }
        Err(NetError::NoResponse(what.to_owned()))
    }

    /// `None`: the dump is inconsistent.
    fn read_dump(&mut self, what: &str) -> Result<Option<Dump>, NetError> {
        let mut dump = Dump::default();
        let mut consistent = true;
        loop {
            let deadline = Instant::now() + RESPONSE_TIMEOUT;
            let Some(datagram) = receive_until(&self.socket, &mut self.buf, deadline)? else {
                return Err(NetError::NoResponse(what.to_owned()));
            };
            for message in messages(datagram) {
                let Ok((header, payload)) = message else {
                    dump.malformed += 1;
                    continue;
                };
                if header.sequence_number != self.sequence {
                    continue;
                }
                consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                match payload {
                    NetlinkPayload::InnerMessage(inner) => dump.messages.push(inner),
                    NetlinkPayload::Done(_) => return Ok(consistent.then_some(dump)),
                    NetlinkPayload::Error(e) if e.code.is_some() => {
                        return Err(NetError::Refused { what: what.to_owned(), source: e.to_io() });
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (flags, self.sequence);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(drop).map_err(socket_error("send"))
    }
}

/// A dumped table.
#[derive(Default)]
pub(super) struct Dump {
    pub(super) messages: Vec<RouteNetlinkMessage>,
    /// Number of malformed messages.
    pub(super) malformed: u64,
}

/// Receives one datagram; `None` after the deadline.
fn receive_until<'b>(socket: &Socket, buf: &'b mut Vec<u8>, deadline: Instant) -> Result<Option<&'b [u8]>, NetError> {
    loop {
        buf.clear();
        match socket.recv(buf, 0) {
            Ok(_) => return Ok(Some(buf)),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => std::thread::sleep(Duration::from_micros(200)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(source) => return Err(NetError::Socket { what: "receive", source }),
        }
    }
}

/// An item read from the notification socket.
pub(super) enum Notification {
    /// A message and its header's flags.
    Message(RouteNetlinkMessage, u16),
    /// A next hop object was added, replaced or deleted.
    NextHop,
    /// A message that could not be parsed.
    Malformed,
    /// Notifications were lost: all tables must be read again.
    Overrun,
}

/// A socket that receives notifications.
pub(super) struct Notifications {
    socket: TokioSocket,
    buf: Vec<u8>,
    /// The datagram that `wait` received into `buf` and `drain` has not processed yet.
    first: Option<io::Result<()>>,
}

impl Notifications {
    /// Joins these multicast groups. Must be called in a tokio runtime.
    pub(super) fn open(groups: &[u32], receive_buffer_bytes: u32) -> Result<Notifications, NetError> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(socket_error("open"))?;
        socket.socket_mut().bind_auto().map_err(socket_error("bind"))?;
        // The kernel doubles the value for its own bookkeeping.
        let size = i32::try_from(receive_buffer_bytes / 2).unwrap_or(i32::MAX);
        socket.socket_ref().set_rx_buf_sz(size).map_err(socket_error("set the receive buffer"))?;
        for group in groups {
            socket.socket_ref().add_membership(*group).map_err(socket_error("join a notification group"))?;
        }
        Ok(Notifications { socket, buf: Vec::with_capacity(DATAGRAM_MAX), first: None })
    }

    /// Waits for a datagram. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        let Notifications { socket, buf, first } = self;
        if first.is_none() {
            *first = Some(poll_fn(|cx| poll_datagram(socket, buf, cx)).await);
        }
    }

    /// Processes the received datagrams, at most `datagrams_max`. False when more may be left.
    pub(super) fn drain(&mut self, datagrams_max: u32, mut handle: impl FnMut(Notification)) -> Result<bool, NetError> {
        let Notifications { socket, buf, first } = self;
        let mut now = Context::from_waker(Waker::noop());
        for _ in 0..datagrams_max {
            let received = match first.take() {
                Some(received) => received,
                None => match poll_datagram(socket, buf, &mut now) {
                    Poll::Ready(received) => received,
                    Poll::Pending => return Ok(true),
                },
            };
            match received {
                Ok(()) => messages(buf).for_each(|message| match message {
                    Ok((header, NetlinkPayload::InnerMessage(inner))) => handle(Notification::Message(inner, header.flags)),
                    Ok(_) => {}
                    Err(kind) if NEXT_HOP_TYPES.contains(&kind) => handle(Notification::NextHop),
                    Err(_) => handle(Notification::Malformed),
                }),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => handle(Notification::Overrun),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(NetError::Socket { what: "receive", source }),
            }
        }
        Ok(false)
    }
}

fn poll_datagram(socket: &TokioSocket, buf: &mut Vec<u8>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    buf.clear();
    socket.poll_recv(cx, buf)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    fn bytes(index: u32) -> Vec<u8> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn indexes(datagram: &[u8]) -> Vec<Option<u32>> {
        let index = |m| match m {
            Ok((_, NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(l)))) => Some(l.header.index),
            _ => None,
        };
        messages(datagram).map(index).collect()
    }

    #[test]
    fn a_malformed_message_does_not_affect_the_others() {
        let mut datagram = bytes(1);
        let mut broken = bytes(2);
        // An attribute length beyond the end of the message.
        broken.extend_from_slice(&[0xff, 0xff, 3, 0]);
        let length = broken.len() as u32;
        broken[..4].copy_from_slice(&length.to_ne_bytes());
        datagram.extend(broken);
        datagram.extend(bytes(3));
        assert_eq!(indexes(&datagram), [Some(1), None, Some(3)]);
    }

    #[test]
    fn truncated_and_inconsistent_datagrams_are_ignored() {
        let two = [bytes(1), bytes(2)].concat();
        for cut in 0..two.len() {
            let found = indexes(&two[..cut]);
            assert!(found.len() <= 1, "{cut}: {found:?}");
        }
        for lie in [0u32, 1, 15, u32::MAX] {
            let mut one = bytes(1);
            one[..4].copy_from_slice(&lie.to_ne_bytes());
            assert!(indexes(&one).is_empty());
        }
    }
}
