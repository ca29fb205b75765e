//! Listening sockets: one a worker and address, sharing the port by `SO_REUSEPORT`, so that the kernel
//! spreads connections and no worker wakes for another's.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::LISTEN_BACKLOG;
use crate::server::ServeError;

/// Bound and listening sockets.
pub struct Bound {
    /// By worker: one listener an address.
    pub listeners: Vec<Vec<TcpListener>>,
    /// The addresses, with the ports that the kernel chose where port 0 was asked.
    pub addresses: Vec<SocketAddr>,
}

/// Binds every address once a worker.
///
/// # Errors
/// An address that is in use, even by a process that shares its port, or not of this machine.
pub fn bind(addresses: &[SocketAddr], workers: usize) -> Result<Bound, ServeError> {
    let mut bound = Bound { listeners: (0..workers).map(|_| Vec::new()).collect(), addresses: Vec::new() };
    for address in addresses {
        let address = probe(*address).map_err(|error| refused(*address, &error))?;
        bound.addresses.push(address);
        for listeners in &mut bound.listeners {
            listeners.push(listen(address).map_err(|error| refused(address, &error))?);
        }
    }
    Ok(bound)
}

/// Binds without sharing, to find out whether the port is free: with `SO_REUSEPORT` a second server of the
/// same user would silently take half of the connections.
fn probe(address: SocketAddr) -> std::io::Result<SocketAddr> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a server that has just stopped linger in TIME_WAIT; they are no reason to refuse.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.local_addr()?.as_socket().ok_or_else(|| std::io::Error::other("not an IP address"))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

fn refused(address: SocketAddr, error: &std::io::Error) -> ServeError {
    let advice = match error.kind() {
        std::io::ErrorKind::AddrInUse => "stop the program that is listening there, or set LISTEN_ADDR to another port",
        std::io::ErrorKind::PermissionDenied => "ports below 1024 require a privilege; set LISTEN_ADDR to another port",
        _ => "check LISTEN_ADDR",
    };
    ServeError::Failed(format!("cannot listen on {address}: {error}; {advice}"))
}
