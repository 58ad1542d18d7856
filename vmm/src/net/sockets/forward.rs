//! Published ports: the sockets that listen, and a socket of its own for each sender of datagrams.
//!
//! Invariant: a sender's datagrams reach one flow in their order, whichever socket the kernel gave them to.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use openshell_usernet::FlowId;
use openshell_usernet::sockets::{ForwardId, HostError};

use crate::config::publish::PublishedPort;
use crate::sys::inet;

use super::udp::Udp;
use super::{HostSockets, Socket, told};

impl HostSockets {
    /// As [`openshell_usernet::Sockets::udp_accept`].
    pub(super) fn accept_datagram(
        &mut self,
        forward: ForwardId,
        flow: FlowId,
    ) -> Result<Option<SocketAddr>, HostError> {
        let mut bytes = self.take_overflow();
        let accepted = loop {
            match self.next_datagram(forward, flow, &mut bytes) {
                Ok(Next::Elsewhere) => {}
                Ok(Next::Empty) => break Ok(None),
                Ok(Next::Visitor(peer)) => break Ok(Some(peer)),
                Err(error) => break Err(error),
            }
        };
        self.overflow = bytes;
        accepted
    }

    fn next_datagram(
        &mut self,
        forward: ForwardId,
        flow: FlowId,
        bytes: &mut [u8],
    ) -> Result<Next, HostError> {
        let Some(PublishedPort { spec, socket }) = self.forwards.get(usize::from(forward.0)) else {
            return Err(HostError::Other(libc::EBADF));
        };
        let mut local = spec.host;
        let got = match inet::receive_datagram(socket.as_fd(), &mut [&mut *bytes]) {
            Ok(got) => got,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(Next::Empty),
            Err(error) => return Err(told(&error)),
        };
        let Some(peer) = got.from else { return Ok(Next::Elsewhere) };
        let visitor = (forward, peer);
        let data = &bytes[..got.len];
        if let Some(&known) = self.visitors.get(&visitor)
            && let Some(Socket::Udp(udp)) = self.find(known)
        {
            if udp.keep(data) {
                self.woken.push(known);
            } else {
                self.counters.datagrams_unread += 1;
            }
            return Ok(Next::Elsewhere);
        }
        self.admit(flow)?;
        // Answers come from the address that was asked.
        if let Some(to) = got.to {
            local.set_ip(to);
        }
        let mut udp = Udp::between(Some(local), peer).map_err(|error| told(&error))?;
        udp.visitor = Some(visitor);
        udp.keep(data);
        self.keep(flow, Socket::Udp(Box::new(udp)))?;
        self.visitors.insert(visitor, flow);
        Ok(Next::Visitor(peer))
    }
}

enum Next {
    /// Nothing waits.
    Empty,
    /// It went to a flow that is known, or nowhere.
    Elsewhere,
    /// Somebody new.
    Visitor(SocketAddr),
}
