//! Framing: a four-byte big-endian length, then the message in postcard encoding. One frame each way a stream.

use serde::{Serialize, de::DeserializeOwned};

use super::messages::{Request, Response};
use crate::limits;

/// Bytes of the length before a message.
pub const LENGTH_BYTES: usize = 4;

/// A message that goes over a stream, and how long it may be.
pub trait Message: Serialize + DeserializeOwned {
    /// Most bytes of it, the length before it not counted.
    const BYTES_MAX: usize;
}

impl Message for Request {
    const BYTES_MAX: usize = limits::MESSAGE_BYTES_MAX;
}

impl Message for Response {
    const BYTES_MAX: usize = limits::RESPONSE_BYTES_MAX;
}

/// Why bytes are not a message, or a message cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Longer than the limit.
    #[error("the message has {bytes} bytes, more than the {limit} allowed")]
    TooLong {
        /// What it has.
        bytes: usize,
        /// What it may have.
        limit: usize,
    },
    /// The stream ended early, or went on after the message.
    #[error("the message's length field says {said} bytes, and {came} came")]
    Length {
        /// By the length field.
        said: usize,
        /// After it.
        came: usize,
    },
    /// Not even a length.
    #[error("the stream ended before the message's length")]
    Empty,
    /// Not a message of this version.
    #[error("the message is malformed")]
    Malformed,
}

/// The frame that carries `message`.
///
/// # Errors
/// [`CodecError::TooLong`].
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let mut frame = postcard::to_extend(message, vec![0; LENGTH_BYTES]).map_err(|_| CodecError::Malformed)?;
    let bytes = frame.len() - LENGTH_BYTES;
    if bytes > M::BYTES_MAX {
        return Err(CodecError::TooLong { bytes, limit: M::BYTES_MAX });
    }
    let length = u32::try_from(bytes).expect("the limits fit in 32 bits");
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// The message in a frame: all that came over one stream.
///
/// # Errors
/// Any [`CodecError`]; bytes left over are one.
pub fn decode<M: Message>(frame: &[u8]) -> Result<M, CodecError> {
    let (length, message) = frame.split_first_chunk::<LENGTH_BYTES>().ok_or(CodecError::Empty)?;
    let said = u32::from_be_bytes(*length) as usize;
    if said > M::BYTES_MAX {
        return Err(CodecError::TooLong { bytes: said, limit: M::BYTES_MAX });
    }
    if said != message.len() {
        return Err(CodecError::Length { said, came: message.len() });
    }
    match postcard::take_from_bytes(message) {
        Ok((message, [])) => Ok(message),
        _ => Err(CodecError::Malformed),
    }
}

/// Most bytes of a frame that carries an `M`.
pub const fn frame_bytes_max<M: Message>() -> usize {
    LENGTH_BYTES + M::BYTES_MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rpc::messages::{Failure, FailureReason};

    fn request(token: String) -> Request {
        Request::Topology { token }
    }

    #[test]
    fn a_message_survives_the_way_there() {
        let message = request("t".repeat(300));
        let frame = encode(&message).unwrap();
        assert_eq!(frame.len(), LENGTH_BYTES + 1 + 2 + 300);
        assert_eq!(decode(&frame), Ok(message));
        let message = Response::Failed(Failure { hop: "relay-1".into(), reason: FailureReason::Busy });
        assert_eq!(decode(&encode(&message).unwrap()), Ok(message));
    }

    #[test]
    fn cut_extended_and_oversized_frames_are_refused() {
        let frame = encode(&request("token".into())).unwrap();
        for cut in 0..frame.len() {
            assert!(decode::<Request>(&frame[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = frame.clone();
        longer.push(0);
        assert_eq!(decode::<Request>(&longer), Err(CodecError::Length { said: 7, came: 8 }));
        longer[3] += 1;
        assert_eq!(decode::<Request>(&longer), Err(CodecError::Malformed), "bytes left over");
        let limit = limits::MESSAGE_BYTES_MAX;
        assert_eq!(encode(&request("x".repeat(limit))), Err(CodecError::TooLong { bytes: limit + 4, limit }));
        assert!(matches!(decode::<Request>(&[0xff; 64]), Err(CodecError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut frame = (noise.len() as u32).to_be_bytes().to_vec();
            frame.extend(&noise);
            let _ = decode::<Request>(&frame);
            let _ = decode::<Response>(&frame);
            let _ = decode::<Request>(&noise);
        }
    }
}
