//! What the README shows: a batch, then events one by one, to the server on this machine or at the URL given.

use std::time::Duration;

use ingestd_client::{BatchOptions, Client, Compression, Error, Event, SenderOptions};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:8000".to_owned());
    let client = Client::builder(url).compression(Compression::Zstd).build()?;
    let event = Event::new("evt_200", "user-service", "user_login", &json!({"user_id": "user_456"}))?;
    let reply = client.send_batch(&[event], BatchOptions { priority: 5, ..BatchOptions::default() }).await?;
    let status = client.wait_for_batch(&reply.batch_id, Duration::from_secs(10)).await?;
    println!("{:?}: {} inserted, {} duplicates", status.status, status.inserted, status.duplicates);

    let sender = client.sender(SenderOptions::default(), |failed| eprintln!("{}", failed.error));
    for number in 0..5000 {
        sender.send(Event::new(format!("evt_{number}"), "user-service", "click", &json!({"n": number}))?).await?;
    }
    println!("{:?}", sender.close().await?);
    Ok(())
}
