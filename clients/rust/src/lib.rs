//! Sends batches of JSON events to ingestd, each exactly once, however often it has to
//! try.
//!
//! A batch has an id, chosen by the caller or made here (UUIDv7) before the first attempt. Every attempt sends the same
//! bytes under the same id, so the server knows a batch that it has already: a lost answer, a server that was killed and
//! a request that timed out are all cured by sending again. What is worth it is tried again (no connection, no answer in
//! time, 429, 502, 503, 504), after a random time that grows and honours `Retry-After`, within bounds.
//!
//! ```no_run
//! use ingestd_client::{Ack, BatchOptions, Client, Event};
//! use serde_json::json;
//!
//! # async fn example() -> Result<(), ingestd_client::Error> {
//! let client = Client::new("http://127.0.0.1:8000")?;
//! let events = [Event::new("evt_123", "user-service", "user_login", &json!({"user_id": "user_456"}))?];
//! let options = BatchOptions { ack: Some(Ack::Commit), ..BatchOptions::default() };
//! let reply = client.send_batch(&events, options).await?;
//! println!("{}: {} inserted", reply.batch_id, reply.inserted.unwrap_or(0));
//! # Ok(())
//! # }
//! ```
//!
//! Events that come one by one go through a [`Sender`], which gathers them:
//!
//! ```no_run
//! # use ingestd_client::{Client, Error, Event, SenderOptions};
//! # async fn example() -> Result<(), Error> {
//! let client = Client::builder("https://ingest.example").api_key("ingestd_…").build()?;
//! let sender = client.sender(SenderOptions::default(), |failed| {
//!     eprintln!("{} events were not taken: {}", failed.events.len(), failed.error);
//! });
//! sender.send(Event::new("evt_124", "user-service", "user_logout", &serde_json::json!({}))?).await?;
//! let delivered = sender.close().await?;
//! assert_eq!(delivered.failed, 0);
//! # Ok(())
//! # }
//! ```
//!
//! Payloads travel as they were written: a [`RawValue`](serde_json::value::RawValue) keeps every digit.
//!
//! Absent on purpose: proxies, redirects, HTTP/2, and a blocking interface.

mod answer;
mod body;
mod client;
mod error;
mod event;
mod retry;
mod sender;

pub use answer::{BatchReply, BatchStatus, EventError, Phase, Problem};
pub use body::Compression;
pub use client::{Client, ClientBuilder};
pub use error::Error;
pub use event::{Ack, BatchOptions, Event, Invalid};
pub use retry::RetryPolicy;
pub use sender::{Delivered, Failed, Sender, SenderOptions};
