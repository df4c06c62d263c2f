//! How many new flows a second the control core sets up for one worker: each packet is the first of its flow, waits, and
//! is delivered when its binding is there.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use starnet::{
    control::{Control, ControlConfig, Effect},
    dataplane::{
        command::{Command, Event},
        exit_policy::ExitPolicy,
        handoff,
        published::Published,
    },
    rpc::messages::Roles,
};

use crate::{
    case::Case,
    world::{World, identity, nat_config},
};

/// Packets that wait at a time: fewer than a worker has room for.
const WAITING: u64 = 900;

/// Time between two ticks of the control core.
const TICK: Duration = Duration::from_millis(10);

/// Sets up half of `case.flows` flows; prints one line of JSON.
pub(crate) fn run(case: Case) {
    let mut world = World::new(case, 0, handoff::mesh(1).remove(0));
    world.worker.driver().in_flight_max = WAITING;
    let (commands, events) = world.take_rings();
    let published = Arc::clone(&world.published);
    let is_stopping = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_stopping);
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let (first, last) = (cores.first().copied(), cores.last().copied());
    let control = std::thread::spawn(move || {
        first.map(core_affinity::set_for_current);
        decide(case, published, commands, events, &stop)
    });
    last.map(core_affinity::set_for_current);

    let clock = quanta::Clock::new();
    let (mut nanos, mut delivered) = (0, 0);
    // Half of what there is room for, so that ports are not hard to find.
    for _ in 0..case.flows / 2 / world.chunk().0 as u32 {
        world.prepare_in_order();
        let wanted = world.worker.driver().passed.sent + world.chunk().1;
        world.worker.driver().rewind();
        let start = Instant::now();
        while world.worker.driver().passed.sent < wanted {
            world.worker.sweep(clock.delta_as_nanos(0, clock.raw()));
            assert!(start.elapsed() < Duration::from_secs(20), "a first packet was not delivered");
        }
        nanos += start.elapsed().as_nanos();
        delivered += world.chunk().1;
    }
    is_stopping.store(true, Relaxed);
    let made = control.join().expect("the control core ends");
    assert_eq!(made, delivered, "a binding for each flow");
    println!("{}", serde_json::json!({"delivered": delivered, "nanos": nanos as u64}));
}

/// The control core's loop. Returns how many bindings it made.
fn decide(
    case: Case,
    published: Arc<Published>,
    mut commands: rtrb::Producer<Command>,
    mut events: rtrb::Consumer<Event>,
    is_stopping: &AtomicBool,
) -> u64 {
    let identity = identity(1);
    let config = ControlConfig {
        name: "node".into(),
        identity,
        control: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 4433),
        roles: Roles { entry: true, relay: true, exit: true },
        slots: 1,
        fans: 1,
        bindings: case.flows,
        bindings_a_session: case.flows,
        nat: nat_config(case.flows),
        interfaces: Vec::new(),
        rss: vec![None],
        policy: ExitPolicy::default(),
        gateway: None,
        boot_epoch: 1,
        seed: [7; 32],
    };
    let clock = quanta::Clock::new();
    let mut control = Control::new(config, vec![published], clock.delta_as_nanos(0, clock.raw()));
    let mut tick_next = Instant::now();
    while !is_stopping.load(Relaxed) {
        let now = clock.delta_as_nanos(0, clock.raw());
        for _ in 0..256 {
            let Ok(event) = events.pop() else { break };
            control.on_event(0, event, now);
        }
        if Instant::now() >= tick_next {
            control.on_tick(now);
            tick_next += TICK;
        }
        control.set_command_room(0, commands.slots());
        while let Some(effect) = control.poll() {
            match effect {
                // The world has routes of its own.
                Effect::Command { command: Command::SetForwarding(_), .. } => {}
                Effect::Command { command, .. } => commands.push(command).expect("there is room"),
                _ => {}
            }
        }
    }
    control.summary(0).counters.bindings_made
}
