//! HTTP: pinned workers, one a core, each with its own listener, runtime and connections.
//!
//! [`worker`] accepts connections ([`connections`] counts them), [`connection`] serves one by HTTP/1 or HTTP/2 ([`stream`]
//! bounds its waits and closes it, [`tls`] is what HTTPS is served with). [`peer`] is who sends, [`access`] whether they may.
//! [`route`] picks the handler, [`body`] reads within limits, [`inflate`] decompresses within the same ones, [`headers`] are
//! on every answer, [`origin`] is the request's id and trace. [`ingest`] turns a body into a block and waits for its acknowledgement; [`status`], [`health`] and
//! [`observe`] answer questions, [`batches`] is for operators, [`dashboard`] shows them to people, [`openapi`] describes all of it and [`codes`] every
//! error. [`app`] is what all workers share.
//!
//! Invariant: on the path from socket to ring nothing takes a lock that another core can hold (but while somebody looks
//! at the latest batches, [`crate::status::recent`]), and nothing blocks: what must ask Redis or PostgreSQL goes through [`crate::status::lookup`].

pub mod access;
pub mod app;
pub mod batches;
pub mod body;
pub mod codes;
pub mod connection;
pub mod connections;
pub mod dashboard;
pub mod headers;
pub mod health;
pub mod inflate;
pub mod ingest;
pub mod observe;
pub mod openapi;
pub mod origin;
pub mod peer;
pub mod problem;
pub mod query;
pub mod route;
pub mod site;
pub mod status;
pub mod stream;
pub mod submission;
pub mod tls;
pub mod worker;
