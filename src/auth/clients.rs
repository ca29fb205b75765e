//! Something for each client address, for a bounded number of addresses.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use papaya::HashMap;

use crate::limits::CLIENTS_REMEMBERED_MAX;

/// Who has `address`: a host of IPv6 has a whole /64 (RFC 4291), and may change its address within it as it likes.
pub fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

struct Entry<T> {
    of_client: Arc<T>,
    /// Seconds since the map was made.
    used_at: AtomicU32,
}

/// A `T` for each client, lock-free. An entry that is not used for a while is forgotten; when there are too many, all
/// are: whoever has so many addresses is not held back by any count of them, and memory must be bounded.
pub struct Clients<T> {
    entries: HashMap<IpAddr, Entry<T>>,
    begun: Instant,
    kept: Duration,
    make: Box<dyn Fn() -> T + Send + Sync>,
}

impl<T> Clients<T> {
    /// No client yet; each will get what `make` makes, and keeps it for `kept` after its last use.
    pub fn new(kept: Duration, make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self { entries: HashMap::new(), begun: Instant::now(), kept, make: Box::new(make) }
    }

    /// What belongs to the client at `address`.
    pub fn of(&self, address: IpAddr) -> Arc<T> {
        let entries = self.entries.pin();
        if entries.len() >= CLIENTS_REMEMBERED_MAX {
            entries.clear();
        }
        let entry = entries.get_or_insert_with(client_of(address), || Entry {
            of_client: Arc::new((self.make)()),
            used_at: AtomicU32::new(0),
        });
        entry.used_at.store(self.seconds(Instant::now()), Ordering::Relaxed);
        Arc::clone(&entry.of_client)
    }

    /// Forgets whom nothing was heard of for long. Called now and then.
    pub fn forget_idle(&self, now: Instant) {
        let oldest = self.seconds(now).saturating_sub(self.kept.as_secs() as u32);
        self.entries.pin().retain(|_, entry| entry.used_at.load(Ordering::Relaxed) >= oldest);
    }

    fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.begun).as_secs()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_what_it_got_until_it_is_idle() {
        let clients = Clients::new(Duration::from_secs(60), || ());
        let address: IpAddr = "192.0.2.1".parse().expect("address");
        let first = clients.of(address);
        assert!(Arc::ptr_eq(&first, &clients.of("::ffff:192.0.2.1".parse().expect("address"))));
        assert!(!Arc::ptr_eq(&first, &clients.of("192.0.2.2".parse().expect("address"))));
        clients.forget_idle(Instant::now() + Duration::from_secs(59));
        assert!(Arc::ptr_eq(&first, &clients.of(address)));
        clients.forget_idle(Instant::now() + Duration::from_secs(62));
        assert!(!Arc::ptr_eq(&first, &clients.of(address)));
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client_and_their_number_is_bounded() {
        let clients = Clients::new(Duration::from_secs(60), || ());
        let address = |text: &str| text.parse::<IpAddr>().expect("address");
        assert!(Arc::ptr_eq(&clients.of(address("2001:db8::1")), &clients.of(address("2001:db8::ffff:1"))));
        for number in 0..CLIENTS_REMEMBERED_MAX as u32 + 10 {
            clients.of(IpAddr::V4(number.into()));
        }
        assert!(clients.entries.len() <= CLIENTS_REMEMBERED_MAX);
    }
}
