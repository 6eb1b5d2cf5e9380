//! What crossed sockets, as a capture file that other programs read.
//!
//! Each frame is a packet of its own, or several where it is too long for one, so that another reader's rows are
//! frames. What is around a frame, IP and TCP, is made up: it says which connection it is, and how far.
//!
//! Source of the format: `draft-ietf-opsawg-pcap` of the IETF, with the link type of bare IP packets.

use std::collections::BTreeMap;
use std::path::Path;

/// The port that the server's side has in the file.
pub(crate) const PORT: u16 = 11210;

const LINK_RAW_IP: u32 = 101;
const PACKET_BYTES_MAX: u32 = 262_144;
/// What fits behind the two headers of a packet.
const SEGMENT_BYTES_MAX: usize = 65_535 - HEADERS_BYTES;
const HEADERS_BYTES: usize = 40;
const PUSHED: u8 = 0x18;

/// One frame.
#[derive(Debug, Clone)]
pub(crate) struct Captured {
    /// Number of its connection.
    pub(crate) connection: usize,
    pub(crate) is_from_server: bool,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Capture {
    pub(crate) frames: Vec<Captured>,
    /// For each direction of a connection, what is no whole frame yet.
    rest: BTreeMap<(usize, bool), Vec<u8>>,
}

impl Capture {
    /// Adds bytes that crossed, wherever in a frame they begin and end.
    pub(crate) fn push(&mut self, connection: usize, is_from_server: bool, bytes: &[u8]) {
        let rest = self.rest.entry((connection, is_from_server)).or_default();
        rest.extend_from_slice(bytes);
        while let Some(body) = rest.get(8..12) {
            let body = u32::from_be_bytes(body.try_into().unwrap());
            let len = 24 + usize::try_from(body).unwrap();
            if rest.len() < len {
                break;
            }
            let bytes = rest.drain(..len).collect();
            self.frames.push(Captured { connection, is_from_server, bytes });
        }
    }

    pub(crate) fn write(&self, path: &Path) {
        let mut file = Vec::new();
        file.extend(0xa1b2_c3d4_u32.to_le_bytes());
        file.extend([2_u16, 4].iter().flat_map(|number| number.to_le_bytes()));
        file.extend([0, 0, PACKET_BYTES_MAX, LINK_RAW_IP].iter().flat_map(|number| number.to_le_bytes()));
        let mut sent: BTreeMap<(usize, bool), u32> = BTreeMap::new();
        for (number, frame) in (0_u32..).zip(&self.frames) {
            let (connection, from_server) = (frame.connection, frame.is_from_server);
            for segment in frame.bytes.chunks(SEGMENT_BYTES_MAX) {
                let of = |from_server| sent.get(&(connection, from_server)).copied().unwrap_or(1);
                let packet = packet(connection, from_server, [of(from_server), of(!from_server)], segment);
                let len = u32::try_from(packet.len()).unwrap();
                // A millisecond a frame.
                let time = [number / 1000, number % 1000 * 1000];
                file.extend([time[0], time[1], len, len].iter().flat_map(|number| number.to_le_bytes()));
                file.extend(packet);
                let next = of(from_server).wrapping_add(u32::try_from(segment.len()).unwrap());
                sent.insert((connection, from_server), next);
            }
        }
        std::fs::write(path, file).unwrap();
    }
}

/// A packet without checksums, which readers of captures do not look at unless they are told to.
fn packet(connection: usize, is_from_server: bool, numbers: [u32; 2], segment: &[u8]) -> Vec<u8> {
    let client = 20_000 + u16::try_from(connection).unwrap();
    let (from, to) = if is_from_server { (PORT, client) } else { (client, PORT) };
    let len = u16::try_from(HEADERS_BYTES + segment.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    // No fragments, 64 hops, TCP, from this machine to itself.
    packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
    packet.extend([from, to].iter().flat_map(|port| port.to_be_bytes()));
    packet.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    packet.extend([0x50, PUSHED, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend_from_slice(segment);
    packet
}
