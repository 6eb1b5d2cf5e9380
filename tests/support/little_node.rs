//! The server's side of a connection, as little of it as there can be: whoever asks is answered, one request after the
//! other. It is for tests that are programs of their own.

use std::io::{Read, Write};

use dormouse::source::dcp::{Decoded, FRAME_BYTES_MAX, Frame, Magic, Opcode};

/// What a request is answered with.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) value: Vec<u8>,
    /// Nothing is read after it.
    pub(crate) is_last: bool,
}

/// Consent, with what each request has to get.
pub(crate) fn yes(asked: &Frame<'_>) -> Answer {
    let value = match asked.opcode {
        Opcode::HELLO => asked.value.to_vec(),
        Opcode::SASL_LIST_MECHS => b"PLAIN".to_vec(),
        Opcode::DCP_STREAM_REQ | Opcode::DCP_FAILOVER_LOG => vec![1; 16],
        _ => Vec::new(),
    };
    Answer { status: 0, value, is_last: false }
}

/// Answers what is asked until the last answer, until one is refused, or until the other side has gone. Gives whether
/// the last answer was given.
pub(crate) fn serve(
    wire: &mut (impl Read + Write),
    mut answer: impl FnMut(&Frame<'_>) -> Option<Answer>,
) -> bool {
    let mut read = Vec::new();
    loop {
        while let Ok(Decoded::Whole(asked, taken)) = Frame::decode(&read, FRAME_BYTES_MAX) {
            let Some(answer) = answer(&asked) else { return false };
            let (magic, key, extras): (_, &[u8], &[u8]) = (Magic::Response, &[], &[]);
            let (vb_or_status, value) = (answer.status, &answer.value[..]);
            let mut written = Vec::new();
            let frame = Frame { magic, vb_or_status, key, extras, value, ..asked };
            frame.encode(&mut written).expect("an answer is short");
            if wire.write_all(&written).and_then(|()| wire.flush()).is_err() {
                return false;
            }
            if answer.is_last {
                return true;
            }
            read.drain(..taken);
        }
        let mut room = [0; 4096];
        let Ok(len @ 1..) = wire.read(&mut room) else { return false };
        read.extend_from_slice(&room[..len]);
    }
}
