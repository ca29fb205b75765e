//! `may-listener PORT WORKERS`: may_minihttp reads a body to its end and answers 202.

use std::io::{self, Read};

use may_minihttp::{HttpServer, HttpService, Request, Response};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone)]
struct Discard;

impl HttpService for Discard {
    fn call(&mut self, request: Request, response: &mut Response) -> io::Result<()> {
        let mut body = Vec::new();
        request.body().read_to_end(&mut body)?;
        std::hint::black_box(&body);
        response.status_code(202, "Accepted");
        response.body("{\"status\":\"queued\"}");
        Ok(())
    }
}

fn main() {
    let arguments: Vec<usize> = std::env::args().skip(1).map(|number| number.parse().expect("a number")).collect();
    let [port, workers] = arguments[..] else { panic!("usage: may-listener PORT WORKERS") };
    may::config().set_workers(workers).set_pool_capacity(1000).set_stack_size(0x4000);
    let server = HttpServer(Discard).start(format!("127.0.0.1:{port}")).expect("a free port");
    println!("listening");
    server.wait();
}
