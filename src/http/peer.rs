//! Who is at the other end of a connection.

use std::net::IpAddr;

use crate::auth::key::Fingerprint;

/// What a connection tells about its client, the same for all its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The client's address; a proxy's when there is one in front.
    pub address: IpAddr,
    /// Of its certificate, verified against `TLS_CLIENT_CA_FILE`; `None`: it showed none, or was not asked.
    pub certificate: Option<Fingerprint>,
}
