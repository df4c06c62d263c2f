//! Outside addresses come and go while the node runs ([`pool`](crate::dataplane::nat::pool)).
//!
//! One that is new is in the workers' rings before its first binding. One that was withdrawn goes when its last port has
//! rested: then no worker has a binding of it, and nothing that is still on the way could meet another use of its number.

use super::Control;
use crate::{
    Nanos, SECOND,
    dataplane::{
        command::Command,
        gateway::{OutsideAddress, OutsideAddress6},
        nat::{NatConfig, NewPool, PortTable, outside::FIRST6, pool::PoolError},
    },
};

/// How often withdrawn addresses are looked at.
const CHECK: Nanos = SECOND;

impl Control {
    /// All places of the pool of IPv4, withdrawn addresses and vacant places included.
    pub fn outside_addresses(&self) -> &[OutsideAddress] {
        &self.config.nat.addresses
    }

    /// The gateway's file names these addresses now. On an error nothing has changed.
    pub(super) fn set_pool(&mut self, named: &[OutsideAddress], named6: &[OutsideAddress6]) -> Result<(), PoolError> {
        let new = self.config.nat.with_pool(named, named6)?;
        self.use_pool(new);
        Ok(())
    }

    /// Takes withdrawn addresses out of the pool of which nothing is left. The first of each family stays: it is the node's
    /// own, too.
    pub(super) fn retire_addresses(&mut self, now: Nanos) {
        if now < self.retirement_due {
            return;
        }
        self.retirement_due = now + CHECK;
        let nat = &self.config.nat;
        let is_unused = |number| self.workers.iter().all(|tables| tables.hosts.is_unused(number, now));
        let may_go = |number: &u8| *number != 0 && *number != FIRST6 && is_unused(*number);
        let gone: Vec<u8> = nat.withdrawn.iter().copied().filter(may_go).collect();
        if gone.is_empty() {
            return;
        }
        for number in &gone {
            if let Some(address) = nat.outside_address(*number) {
                tracing::info!(%address, "withdrawn, and out of the pool now");
            }
        }
        self.use_pool(gone.into_iter().fold(nat.clone(), |nat, number| nat.without(number)));
        self.publish_gateway();
    }

    fn use_pool(&mut self, new: NatConfig) {
        let old = std::mem::replace(&mut self.config.nat, new);
        let new = &self.config.nat;
        // What was only withdrawn is to the workers as it was.
        if (&old.addresses, &old.addresses6) == (&new.addresses, &new.addresses6) {
            return;
        }
        let pool = new.outside(self.config.identity.workers);
        // A number that was ever used has ports at the workers.
        let fresh = old.addresses.len() as u8..new.addresses.len() as u8;
        let fresh6 = FIRST6 + old.addresses6.len() as u8..FIRST6 + new.addresses6.len() as u8;
        let fresh: Vec<u8> = fresh.chain(fresh6).collect();
        for tables in &mut self.workers {
            tables.hosts.set_outside(new, &pool);
            let new = NewPool { pool: pool.clone(), table: PortTable::new(fresh.clone()) };
            tables.backlog.push_back(Command::SetOutside(Box::new(new)));
        }
    }
}
