//! Who is at the other end of a connection.

use std::net::IpAddr;

use crate::auth::key::Fingerprint;

/// What a connection tells about its client, the same for all its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The client's address; a proxy's when there is one in front.
    pub address: IpAddr,
    /// Of the client certificate that was verified; `None` without one.
    pub certificate: Option<Fingerprint>,
}
