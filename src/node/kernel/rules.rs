//! Keeps our rules in the NICs' tables: where the hash does not let a queue be chosen and rules are switched on, and only there.
//!
//! A rule outlives the program that put it in, so ours are known by what they are about: those of a run that was killed are taken
//! over or taken out, for as long as the addresses and ports are the same. A rule that is about nothing but NAT's ports is taken for
//! ours, whoever wrote it; others are left alone.

use std::net::SocketAddrV4;

use nix::errno::Errno;

use super::ntuple::{Table, Tables};
use crate::dataplane::{
    gateway::OutsideAddress,
    port_rules::{Classes, PortRules, Rule, answers, hops},
};

/// What is to be steered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Steering {
    /// To how many workers; one needs no rules.
    pub workers: u8,
    /// Where packets of the overlay come to, of a node that is part of one.
    pub ours: Option<SocketAddrV4>,
    /// Addresses that servers answer to, and the ports that are NAT's alone.
    pub outside: Vec<OutsideAddress>,
    /// True for the interfaces, by number, that such packets come in by.
    pub interfaces: Vec<bool>,
}

impl Steering {
    /// True for a rule that there is or was for this, with any number of workers.
    fn is_about(&self, rule: &Rule) -> bool {
        self.ours.is_some_and(|ours| rule.is_of_hops(ours))
            || self.outside.iter().any(|outside| rule.is_of_answers(outside))
    }
}

/// Keeps the rules of all NICs of a node.
pub(super) struct RuleKeeper {
    tables: Box<dyn Tables>,
    /// `None`: not known yet; then the tables are not touched, since they may be another node's.
    wanted: Option<Steering>,
    nics: Vec<State>,
}

/// What was done about a NIC's table.
#[derive(Default)]
enum State {
    /// Nothing: some of ours may be in it.
    #[default]
    Unknown,
    /// None of ours is in it.
    Clean,
    Written(Written),
}

#[derive(Default)]
struct Written {
    wanted: Steering,
    /// How many rules there were then, with those that are not ours. `None`: it is to be tried again.
    count: Option<u32>,
    in_force: Option<PortRules>,
    error: Option<Errno>,
}

impl RuleKeeper {
    /// Of so many NICs.
    pub(super) fn new(nics: usize, tables: Box<dyn Tables>) -> Self {
        Self { tables, wanted: None, nics: (0..nics).map(|_| State::default()).collect() }
    }

    /// This is wanted from now on. True where it is something else than before.
    pub(super) fn set(&mut self, wanted: Steering) -> bool {
        let is_new = self.wanted.as_ref() != Some(&wanted);
        self.wanted = Some(wanted);
        is_new
    }

    /// Puts what is wanted into the table of the NIC `name`, number `nic`, with so many queues; takes it out where the hash will do.
    /// Returns the rules that are in force.
    pub(super) fn keep(&mut self, nic: usize, name: &str, hash_will_do: bool, queues: u32) -> Option<PortRules> {
        let wanted = self.wanted.clone()?;
        let is_there = wanted.interfaces.get(nic).is_some_and(|is_there| *is_there);
        let is_of_use = wanted.workers > 1 && queues >= wanted.workers.into() && !hash_will_do;
        // Switched off, most drivers empty the table, and some go by it all the same (mlx5).
        if !(is_there && is_of_use && self.tables.is_on(name)) {
            self.clean(nic, name);
            return None;
        }
        let before = std::mem::take(&mut self.nics[nic]);
        let count = self.tables.count(name).ok();
        let written = match before {
            State::Written(written) if written.wanted == wanted && written.count == count && count.is_some() => written,
            before => {
                let before = match before {
                    State::Written(written) => written,
                    _ => Written::default(),
                };
                self.take_out(name, |rule| before.wanted.is_about(rule) && !wanted.is_about(rule));
                self.write(name, wanted, &before)
            }
        };
        let in_force = written.in_force.clone();
        self.nics[nic] = State::Written(written);
        in_force
    }

