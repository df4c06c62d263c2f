//! The client: plans paths, opens sessions, carries packets.
//!
//! Two threads. The data thread ([`data`](self), the caller's) moves packets between the TUN device or forwarded
//! ports and the sessions' UDP sockets. The opener's thread talks QUIC with the control centre and the entries. The
//! data thread sends it orders, it sends letters back; neither waits for the other.
//!
//! Where a packet goes: [`tun`] or [`forward`] takes it in, a carrier finds or waits for its session, [`session`]
//! gives it a header, [`socket`] sends it; what comes back passes the same places in reverse. What is dropped on
//! the way is counted by [`drops::Reason`].

mod carrier;
pub mod config;
mod data;
pub mod drops;
mod flow;
pub mod forward;
pub mod inside;
pub mod mailbox;
pub mod opener;
pub mod planner;
pub mod routes;
pub mod session;
pub mod socket;
#[cfg(test)]
mod tests;
pub mod tun;
pub mod view;

use ring::rand::{SecureRandom, SystemRandom};

use self::{config::ClientConfig, data::Data, mailbox::Letter, mailbox::Mailbox, opener::Opener, tun::Tun};

/// Runs a client until SIGINT or SIGTERM; then closes its sessions and removes its TUN device and routes.
///
/// # Errors
/// One line that says what to do: a port, device or file that cannot be had, or a refusal that trying again would
/// not change.
pub fn run(config: ClientConfig) -> Result<(), String> {
    let (mailbox, reader) = Mailbox::new().map_err(|error| format!("no eventfd: {error}"))?;
    let signals = mailbox.clone();
    ctrlc::set_handler(move || signals.post(Letter::Stop))
        .map_err(|error| format!("signals cannot be handled: {error}"))?;
    let tun = config.tun.as_ref().map(|tun| Tun::create(tun, config.inside)).transpose()?;
    if let Some(tun) = &tun {
        data::check_outside(tun, "the control centre", *config.controller.ip())?;
    }
    let opener = Opener::start(&config, mailbox)?;
    Data::new(config, tun, opener, reader)?.run()
}

/// Random bytes of the system.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system's random source works");
    bytes
}
