//! How many connections there are, in all and from one address.
//!
//! Its lock is taken when a connection begins and when it ends, never on a request's way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::auth::clients::client_of;

/// The connections of all workers.
pub struct Connections {
    max: usize,
    per_client_max: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// `MAX_CONNECTIONS`.
    Server,
    /// `MAX_CONNECTIONS_PER_ADDRESS`.
    Client,
}

/// A connection that counts until it is dropped.
pub struct Connected {
    connections: Arc<Connections>,
    client: IpAddr,
}

impl Connections {
    /// Room for `max` connections, `per_client_max` of them from one address.
    pub fn new(max: usize, per_client_max: usize) -> Arc<Self> {
        Arc::new(Self { max, per_client_max, open: Mutex::default() })
    }

    /// Counts a connection from `address`.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Connected, Full> {
        let client = client_of(address);
        let mut open = self.open.lock();
        if open.total >= self.max {
            return Err(Full::Server);
        }
        let count = open.by_client.entry(client).or_insert(0);
        if *count >= self.per_client_max {
            return Err(Full::Client);
        }
        *count += 1;
        open.total += 1;
        Ok(Connected { connections: Arc::clone(self), client })
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock();
        open.total -= 1;
        if let Some(count) = open.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn connections_are_bounded_in_all_and_for_each_client() {
        let connections = Connections::new(3, 2);
        let a = [(); 2].map(|()| connections.enter(address("192.0.2.1")).ok());
        assert_eq!(connections.enter(address("192.0.2.1")).err(), Some(Full::Client));
        assert_eq!(connections.enter(address("::ffff:192.0.2.1")).err(), Some(Full::Client), "the same, mapped");
        let b = connections.enter(address("2001:db8::1")).ok();
        assert_eq!(connections.enter(address("192.0.2.3")).err(), Some(Full::Server));
        drop(b);
        drop(a);
        let c = [(); 2].map(|()| connections.enter(address("2001:db8::1")).ok());
        assert_eq!(connections.enter(address("2001:db8::ffff:1")).err(), Some(Full::Client), "the same /64");
        assert!(connections.enter(address("2001:db8:0:1::1")).is_ok());
        drop(c);
        assert!(connections.open.lock().by_client.is_empty(), "nothing is kept of who has gone");
    }
}
