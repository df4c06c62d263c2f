//! The oracle: one packet script, played to starnet's gateway and to Linux's (`nft` masquerade) in the same topology.
//!
//! Where they differ, one of them is wrong or free to choose. Each difference must be explained in
//! [`differences`] (and so in docs/NAT.md), or the test fails; so it does if an explained one is no longer there.

mod cases;
mod packet;
mod random;
mod rig;
mod script;

use std::time::Duration;

use rig::Rig;

#[test]
fn the_oracle_answers_the_same_twice() {
    let rig = Rig::nft();
    let quiet = Duration::from_millis(15);
    for case in cases::all().into_iter().chain((0..20).map(|number| random::case(1, number))) {
        let first = case.play(&rig, quiet);
        let again = case.play(&rig, quiet);
        println!("{}:\n  {}", case.name, first.join("\n  "));
        assert_eq!(first, again, "{}", case.name);
    }
}
