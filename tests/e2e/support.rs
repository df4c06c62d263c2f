//! A testbed for a test: brought up by `vm-testbed/netns`, taken down whatever happens to the test.

use std::{
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

/// The program under test.
pub(crate) const STARNET: &str = env!("CARGO_BIN_EXE_starnet");

/// After this long something that should happen has failed to. Far beyond what a busy machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// Addresses of the topologies' hosts.
pub(crate) const WWW: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub(crate) const ENTRY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);

/// One testbed at a time: they share two cores.
static TURN: Mutex<()> = Mutex::new(());

/// Waits until no other test has a testbed.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Namespaces, links and starnet processes of one topology, until dropped.
pub(crate) struct Testbed {
    name: String,
    _turn: MutexGuard<'static, ()>,
}

impl Testbed {
    /// Brings a topology of `vm-testbed/topologies` up, its overlay ready to carry traffic.
    pub(crate) fn up(name: &str, topology: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the end-to-end tests make network namespaces: run them as root");
        let testbed = Self { name: testbed_name(name), _turn: turn() };
        // What an earlier run left that was killed.
        testbed.netns(&["down"]);
        testbed.bring_up_as(&testbed.name, topology);
        testbed
    }

    /// Brings a topology up under another name, which the caller takes down.
    pub(crate) fn bring_up_as(&self, name: &str, topology: &str) {
        let file = root().join("vm-testbed/topologies").join(topology).with_extension("toml");
        self.netns(&["--name", name, "up", "--topology", file.to_str().unwrap(), "--wire", wire().to_str().unwrap()]);
    }