    /// Takes all of ours out of the NICs of these names.
    pub(super) fn withdraw<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        for (nic, name) in names.enumerate() {
            if matches!(self.nics[nic], State::Written(_)) {
                self.clean(nic, name);
            }
        }
    }

    fn clean(&mut self, nic: usize, name: &str) {
        match std::mem::replace(&mut self.nics[nic], State::Clean) {
            State::Clean => {}
            State::Written(Written { wanted, .. }) => self.take_out(name, |rule| wanted.is_about(rule)),
            State::Unknown => {
                let wanted = self.wanted.clone().unwrap_or_default();
                self.take_out(name, |rule| wanted.is_about(rule));
            }
        }
    }

    /// Makes the table what is wanted, as far as the NIC goes along.
    fn write(&mut self, name: &str, wanted: Steering, before: &Written) -> Written {
        let workers = wanted.workers;
        let hops: Vec<Rule> = wanted.ours.map(|ours| hops(ours, workers)).unwrap_or_default();
        let answers: Vec<Vec<Rule>> = wanted.outside.iter().map(|outside| answers(outside, workers)).collect();
        let is_due = |rule: &Rule| hops.contains(rule) || answers.iter().flatten().any(|due| due == rule);
        self.take_out(name, |rule| wanted.is_about(rule) && !is_due(rule));
        let mut in_force = PortRules::default();
        let error = self.add(name, &wanted, &hops, &answers, &mut in_force).err();
        if error.is_some() {
            let is_in_force = |rule: &Rule| {
                in_force.hops.is_some() && hops.contains(rule) || in_force.outside.contains(&rule.destination)
            };
            self.take_out(name, |rule| wanted.is_about(rule) && !is_in_force(rule));
        }
        let (rules, of) = (in_force.count, hops.len() + answers.iter().flatten().count());
        let in_force = (rules > 0).then_some(in_force);
        match error {
            None if before.in_force != in_force => {
                tracing::info!(interface = name, rules, "rules in the NIC steer packets by their ports");
            }
            Some(error) if before.error != Some(error) || before.in_force != in_force => tracing::warn!(
                interface = name,
                "the NIC took {rules} of {of} rules by ports, then said {error}; what the others are about is handed over"
            ),
            _ => {}
        }
        let count = self.tables.count(name).ok().filter(|_| !error.is_some_and(may_pass));
        Written { wanted, count, in_force, error }
    }

    /// Adds what is not there, the rules of hops first; `in_force` is what the NIC has accepted.
    fn add(
        &mut self,
        name: &str,
        wanted: &Steering,
        hops: &[Rule],
        answers: &[Vec<Rule>],
        in_force: &mut PortRules,
    ) -> nix::Result<()> {
        let table = self.tables.read(name)?;
        let mut writer = Writer::new(name, self.tables.as_mut(), &table);
        in_force.count += writer.add(hops)?;
        in_force.hops = wanted.ours.map(|ours| (ours, Classes::among(wanted.workers)));
        for (outside, rules) in wanted.outside.iter().zip(answers) {
            in_force.count += writer.add(rules)?;
            in_force.outside.push(outside.address);
        }
        Ok(())
    }

    /// Takes out those that are undue.
    fn take_out(&mut self, name: &str, is_undue: impl Fn(&Rule) -> bool) {
        let Ok(table) = self.tables.read(name) else { return };
        let undue = table.rules.into_iter().filter(|(_, rule)| rule.as_ref().is_some_and(&is_undue));
        for (place, _) in undue {
            if let Err(error) = self.tables.delete(name, place) {
                tracing::warn!(interface = name, place, "a rule cannot be taken out of the NIC: {error}");
            }
        }
    }
}

/// True for what a NIC says that is busy or not up: it is asked again. A rule that it cannot do or has no room for is tried again only
/// when the table has changed.
fn may_pass(error: Errno) -> bool {
    !matches!(error, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSPC | Errno::ERANGE)
}

/// Adds rules to a table.
struct Writer<'a> {
    name: &'a str,
    tables: &'a mut dyn Tables,
    there: Vec<Rule>,
    /// Places that are not taken; `None`: the driver chooses.
    free: Option<Vec<u32>>,
}

impl<'a> Writer<'a> {
    fn new(name: &'a str, tables: &'a mut dyn Tables, table: &Table) -> Self {
        let is_free = |place: &u32| !table.rules.iter().any(|(taken, _)| taken == place);
        let free = table.places.map(|places| (0..places).filter(is_free).collect());
        Self { name, tables, there: table.rules.iter().filter_map(|(_, rule)| *rule).collect(), free }
    }

