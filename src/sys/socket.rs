//! A TCP socket of this process that a library keeps to itself, found by a mark that its options carry.
#![allow(unsafe_code)]

use std::net::TcpStream;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::net::sockopt::tcp_user_timeout;

/// The socket whose `TCP_USER_TIMEOUT` is `mark` milliseconds, as a descriptor of its own; `None` when there is none.
/// Looks at every descriptor of the process: for rare occasions.
pub fn find_by_user_timeout(mark: u32) -> Option<TcpStream> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?;
    let mut numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    numbers.find_map(|number| {
        // SAFETY: the descriptor may be closed, or become another file's, at any moment. It is only asked for an option
        // and duplicated, both of which answer an error then; what is used is the duplicate, and that is ours.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        let owned = (tcp_user_timeout(borrowed) == Ok(mark)).then(|| borrowed.try_clone_to_owned().ok()).flatten()?;
        (tcp_user_timeout(&owned) == Ok(mark)).then(|| TcpStream::from(owned))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Shutdown, TcpListener};

    use rustix::net::sockopt::set_tcp_user_timeout;

    use super::*;

    #[test]
    fn a_marked_socket_is_found_and_can_be_shut_down_from_outside() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut streams: Vec<TcpStream> = (0..3)
            .map(|_| TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens"))
            .collect();
        for (stream, mark) in streams.iter().zip([914_001, 914_002, 914_003]) {
            set_tcp_user_timeout(stream, mark).expect("an option of every TCP socket");
        }
        let found = find_by_user_timeout(914_002).expect("it is there");
        assert_eq!(found.local_addr().expect("a socket"), streams[1].local_addr().expect("a socket"));
        found.shutdown(Shutdown::Both).expect("it is connected");
        assert_eq!(streams[1].read(&mut [0]).expect("its end"), 0);
        streams.remove(1);
        drop(found);
        assert!(find_by_user_timeout(914_002).is_none());
    }
}