    /// Runs `vm-testbed/netns`; it must succeed.
    pub(crate) fn netns(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "netns {}: {}", words.join(" "), text(&output.stderr));
        text(&output.stdout)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(root().join("vm-testbed/netns"));
        command.args(["--name", &self.name]).args(words).env("STARNET", STARNET).stdin(Stdio::null());
        command
    }

    /// Runs a program in a host to its end.
    pub(crate) fn run(&self, host: &str, program: &[&str]) -> Output {
        let limit = PATIENCE.as_secs().to_string();
        let words = [&["exec", host, "timeout", &limit], program].concat();
        self.command(&words).output().unwrap()
    }

    /// Starts a program in a host; it ends with the handle at the latest.
    pub(crate) fn spawn(&self, host: &str, program: &[&str]) -> Program {
        let words = [&["exec", host], program].concat();
        Program(self.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Calls `body` in a host's network namespace: sockets it makes are the host's, wherever they are used later.
    pub(crate) fn within<T: Send>(&self, host: &str, body: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}.{host}", self.name)).unwrap();
        let enter_and_call = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        };
        thread::scope(|scope| scope.spawn(enter_and_call).join().unwrap())
    }

    /// A UDP socket of a host, bound, with a time limit.
    pub(crate) fn udp(&self, host: &str, address: impl Into<SocketAddr>) -> UdpSocket {
        let address = address.into();
        let socket = self.within(host, || UdpSocket::bind(address)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Starts a server in a host that echoes every datagram.
    pub(crate) fn udp_echo(&self, host: &str, address: impl Into<SocketAddr>) {
        let socket = self.udp(host, address);
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok((length, sender)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], sender);
            }
        });
    }

    /// Starts a server in a host that echoes every connection's bytes until its end.
    pub(crate) fn tcp_echo(&self, host: &str, address: impl Into<SocketAddr>) {
        let address = address.into();
        let listener = self.within(host, || TcpListener::bind(address)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let (mut reader, mut writer) = (&stream, &stream);
                    std::io::copy(&mut reader, &mut writer)
                });
            }
        });
    }

    /// A TCP connection of a host, with a time limit.
    pub(crate) fn connect(&self, host: &str, address: impl Into<SocketAddr>) -> std::io::Result<TcpStream> {
        let address = address.into();
        let stream = self.within(host, || TcpStream::connect_timeout(&address, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Sends a signal to a host's starnet.
    pub(crate) fn signal(&self, host: &str, signal: nix::sys::signal::Signal) {
        let status: Value = serde_json::from_str(&self.netns(&["status", "--json"])).unwrap();
        let pid = status["hosts"][host]["pid"].as_i64().unwrap_or_else(|| panic!("{host} runs no starnet"));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
    }

    /// What `starnet show VIEW --json` says of a host.
    pub(crate) fn show(&self, host: &str, view: &str) -> Value {
        let said = self.netns(&["show", host, view, "--json"]);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("show {view} of {host}: {error}: {said}"))
    }

    /// A host's drop counters whose names contain `part`, added up.
    pub(crate) fn drops(&self, host: &str, part: &str) -> u64 {
        let counters = self.show(host, "drops");
        let counted =
            counters.as_array().unwrap().iter().filter(|drop| drop["counter"].as_str().unwrap().contains(part));
        counted.map(|drop| drop["packets"].as_u64().unwrap()).sum()
    }

    /// Prints what every starnet that still runs has dropped, to understand a test that failed.
    fn tell_drops(&self) {
        let status = self.command(&["status", "--json"]).output().map(|output| output.stdout).unwrap_or_default();
        let status: Value = serde_json::from_slice(&status).unwrap_or_default();
        let hosts = status["hosts"].as_object().into_iter().flatten();
        for (host, _) in hosts.filter(|(_, about)| about["pid"].is_i64() && about["role"] != "controller") {
            if let Ok(shown) = self.command(&["show", host, "drops"]).output() {
                eprintln!("--- show drops of {host}\n{}", text(&shown.stdout));
            }
        }
    }

    /// The testbed's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where its files are.
    pub(crate) fn directory(&self) -> PathBuf {
        Path::new("/run/starnet-testbed").join(&self.name)
    }

    /// A configuration file of a client without TUN, readable to all.
    pub(crate) fn forwarding_client(&self, token: &Path) -> PathBuf {
        let directory = self.directory();
        let file = directory.join("config/forward.toml");
        let ca = directory.join("tls/ca.pem");
        let config = format!(
            "[client]\ncontroller = \"10.255.0.1:4433\"\nca = {ca:?}\ntoken = {token:?}\npaths = 2\ninside = \"100.64.0.77\"\n"
        );
        std::fs::write(&file, config).unwrap();
        file
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if thread::panicking() {
            for log in std::fs::read_dir(self.directory().join("log")).into_iter().flatten().flatten() {
                let said = std::fs::read_to_string(log.path()).unwrap_or_default();
                eprintln!("--- {}\n{said}", log.path().display());
            }
            self.tell_drops();
        }
        let _ = self.command(&["down"]).output();
    }
}

/// A program that runs in a host; killed when dropped.
pub(crate) struct Program(Child);

impl Program {
    /// Ends it by SIGTERM; what it said on stdout and stderr.
    pub(crate) fn stop(self) -> String {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.output().1
    }

    /// Waits for its end; exit status and what it said on stdout and stderr.
    pub(crate) fn output(mut self) -> (Option<i32>, String) {
        let status = eventually("a program's end", || self.0.try_wait().unwrap());
        let mut said = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends `bytes` to an echoing server and checks that the same come back.
pub(crate) fn echo_tcp(stream: &TcpStream, bytes: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = stream;
            writer.write_all(bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        let mut reader = stream;
        reader.read_to_end(&mut back).unwrap();
        assert!(back == bytes, "{} bytes were sent, {} came back, not the same", bytes.len(), back.len());
    });
}

/// Polls until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = poll() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes without a pattern that a wrong offset would hide in.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The wire program. A whole `cargo test` builds it beside the program under test, as it builds all examples.
fn wire() -> PathBuf {
    let wire = Path::new(STARNET).with_file_name("examples").join("wire");
    assert!(wire.exists(), "{} is missing: cargo build --example wire", wire.display());
    wire
}

/// The same in each run, so that a run finds what an earlier one left; another one in another checkout.
fn testbed_name(test: &str) -> String {
    let mut hasher = DefaultHasher::new();
    root().hash(&mut hasher);
    format!("e2e-{:04x}-{test}", hasher.finish() as u16)
}

/// Sends a question until something comes back, an answer or an error: datagrams may be lost, and who asks by UDP asks again.
pub(crate) fn ask(socket: &UdpSocket, question: &[u8], answer: &mut [u8]) -> std::io::Result<usize> {
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answered = socket.send(question).and_then(|_| socket.recv(answer));
        if answered.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) && Instant::now() < deadline {
            continue;
        }
        return answered;
    }
}