    /// Adds those that are not there, at the last places: the first have the most to say, and ours have nothing to contradict. Returns
    /// how many there are.
    fn add(&mut self, rules: &[Rule]) -> nix::Result<usize> {
        for rule in rules.iter().filter(|rule| !self.there.contains(rule)) {
            let place = match &mut self.free {
                None => None,
                Some(free) => Some(free.pop().ok_or(Errno::ENOSPC)?),
            };
            self.tables.insert(self.name, place, rule)?;
        }
        Ok(rules.len())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        collections::BTreeMap,
        net::Ipv4Addr,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::dataplane::port_rules::Bits;

    pub(in super::super) const OWN: OutsideAddress = outside(1);
    const SECOND: OutsideAddress = outside(2);

    /// Sixteen ports, of which each of two workers has one block, each of three has two.
    const fn outside(n: u8) -> OutsideAddress {
        OutsideAddress { address: Ipv4Addr::new(192, 0, 2, n), first: 41_984, last: 41_999 }
    }

    /// A NIC's table.
    struct Nic {
        is_on: bool,
        has_places: bool,
        size: u32,
        /// It takes rules by a part of a port.
        takes_parts: bool,
        /// It takes none for the time being.
        is_down: bool,
        rules: BTreeMap<u32, Option<Rule>>,
        writes: usize,
    }

    #[derive(Clone)]
    pub(in super::super) struct OneNic(Arc<Mutex<Nic>>);

    impl OneNic {
        pub(in super::super) fn new(size: u32) -> Self {
            let (is_on, has_places, takes_parts, is_down) = (true, true, true, false);
            let rules = BTreeMap::new();
            Self(Arc::new(Mutex::new(Nic { is_on, has_places, size, takes_parts, is_down, rules, writes: 0 })))
        }

        fn change(&self, change: impl FnOnce(&mut Nic)) {
            change(&mut self.0.lock().unwrap());
        }

        fn keeper(&self) -> RuleKeeper {
            RuleKeeper::new(1, Box::new(self.clone()))
        }

        /// How many rules of hops and of answers there are.
        pub(in super::super) fn ours(&self) -> (usize, usize) {
            let nic = self.0.lock().unwrap();
            let is_ours = |rule: &&Rule| rule.destination_port.value != 22;
            let rules: Vec<&Rule> = nic.rules.values().flatten().filter(is_ours).collect();
            let hops = rules.iter().filter(|rule| rule.destination_port.mask == u16::MAX).count();
            (hops, rules.len() - hops)
        }

        fn writes(&self) -> usize {
            self.0.lock().unwrap().writes
        }
    }

    impl Tables for OneNic {
        fn is_on(&mut self, _: &str) -> bool {
            self.0.lock().unwrap().is_on
        }

        fn count(&mut self, _: &str) -> nix::Result<u32> {
            Ok(self.0.lock().unwrap().rules.len() as u32)
        }

        fn read(&mut self, _: &str) -> nix::Result<Table> {
            let nic = self.0.lock().unwrap();
            let rules = nic.rules.iter().map(|(place, rule)| (*place, *rule)).collect();
            Ok(Table { places: nic.has_places.then_some(nic.size), rules })
        }

        fn insert(&mut self, _: &str, place: Option<u32>, rule: &Rule) -> nix::Result<()> {
            let mut nic = self.0.lock().unwrap();
            let nic = &mut *nic;
            nic.writes += 1;
            if nic.is_down {
                return Err(Errno::EAGAIN);
            }
            let is_whole = |bits: Bits| matches!(bits.mask, 0 | u16::MAX);
            if !(nic.takes_parts || is_whole(rule.source_port) && is_whole(rule.destination_port)) {
                return Err(Errno::EINVAL);
            }
            assert_eq!(place.is_some(), nic.has_places);
            let place = place.or_else(|| (0..nic.size).find(|place| !nic.rules.contains_key(place)));
            let place = place.filter(|place| *place < nic.size).ok_or(Errno::ENOSPC)?;
            assert_eq!(nic.rules.insert(place, Some(*rule)), None, "another rule's place");
            Ok(())
        }

        fn delete(&mut self, _: &str, place: u32) -> nix::Result<()> {
            let mut nic = self.0.lock().unwrap();
            nic.writes += 1;
            nic.rules.remove(&place).map(drop).ok_or(Errno::ENOENT)
        }
    }

    pub(in super::super) fn wanted(workers: u8, outside: &[OutsideAddress]) -> Steering {
        let ours = Some(SocketAddrV4::new(OWN.address, 40_000));
        Steering { workers, ours, outside: outside.to_vec(), interfaces: vec![true] }
    }

    /// The addresses with rules in force after one look, and what is in the table.
    fn keep(keeper: &mut RuleKeeper, nic: &OneNic, wanted: &Steering) -> (Option<Vec<u8>>, (usize, usize)) {
        keeper.set(wanted.clone());
        let in_force = keeper.keep(0, "e0", false, 16);
        let ours = nic.ours();
        assert_eq!(in_force.as_ref().map_or(0, |rules| rules.count), ours.0 + ours.1);
        (in_force.map(|rules| rules.outside.iter().map(|address| address.octets()[3]).collect()), ours)
    }

    #[test]
    fn rules_follow_what_is_wanted_and_are_written_only_where_they_differ() {
        let nic = OneNic::new(64);
        // An operator's, at the places that come first to mind: one that is about other things, one about a port of the node's own.
        let ssh = Rule { destination_port: Bits { value: 22, mask: u16::MAX }, ..answers(&OWN, 2)[0] };
        nic.change(|nic| nic.rules.extend([(63, None), (62, Some(ssh))]));
        let mut keeper = nic.keeper();
        assert_eq!((keeper.keep(0, "e0", false, 16), nic.ours()), (None, (0, 0)), "nothing is wanted yet");
        assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[OWN])), (Some(vec![1]), (2, 4)));
        let before = nic.writes();
        assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[OWN])), (Some(vec![1]), (2, 4)));
        assert_eq!(nic.writes(), before);
        assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[OWN, SECOND])), (Some(vec![1, 2]), (2, 8)));
        assert_eq!(nic.writes(), before + 4);
        assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[SECOND])), (Some(vec![2]), (2, 4)));
        // Somebody takes one out.
        nic.change(|nic| {
            nic.rules.pop_first();
        });
        assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[SECOND])), (Some(vec![2]), (2, 4)));
        keeper.withdraw(["e0"].into_iter());
        assert_eq!(nic.ours(), (0, 0));
        assert_eq!(nic.0.lock().unwrap().rules.len(), 2, "the operator's");
    }

    #[test]
    fn there_are_none_where_the_hash_will_do_or_workers_have_no_queue_each_or_nothing_comes_in() {
        let nic = OneNic::new(64);
        let mut keeper = nic.keeper();
        let (one, inside) = (wanted(1, &[OWN]), Steering { interfaces: vec![false], ..wanted(2, &[OWN]) });
        for (wanted, hash_will_do, queues) in
            [(wanted(2, &[OWN]), true, 4), (wanted(2, &[OWN]), false, 1), (one, false, 4), (inside, false, 4)]
        {
            assert_eq!(keep(&mut keeper, &nic, &self::wanted(2, &[OWN])).1, (2, 4));
            keeper.set(wanted);
            assert_eq!((keeper.keep(0, "e0", hash_will_do, queues), nic.ours()), (None, (0, 0)));
        }
    }

    #[test]
    fn what_a_run_that_was_killed_has_left_is_taken_over_or_taken_out() {
        let nic = OneNic::new(64);
        keep(&mut nic.keeper(), &nic, &wanted(2, &[OWN, SECOND]));
        let before = nic.writes();
        assert_eq!(keep(&mut nic.keeper(), &nic, &wanted(2, &[OWN, SECOND])).1, (2, 8));
        assert_eq!(nic.writes(), before);
        assert_eq!(keep(&mut nic.keeper(), &nic, &wanted(3, &[OWN, SECOND])), (Some(vec![1, 2]), (16, 20)));
        assert_eq!(keep(&mut nic.keeper(), &nic, &wanted(1, &[OWN, SECOND])), (None, (0, 0)));
    }

    #[test]
    fn a_nic_that_refuses_is_left_as_it_was_and_not_asked_again_until_its_table_changes() {
        let nic = OneNic::new(64);
        nic.change(|nic| nic.takes_parts = false);
        let mut keeper = nic.keeper();
        for _ in 0..3 {
            assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[OWN])), (None, (0, 0)));
        }
        assert_eq!(nic.writes(), 1);
    }

    #[test]
    fn addresses_that_there_is_no_room_for_have_no_rules_and_hops_come_first() {
        let nic = OneNic::new(9);
        let mut keeper = nic.keeper();
        assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[OWN, SECOND])), (Some(vec![1]), (2, 4)));
        assert_eq!(keep(&mut keeper, &nic, &wanted(4, &[OWN, SECOND])), (Some(vec![]), (4, 0)));
        assert_eq!(keep(&mut keeper, &nic, &wanted(16, &[OWN])), (None, (0, 0)), "not all hops have one");
        // There is room again.
        nic.change(|nic| nic.size = 16);
        assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[OWN, SECOND])), (Some(vec![1, 2]), (2, 8)));
    }

    #[test]
    fn a_driver_that_chooses_places_is_let_to() {
        let nic = OneNic::new(64);
        nic.change(|nic| nic.has_places = false);
        assert_eq!(keep(&mut nic.keeper(), &nic, &wanted(4, &[OWN])), (Some(vec![1]), (4, 8)));
    }

    #[test]
    fn a_nic_that_is_not_up_is_asked_again() {
        let nic = OneNic::new(64);
        nic.change(|nic| nic.is_down = true);
        let mut keeper = nic.keeper();
        for _ in 0..3 {
            assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[OWN])), (None, (0, 0)));
        }
        nic.change(|nic| nic.is_down = false);
        assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[OWN])), (Some(vec![1]), (2, 4)));
    }

    #[test]
    fn rules_that_are_switched_off_are_taken_out_and_written_when_they_are_switched_on() {
        let nic = OneNic::new(64);
        let mut keeper = nic.keeper();
        for is_on in [false, true, false, true] {
            nic.change(|nic| nic.is_on = is_on);
            let there = if is_on { (Some(vec![1]), (2, 4)) } else { (None, (0, 0)) };
            assert_eq!(keep(&mut keeper, &nic, &wanted(2, &[OWN])), there);
        }
    }
}
