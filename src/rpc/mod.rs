//! Control messages and how they travel: QUIC, one stream a request.

pub mod cert;
pub mod codec;
pub mod files;
pub mod messages;
pub mod quic;
pub mod token;
#[cfg(test)]
mod wire_document;
