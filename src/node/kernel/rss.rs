//! How a NIC spreads packets over its queues, as its driver tells: hash key, indirection table, hashed fields.
//!
//! Asked with the ethtool ioctl: of the two ways to ask only this one tells the fields on every kernel. A driver that
//! does not say (veth never does), or hashes otherwise than Toeplitz over addresses and ports, is no error: packets that
//! arrive at another worker than their slot's are handed over.

use super::ethtool_ioctl::{RXNFC_WORDS, TCP4, TCP6, UDP4, UDP6, ask};
use crate::dataplane::rss::{Input, Inputs, Rss};

/// `ETHTOOL_GRSSH`: key and table.
const GET_KEY_AND_TABLE: u32 = 0x46;

/// `ETHTOOL_GRXFH`: hashed fields of one kind of packet.
const GET_FIELDS: u32 = 0x29;

/// `ETH_RSS_HASH_TOP`.
const TOEPLITZ: u8 = 1;

/// `RXH_IP_SRC | RXH_IP_DST`, and with them `RXH_L4_B_0_1 | RXH_L4_B_2_3`.
const ADDRESSES: u64 = 0x30;
const ADDRESSES_AND_PORTS: u64 = 0xf0;

/// Words of `struct ethtool_rxfh` before table and key.
const HEADER_WORDS: usize = 6;

/// Larger ones than any NIC has are no table and no key.
const WORDS_MAX: usize = 1 << 16;

/// How the interface called `name` spreads what it receives. `None`: not known.
pub fn rss(name: &str) -> Option<Rss> {
    match read_rss(name) {
        Ok(rss) => rss,
        Err(error) => {
            tracing::debug!(interface = name, "how packets are spread over the queues is not known: {error}");
            None
        }
    }
}

/// The same. `None`: the hash is no Toeplitz of the packet's fields as they are.
///
/// # Errors
/// Those of the driver: most often that it does not tell (`EOPNOTSUPP`).
pub fn read_rss(name: &str) -> nix::Result<Option<Rss>> {
    let mut sizes = [0; HEADER_WORDS];
    sizes[0] = GET_KEY_AND_TABLE;
    ask(name, &mut sizes)?;
    let (table, key) = (sizes[2] as usize, sizes[3] as usize);
    let words = HEADER_WORDS + table.min(WORDS_MAX) + key.min(WORDS_MAX).div_ceil(4);
    let mut answer = vec![0; words];
    answer[..HEADER_WORDS].copy_from_slice(&[GET_KEY_AND_TABLE, 0, table as u32, key as u32, 0, 0]);
    ask(name, &mut answer)?;
    let inputs =
        Inputs { tcp4: input(name, TCP4), udp4: input(name, UDP4), tcp6: input(name, TCP6), udp6: input(name, UDP6) };
    Ok(parse(&answer, inputs))
}

/// Reads `struct ethtool_rxfh`: sizes of table and key, function, transformation of the input, then table and key.
fn parse(answer: &[u32], inputs: Inputs) -> Option<Rss> {
    let (header, rest) = answer.split_at_checked(HEADER_WORDS)?;
    let [function, transformation, ..] = header[4].to_ne_bytes();
    if function != TOEPLITZ || transformation != 0 {
        return None;
    }
    let (table, key) = rest.split_at_checked(header[2] as usize)?;
    let table = table.iter().map(|queue| u16::try_from(*queue)).collect::<Result<_, _>>().ok()?;
    let key: Vec<u8> = key.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Rss::new(key.get(..header[3] as usize)?, table, inputs)
}

/// What is hashed of one kind of packet.
fn input(name: &str, flow: u32) -> Option<Input> {
    let mut fields = [0; RXNFC_WORDS];
    (fields[0], fields[1]) = (GET_FIELDS, flow);
    ask(name, &mut fields).ok()?;
    let [low, high] = [fields[2], fields[3]].map(u32::to_ne_bytes);
    input_of(u64::from_ne_bytes([low, high].concat().try_into().expect("eight bytes")))
}

fn input_of(fields: u64) -> Option<Input> {
    match fields {
        ADDRESSES => Some(Input::Addresses),
        ADDRESSES_AND_PORTS => Some(Input::AddressesAndPorts),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::rss::KEY_BYTES;

    /// As the kernel writes it, on a little-endian machine.
    fn answer(function: u8, transformation: u8, table: &[u32], key: &[u8]) -> Vec<u32> {
        let mut words = vec![GET_KEY_AND_TABLE, 0, table.len() as u32, key.len() as u32];
        words.extend([u32::from_ne_bytes([function, transformation, 0, 0]), 0]);
        words.extend(table);
        words.extend(key.chunks(4).map(|bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            u32::from_ne_bytes(word)
        }));
        words
    }

    #[test]
    fn key_and_table_are_read_where_the_function_is_toeplitz() {
        let key: Vec<u8> = (0..KEY_BYTES as u8 + 2).collect();
        let rss = parse(&answer(TOEPLITZ, 0, &[0, 1, 2, 1], &key), Inputs::ALL).unwrap();
        assert_eq!(Some(rss), Rss::new(&key, vec![0, 1, 2, 1], Inputs::ALL));
        assert!(parse(&answer(2, 0, &[0, 1], &key), Inputs::ALL).is_none(), "xor");
        assert!(parse(&answer(TOEPLITZ, 1, &[0, 1], &key), Inputs::ALL).is_none(), "symmetric");
        assert!(parse(&answer(TOEPLITZ, 0, &[], &key), Inputs::ALL).is_none(), "no table");
        assert!(parse(&answer(TOEPLITZ, 0, &[0, 1], &[]), Inputs::ALL).is_none(), "no key");
        let short = answer(TOEPLITZ, 0, &[0, 1], &key);
        for words in 0..short.len() {
            assert!(parse(&short[..words], Inputs::ALL).is_none(), "{words} words");
        }
    }

    #[test]
    fn fields_are_addresses_with_or_without_both_ports() {
        assert_eq!(input_of(0x30), Some(Input::Addresses));
        assert_eq!(input_of(0xf0), Some(Input::AddressesAndPorts));
        for other in [0, 0x70, 0xb0, 0xf4, 0x10, 1 << 31] {
            assert_eq!(input_of(other), None);
        }
    }

    #[test]
    fn an_interface_that_does_not_say_is_not_known() {
        assert_eq!(rss("lo"), None);
        assert_eq!(rss("no such one"), None);
        assert_eq!(rss("a name that is much too long"), None);
    }
}
