//! `hyper-listener PORT WORKERS`: hyper in the server's shape (a `current_thread` runtime a worker, each with a listener
//! of its own) reads a body to its end and answers 202.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Socket, Type};
use tokio::task::LocalSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BUFFER_BYTES: usize = 32 * 1024;

async fn discard(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (mut incoming, mut body) = (request.into_body(), Vec::new());
    while let Some(Ok(frame)) = incoming.frame().await {
        if let Ok(data) = frame.into_data() {
            body.extend_from_slice(&data);
        }
    }
    std::hint::black_box(&body);
    let mut response = Response::new(Full::new(Bytes::from_static(b"{\"status\":\"queued\"}")));
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

fn listener(port: u16) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_port(true).expect("Linux has it");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("a free port");
    socket.listen(1024).expect("it is bound");
    socket.set_nonblocking(true).expect("it is a socket");
    socket.into()
}

async fn serve(listener: TcpListener) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let connection = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service_fn(discard));
        tokio::task::spawn_local(async { connection.await.ok() });
    }
}

fn main() {
    let arguments: Vec<u16> = std::env::args().skip(1).map(|number| number.parse().expect("a number")).collect();
    let [port, workers] = arguments[..] else { panic!("usage: hyper-listener PORT WORKERS") };
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let listener = listener(port);
            std::thread::spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                LocalSet::new().block_on(&runtime, serve(listener));
            })
        })
        .collect();
    println!("listening");
    threads.into_iter().for_each(|thread| thread.join().expect("it serves for ever"));
}
