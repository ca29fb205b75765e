//! What several nodes on one machine need: ports that stay theirs, and nginx before them with the files of `deploy/nginx`.
//!
//! `tests/many_nodes.rs` and `perf/cluster.sh` share this. What is shipped is what is tried: only addresses, folders and the
//! nodes' names are put in, and a file that has changed so far that they cannot be put in is a panic.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// How many ports below the ephemeral ones are tried.
const PORTS: u16 = 10_000;

/// A port on 127.0.0.1 for a server that goes away and comes back: free now, and below those that the system gives to
/// outgoing connections, of which one would take it meanwhile.
pub fn lasting_port() -> u16 {
    static TURN: AtomicU16 = AtomicU16::new(0);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let ephemeral: u16 = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32768);
    assert!(ephemeral > PORTS + 1024, "no room below port {ephemeral}: see /proc/sys/net/ipv4/ip_local_port_range");
    // Where another process begins, so that two seldom try the same one.
    let begin = (std::process::id() % u32::from(PORTS)) as u16;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    // The turn only has to differ; it orders nothing.
    let turns = (0..PORTS).map(|_| TURN.fetch_add(1, Ordering::Relaxed));
    let mut ports = turns.map(|turn| ephemeral - PORTS + begin.wrapping_add(turn) % PORTS);
    ports.find(free).expect("a free port below the ephemeral ones")
}

/// A folder with the files of `deploy/nginx` for some nodes and a port.
#[derive(Debug)]
pub struct NginxFiles {
    folder: PathBuf,
    port: u16,
}

impl NginxFiles {
    /// Writes them into `folder`, for nodes on `nodes` of 127.0.0.1, to serve on `port` there.
    pub fn write(folder: &Path, port: u16, nodes: &[u16]) -> Self {
        let files = Self { folder: folder.to_owned(), port };
        let scratch = folder.join("tmp");
        fs::create_dir_all(&scratch).expect("the folder is ours");
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!(" {kind}_temp_path {}/{kind};", scratch.display()))
            .concat();
        let main = shipped("nginx.conf");
        let main = put(&main, "\nhttp {", &format!("\nhttp {{{paths}"));
        files.save("nginx.conf", &put(&main, "/var/log/nginx", &folder.display().to_string()));
        let server = put(&shipped("server.conf"), "    listen [::]:8000;\n", "");
        files.save("server.conf", &put(&server, "listen 8000", &format!("listen 127.0.0.1:{port}")));
        files.save("locations.conf", &shipped("locations.conf"));
        files.write_nodes(nodes);
        files
    }

    /// The nodes anew; nginx sees them once it is told to reload.
    pub fn write_nodes(&self, nodes: &[u16]) {
        let shipped = shipped("upstreams.conf");
        let mut text = String::new();
        for line in shipped.split_inclusive('\n') {
            if line.contains("server ingestd-1:8000") {
                text.extend(nodes.iter().map(|port| line.replace("ingestd-1:8000", &format!("127.0.0.1:{port}"))));
            } else if !line.contains("server ingestd-2:8000") {
                text.push_str(line);
            }
        }
        let groups = shipped.matches("\nupstream ").count();
        assert!(groups > 0 && text.matches("server 127.0.0.1:").count() == groups * nodes.len(), "{text}");
        self.save("upstreams.conf", &text);
    }

    /// nginx in the foreground. SIGQUIT and SIGTERM end it with its workers, SIGKILL leaves them behind.
    pub fn command(&self) -> Command {
        let in_folder = |name: &str| self.folder.join(name);
        let mut command = Command::new(nginx_program());
        command
            .arg("-p")
            .arg(&self.folder)
            .arg("-c")
            .arg(in_folder("nginx.conf"))
            .arg("-e")
            .arg(in_folder("error.log"));
        command.args(["-g", &format!("pid {}; daemon off;", in_folder("pid").display())]);
        command.stdin(Stdio::null());
        command
    }

    /// Where it serves.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it logs of requests, a line of JSON each.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.folder.join("access.log")).unwrap_or_default()
    }

    /// What it complains of.
    pub fn error_log(&self) -> String {
        fs::read_to_string(self.folder.join("error.log")).unwrap_or_default()
    }

    fn save(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).expect("the folder is ours");
    }
}

/// The processes that `pid` has started and that have not ended.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn put(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "deploy/nginx has changed: no {from:?} in\n{text}");
    text.replace(from, to)
}

/// True when `program` prints its version. What is there may lack its libraries, or be another system's: deploy/setup.sh passes
/// over it for the same reason.
pub fn runs(program: &Path, version: &str) -> bool {
    let mut command = Command::new(program);
    let status = command.arg(version).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// An installed nginx, else the one that `deploy/setup.sh` brought. Debian puts it where only root looks.
fn nginx_program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let brought = Path::new(env!("CARGO_MANIFEST_DIR")).join(".setup/nginx/usr/sbin/nginx");
    let found = folders.map(|folder| folder.join("nginx")).chain([brought]).find(|program| runs(program, "-v"));
    found.expect("no nginx: run `make setup`")
}
