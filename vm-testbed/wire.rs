//! A bad link on demand: carries frames between two interfaces with delay, jitter, loss, reordering and duplication.
//!
//! The testbed runs one for each link marked `wire = true`, on the two middle ends, in a namespace of their own:
//!
//! ```text
//!   host A  veth ===== veth  [wire]  veth ===== veth  host B
//! ```
//!
//! What happens to a frame is drawn from a seed, direction by direction. Both directions can be changed while
//! frames are under way: the control socket takes one command a datagram and answers it.
//!
//! ```text
//!   set a-to-b delay_ms=10,loss=0.05    the parameters named; the others stay
//!   clear both                          all parameters to zero
//!   show                                parameters and counters as JSON
//! ```

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use clap::Parser;
use nix::{
    libc,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt},
        time::TimeSpec,
    },
};

/// How far behind its place a reordered frame is held, so that frames that follow overtake it.
const REORDER_HOLD: Duration = Duration::from_millis(3);
/// Frames held in one direction; more are dropped and counted, as a router's full queue does.
const HELD_MAX: usize = 50_000;
/// Frames taken from one interface before the other one gets its turn.
const BURST: usize = 64;
/// Room for bursts of the senders while this process waits for its turn on a core.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

#[derive(Parser)]
#[command(about = "Carries frames between two interfaces, badly")]
struct Arguments {
    /// Interface of end A
    a: String,
    /// Interface of end B
    b: String,
    /// UNIX datagram socket that takes commands
    #[arg(long)]
    control: Option<PathBuf>,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// From A to B, such as delay_ms=10,jitter_ms=1,loss=0.05,reorder=0.01,duplicate=0.01
    #[arg(long, default_value = "")]
    a_to_b: String,
    /// From B to A
    #[arg(long, default_value = "")]
    b_to_a: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let mut wire = Wire {
        ends: [packet_socket(&arguments.a)?, packet_socket(&arguments.b)?],
        directions: [
            Direction::new(arguments.seed, arguments.a_to_b.parse()?),
            Direction::new(!arguments.seed, arguments.b_to_a.parse()?),
        ],
        buffer: vec![0; 65536].into(),
    };
    let control = arguments.control.map(UnixDatagram::bind).transpose()?;
    if let Some(control) = &control {
        control.set_nonblocking(true)?;
    }
    // Not 50 us late: delays of a fraction of a millisecond matter here.
    nix::sys::prctl::set_timerslack(1)?;
    let start = Instant::now();
    loop {
        wire.wait(control.as_ref(), start.elapsed())?;
        for from in 0..2 {
            wire.receive(from, start.elapsed())?;
        }
        for from in 0..2 {
            wire.release(from, start.elapsed())?;
        }
        if let Some(control) = &control {
            wire.answer(control);
        }
    }
}

/// Two interfaces and what lies between them. Direction 0 is from end 0 (A) to end 1 (B).
struct Wire {
    ends: [OwnedFd; 2],
    directions: [Direction; 2],
    buffer: Box<[u8]>,
}

