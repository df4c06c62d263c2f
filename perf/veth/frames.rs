//! Frames that are made before they are sent: all of one size, one after the other in a file.

use std::{fs, net::Ipv4Addr, path::Path, str::FromStr};

use clap::Args;
use starnet::wire::{
    checksum,
    ethernet::{self, Mac},
    ip4, udp,
};

use crate::Outcome;

/// Bytes that `traffic.bpf.c` has room for.
pub(crate) const FRAME_BYTES_MAX: usize = 256;

/// Frames of one size.
pub(crate) struct Frames {
    /// Bytes of each.
    pub(crate) size: usize,
    /// All of them.
    pub(crate) bytes: Vec<u8>,
}

impl Frames {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, bytes: Vec::new() }
    }

    /// Reads what [`Frames::save`] wrote.
    pub(crate) fn load(path: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let (size, bytes) = bytes.split_at_checked(2).ok_or("an empty file of frames")?;
        let size = usize::from(u16::from_le_bytes([size[0], size[1]]));
        if size == 0 || size > FRAME_BYTES_MAX || bytes.is_empty() || bytes.len() % size != 0 {
            return Err(format!("{}: not a file of frames", path.display()).into());
        }
        Ok(Self { size, bytes: bytes.to_vec() })
    }

    /// Writes them in one step: the file is complete when it is there.
    pub(crate) fn save(&self, path: &Path) -> Outcome {
        let unfinished = path.with_extension("unfinished");
        let mut bytes = (self.size as u16).to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.bytes);
        fs::write(&unfinished, bytes)?;
        fs::rename(unfinished, path)?;
        Ok(())
    }

    /// Room for one more.
    pub(crate) fn add(&mut self) -> &mut [u8] {
        let at = self.bytes.len();
        self.bytes.resize(at + self.size, 0);
        &mut self.bytes[at..]
    }

    pub(crate) fn iter(&self) -> std::slice::ChunksExact<'_, u8> {
        self.bytes.chunks_exact(self.size)
    }
}

/// A MAC address as `ip link` writes it.
#[derive(Clone, Copy)]
pub(crate) struct MacAddress(pub(crate) Mac);

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
        let mac = bytes.ok().and_then(|bytes| Mac::try_from(bytes).ok());
        mac.map(Self).ok_or(format!("'{text}' is not a MAC address, like 02:00:00:00:00:01"))
    }
}

/// Where frames come from and go to.
#[derive(Args, Clone, Copy)]
pub(crate) struct Addresses {
    /// MAC address they are sent to
    #[arg(long)]
    pub(crate) mac: MacAddress,
    /// MAC address they come from
    #[arg(long)]
    pub(crate) source_mac: MacAddress,
    /// Bytes of each
    #[arg(long, default_value_t = 128)]
    pub(crate) size: usize,
    /// How many different ones
    #[arg(long, default_value_t = 65_536)]
    pub(crate) count: u32,
}

/// Flows of one source address; the next ones are the next address's.
const FLOWS_A_HOST: u32 = 1024;

/// UDP flows.
#[derive(Args)]
pub(crate) struct Flows {
    #[command(flatten)]
    addresses: Addresses,
    /// Source of the first flow
    #[arg(long)]
    from: Ipv4Addr,
    /// Destination of half the flows; the address after it is that of the others
    #[arg(long)]
    to: Ipv4Addr,
    /// Destination port
    #[arg(long, default_value_t = 9)]
    port: u16,
    /// How many flows; the frames take them in turn, in an order that no prefetcher guesses
    #[arg(long, default_value_t = 1)]
    flows: u32,
}

impl Flows {
    pub(crate) fn write(&self, path: &Path) -> Outcome {
        let Addresses { mac, source_mac, size, count } = self.addresses;
        let least = ethernet::HEADER_BYTES + ip4::HEADER_BYTES + udp::HEADER_BYTES;
        if !(least..=FRAME_BYTES_MAX).contains(&size) {
            return Err(format!("frames of {least} to {FRAME_BYTES_MAX} bytes can be made").into());
        }
        let mut frames = Frames::new(size);
        for number in 0..count {
            let flow = scatter(number, self.flows);
            let (flow, half) = (flow / 2, flow % 2);
            let source = Ipv4Addr::from_bits(self.from.to_bits() + flow / FLOWS_A_HOST);
            let to = Ipv4Addr::from_bits(self.to.to_bits() + half);
            let frame = frames.add();
            ethernet::emit(frame, mac.0, source_mac.0);
            datagram(
                &mut frame[ethernet::HEADER_BYTES..],
                (source, 1024 + (flow % FLOWS_A_HOST) as u16),
                (to, self.port),
            );
        }
        frames.save(path)
    }
}

/// A permutation of `0..flows` over each `flows` numbers in succession, where `flows` is a power of two.
pub(crate) fn scatter(number: u32, flows: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1) % flows
}

/// Fills `packet` with an IPv4 packet that carries a UDP datagram of zeroes.
pub(crate) fn datagram(packet: &mut [u8], from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    let length = packet.len() as u16;
    ip4::emit(packet, from.0, to.0, ip4::UDP, length, 64);
    let segment = &mut packet[ip4::HEADER_BYTES..];
    let bytes = segment.len() as u16;
    udp::emit(segment, from.1, to.1, bytes);
    let sum = checksum::fold(checksum::sum(segment, checksum::pseudo_header(from.0, to.0, ip4::UDP, bytes)));
    starnet::wire::write(segment, udp::CHECKSUM, &(!sum).to_be_bytes());
}