impl Wire {
    /// Sleeps until a frame or a command comes, or a held frame is due.
    fn wait(&self, control: Option<&UnixDatagram>, now: Duration) -> io::Result<()> {
        let mut fds: Vec<_> = self.ends.iter().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN)).collect();
        fds.extend(control.map(|control| PollFd::new(control.as_fd(), PollFlags::POLLIN)));
        let due = self.directions.iter().filter_map(Direction::next_due).min();
        let timeout = due.map(|due| TimeSpec::from_duration(due.saturating_sub(now)));
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what has come in at an end.
    fn receive(&mut self, from: usize, now: Duration) -> io::Result<()> {
        for _ in 0..BURST {
            match recv(self.ends[from].as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => self.directions[from].admit(now, &self.buffer[..length]),
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => break,
                // The interface is down: frames on it are lost, as they are when a cable is pulled.
                Err(nix::Error::ENETDOWN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends on what is due.
    fn release(&mut self, from: usize, now: Duration) -> io::Result<()> {
        let to = self.ends[1 - from].as_raw_fd();
        while let Some(frame) = self.directions[from].take_due(now) {
            match send(to, &frame, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => self.directions[from].counters.sent += 1,
                Err(_) => self.directions[from].counters.unsendable += 1,
            }
        }
        Ok(())
    }

    /// Does what the control socket asks for.
    fn answer(&mut self, control: &UnixDatagram) {
        let mut buffer = [0; 1024];
        while let Ok((length, sender)) = control.recv_from(&mut buffer) {
            let reply = std::str::from_utf8(&buffer[..length])
                .map_err(|error| error.to_string())
                .and_then(|command| self.command(command))
                .unwrap_or_else(|error| format!("error: {error}"));
            // An asker that has gone away misses nothing.
            let _ = control.send_to_addr(reply.as_bytes(), &sender);
        }
    }

    fn command(&mut self, command: &str) -> Result<String, String> {
        let words: Vec<_> = command.split_whitespace().collect();
        let chosen = |word: &str| match word {
            "a-to-b" => Ok(0..1),
            "b-to-a" => Ok(1..2),
            "both" => Ok(0..2),
            _ => Err(format!("{word}: not a direction (a-to-b, b-to-a, both)")),
        };
        match words[..] {
            ["set", direction, parameters] => {
                // Both or none: a typing error changes nothing.
                let mut changed = [self.directions[0].impairment, self.directions[1].impairment];
                for direction in chosen(direction)? {
                    changed[direction].set(parameters)?;
                }
                self.directions[0].impairment = changed[0];
                self.directions[1].impairment = changed[1];
            }
            ["clear", direction] => {
                for direction in chosen(direction)? {
                    self.directions[direction].impairment = Impairment::default();
                }
            }
            ["show"] => {}
            _ => return Err("what? (set DIRECTION name=value,...; clear DIRECTION; show)".into()),
        }
        for (end, direction) in self.ends.iter().zip(&mut self.directions) {
            direction.counters.missed += missed(end);
        }
        Ok(serde_json::json!({ "a_to_b": self.directions[0].show(), "b_to_a": self.directions[1].show() }).to_string())
    }
}

/// What a direction does to frames.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct Impairment {
    delay: Duration,
    /// Added to the delay, evenly between zero and this. Does not reorder.
    jitter: Duration,
    /// Shares of the frames, 0 to 1.
    loss: f64,
    reorder: f64,
    duplicate: f64,
}

impl Impairment {
    /// Sets the parameters of a list such as `delay_ms=10,loss=0.05`.
    fn set(&mut self, list: &str) -> Result<(), String> {
        for item in list.split(',').filter(|item| !item.is_empty()) {
            let (name, value) = item.split_once('=').ok_or(format!("{item}: not name=value"))?;
            let value: f64 = value.parse().map_err(|_| format!("{item}: not a number"))?;
            let most = if name.ends_with("_ms") { 60_000.0 } else { 1.0 };
            if !(0.0..=most).contains(&value) {
                return Err(format!("{item}: not between 0 and {most}"));
            }
            match name {
                "delay_ms" => self.delay = Duration::from_secs_f64(value / 1e3),
                "jitter_ms" => self.jitter = Duration::from_secs_f64(value / 1e3),
                "loss" => self.loss = value,
                "reorder" => self.reorder = value,
                "duplicate" => self.duplicate = value,
                _ => return Err(format!("{name}: unknown (delay_ms, jitter_ms, loss, reorder, duplicate)")),
            }
        }
        Ok(())
    }
}

impl FromStr for Impairment {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let mut impairment = Self::default();
        impairment.set(list)?;
        Ok(impairment)
    }
}

/// Frames: what became of them.
#[derive(Default)]
struct Counters {
    received: u64,
    sent: u64,
    lost: u64,
    reordered: u64,
    duplicated: u64,
    /// Dropped because too many were held.
    overflowed: u64,
    /// Refused by the far interface: down, or larger than its MTU.
    unsendable: u64,
    /// Dropped by the kernel because this process was too slow.
    missed: u64,
}

/// A frame on its way: when it is due, its number (equal times keep their order), its bytes.
type Held = Reverse<(Duration, u64, Box<[u8]>)>;

/// One direction of the wire.
struct Direction {
    impairment: Impairment,
    random: Random,
    held: BinaryHeap<Held>,
    /// When the last frame that keeps its place is due: none after it may be sooner.
    last_due: Duration,
    admitted: u64,
    counters: Counters,
}

impl Direction {
    fn new(seed: u64, impairment: Impairment) -> Self {
        Self {
            impairment,
            random: Random(seed),
            held: BinaryHeap::new(),
            last_due: Duration::ZERO,
            admitted: 0,
            counters: Counters::default(),
        }
    }

    /// Decides a frame's fate and holds it until it is due.
    fn admit(&mut self, now: Duration, frame: &[u8]) {
        self.counters.received += 1;
        // All four are drawn for each frame: the fate of the n-th depends on the seed and n, not on the parameters.
        let [loss, duplicate, reorder, jitter] = [(); 4].map(|()| self.random.unit());
        if loss < self.impairment.loss {
            self.counters.lost += 1;
            return;
        }
        let mut due = (now + self.impairment.delay + self.impairment.jitter.mul_f64(jitter)).max(self.last_due);
        if reorder < self.impairment.reorder {
            self.counters.reordered += 1;
            due += REORDER_HOLD;
        } else {
            self.last_due = due;
        }
        self.hold(due, frame);
        if duplicate < self.impairment.duplicate {
            self.counters.duplicated += 1;
            self.hold(due, frame);
        }
    }

    fn hold(&mut self, due: Duration, frame: &[u8]) {
        if self.held.len() >= HELD_MAX {
            self.counters.overflowed += 1;
            return;
        }
        self.admitted += 1;
        self.held.push(Reverse((due, self.admitted, frame.into())));
    }

    fn next_due(&self) -> Option<Duration> {
        self.held.peek().map(|Reverse((due, ..))| *due)
    }

    fn take_due(&mut self, now: Duration) -> Option<Box<[u8]>> {
        if self.next_due()? > now {
            return None;
        }
        self.held.pop().map(|Reverse((_, _, frame))| frame)
    }

    fn show(&self) -> serde_json::Value {
        let Counters { received, sent, lost, reordered, duplicated, overflowed, unsendable, missed } = self.counters;
        let Impairment { delay, jitter, loss, reorder, duplicate } = self.impairment;
        serde_json::json!({
            "delay_ms": delay.as_secs_f64() * 1e3, "jitter_ms": jitter.as_secs_f64() * 1e3,
            "loss": loss, "reorder": reorder, "duplicate": duplicate,
            "received": received, "sent": sent, "lost": lost, "reordered": reordered, "duplicated": duplicated,
            "overflowed": overflowed, "unsendable": unsendable, "missed": missed, "held": self.held.len(),
        })
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good for any seed.
struct Random(u64);

impl Random {
    /// Evenly from [0, 1).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) as f64 / 2f64.powi(64)
    }
}

/// A packet socket that gets every frame that arrives at an interface, and none that leaves by it.
fn packet_socket(interface: &str) -> Result<OwnedFd, String> {
    let failed = |error: nix::Error| match error {
        nix::Error::EPERM => format!("{interface}: needs CAP_NET_RAW, run as root"),
        nix::Error::ENODEV => format!("{interface}: no such interface here"),
        error => format!("{interface}: {}", error.desc()),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol, so that nothing is received before the socket is bound to its interface.
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None).map_err(failed)?;
    setsockopt(&fd, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).map_err(failed)?;
    setsockopt(&fd, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES).map_err(failed)?;
    let index = nix::net::if_::if_nametoindex(interface).map_err(failed)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: SockProtocol::EthAll as i32 as u16,
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let on: libc::c_int = 1;
    // SAFETY: each pointer is to a live value of the size that is given beside it.
    let results = unsafe {
        [
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_IGNORE_OUTGOING,
                (&raw const on).cast(),
                size_of_val(&on) as u32,
            ),
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32),
        ]
    };
    for result in results {
        nix::Error::result(result).map_err(failed)?;
    }
    Ok(fd)
}

/// Frames the kernel dropped at this socket since it was asked last.
fn missed(end: &OwnedFd) -> u64 {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: `statistics` is live and `length` is its size.
    let result = unsafe {
        libc::getsockopt(
            end.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result == 0 { u64::from(statistics.tp_drops) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn direction(parameters: &str) -> Direction {
        Direction::new(7, parameters.parse().unwrap())
    }

    /// Numbers of the frames that come out, in order, when one goes in each millisecond.
    fn carry(direction: &mut Direction, frames: u32) -> Vec<u32> {
        let mut out = Vec::new();
        for tick in 0..frames + 1000 {
            let now = MS * tick;
            if tick < frames {
                direction.admit(now, &tick.to_be_bytes());
            }
            while let Some(frame) = direction.take_due(now) {
                out.push(u32::from_be_bytes((*frame).try_into().unwrap()));
            }
        }
        out
    }

    #[test]
    fn a_perfect_wire_changes_nothing() {
        assert_eq!(carry(&mut direction(""), 1000), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_delayed_frame_is_due_after_the_delay_and_not_before() {
        let mut direction = direction("delay_ms=10");
        direction.admit(5 * MS, b"x");
        assert_eq!(direction.take_due(15 * MS - Duration::from_nanos(1)), None);
        assert!(direction.take_due(15 * MS).is_some());
    }

    #[test]
    fn jitter_keeps_the_order() {
        assert_eq!(carry(&mut direction("delay_ms=5,jitter_ms=20"), 1000), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn loss_takes_its_share_and_the_same_frames_for_the_same_seed() {
        let first = carry(&mut direction("loss=0.05"), 10_000);
        let second = carry(&mut direction("loss=0.05,delay_ms=3"), 10_000);
        assert!((9_400..9_600).contains(&first.len()), "{} of 10000 are left", first.len());
        assert_eq!(first, second);
    }

    #[test]
    fn reordering_loses_nothing_and_only_some_frames_fall_behind() {
        let mut direction = direction("reorder=0.1");
        let mut out = carry(&mut direction, 1000);
        let behind = out.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((50..150).contains(&behind), "{behind} of 1000 are behind");
        out.sort_unstable();
        assert_eq!(out, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_duplicate_follows_its_original() {
        let mut direction = direction("duplicate=1");
        assert_eq!(carry(&mut direction, 3), [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn a_full_wire_drops_the_newest() {
        let mut direction = direction("delay_ms=1000");
        for _ in 0..HELD_MAX + 5 {
            direction.admit(MS, b"x");
        }
        assert_eq!((direction.held.len(), direction.counters.overflowed), (HELD_MAX, 5));
    }

    #[test]
    fn wrong_parameters_are_refused_by_name() {
        for (list, complaint) in [
            ("loss=2", "loss=2: not between 0 and 1"),
            ("delay=1", "delay: unknown (delay_ms, jitter_ms, loss, reorder, duplicate)"),
            ("loss", "loss: not name=value"),
            ("loss=much", "loss=much: not a number"),
            ("loss=NaN", "loss=NaN: not between 0 and 1"),
        ] {
            assert_eq!(list.parse::<Impairment>().unwrap_err(), complaint);
        }
    }
}
