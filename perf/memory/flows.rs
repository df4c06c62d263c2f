//! How many new flows a second the control core sets up for one worker: each packet is the first of its flow, waits, and
//! is delivered when its binding is there.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use starnet::{
    control::{Control, ControlConfig},
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
    listing::Listings,
    world::{World, identity, nat_config},
};

/// Packets that wait at a time: fewer than a worker has room for.
const WAITING: u64 = 900;

/// Time between two ticks of the control core.
const TICK: Duration = Duration::from_millis(10);

/// Sets up half of `case.flows` flows; prints one line of JSON.
pub(crate) fn run(case: Case) {
    let mut flows = NewFlows::start(case);
    let (mut nanos, mut delivered) = (0, 0);
    for _ in 0..flows.chunks_in_half() {
        let (count, time) = flows.set_up();
        delivered += count;
        nanos += time.as_nanos();
    }
    let worker_idle = flows.idle.share();
    let (bindings, control_idle, _) = flows.stop();
    assert_eq!(bindings, delivered, "a binding for each flow");
    println!(
        "{}",
        serde_json::json!({"delivered": delivered, "nanos": nanos as u64, "worker_idle": worker_idle, "control_idle": control_idle})
    );
}

/// How much of its time a thread found nothing to do.
#[derive(Default)]
struct Idle {
    idle: u64,
    all: u64,
}

impl Idle {
    fn add(&mut self, clocks: u64, is_idle: bool) {
        self.all += clocks;
        self.idle += if is_idle { clocks } else { 0 };
    }

    fn share(&self) -> f64 {
        self.idle as f64 / self.all.max(1) as f64
    }
}

/// A worker, and the control core in a thread of its own that sets up its flows.
pub(crate) struct NewFlows {
    pub(crate) world: World,
    pub(crate) clock: quanta::Clock,
    case: Case,
    listings: Arc<Listings>,
    is_stopping: Arc<AtomicBool>,
    control: JoinHandle<(u64, f64)>,
    /// Of the worker, while first packets come.
    idle: Idle,
}

impl NewFlows {
    /// No flows yet. The worker is this thread's, which has the last core.
    pub(crate) fn start(case: Case) -> Self {
        let mut world = World::new(case, 0, handoff::mesh(1).remove(0));
        world.worker.driver().in_flight_max = WAITING;
        let (commands, events) = world.take_rings();
        let published = Arc::clone(&world.published);
        let (listings, is_stopping) = (Arc::new(Listings::default()), Arc::new(AtomicBool::new(false)));
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let (first, last) = (cores.first().copied(), cores.last().copied());
        let (asked, stop) = (Arc::clone(&listings), Arc::clone(&is_stopping));
        let control = std::thread::spawn(move || {
            first.map(core_affinity::set_for_current);
            decide(case, published, commands, events, &asked, &stop)
        });
        last.map(core_affinity::set_for_current);
        Self { world, clock: quanta::Clock::new(), case, listings, is_stopping, control, idle: Idle::default() }
    }

    /// What the control core is to list beside.
    pub(crate) fn listings(&self) -> &Listings {
        &self.listings
    }

    /// Half of what there is room for, so that ports are not hard to find.
    pub(crate) fn chunks_in_half(&self) -> u32 {
        self.case.flows / 2 / self.world.chunk().0 as u32
    }

    /// Sends the first packets of the next flows, a chunk of them; how many were delivered, and in which time.
    pub(crate) fn set_up(&mut self) -> (u64, Duration) {
        let world = &mut self.world;
        world.prepare_in_order();
        let count = world.chunk().1;
        let wanted = world.worker.driver().passed.sent + count;
        world.worker.driver().rewind();
        let start = Instant::now();
        let mut now = self.clock.raw();
        while world.worker.driver().passed.sent < wanted {
            let sweep = world.worker.sweep(self.clock.delta_as_nanos(0, now));
            let before = std::mem::replace(&mut now, self.clock.raw());
            self.idle.add(now.saturating_sub(before), sweep.is_idle());
            assert!(start.elapsed() < Duration::from_secs(20), "a first packet was not delivered");
        }
        (count, start.elapsed())
    }

    /// How many bindings were made, how much of its time the control core was idle, and what was listed.
    pub(crate) fn stop(self) -> (u64, f64, Arc<Listings>) {
        self.is_stopping.store(true, Relaxed);
        let (bindings, idle) = self.control.join().expect("the control core ends");
        (bindings, idle, self.listings)
    }
}

/// The control core's loop. Returns how many bindings it made, and how much of its time it was idle.
fn decide(
    case: Case,
    published: Arc<Published>,
    mut commands: rtrb::Producer<Command>,
    mut events: rtrb::Consumer<Event>,
    listings: &Listings,
    is_stopping: &AtomicBool,
) -> (u64, f64) {
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
        policy: ExitPolicy::default(),
        gateway: None,
        boot_epoch: 1,
        seed: [7; 32],
    };
    let clock = quanta::Clock::new();
    let mut control = Control::new(config, vec![published], clock.delta_as_nanos(0, clock.raw()));
    // The world has routes of its own.
    control.take_commands(0, usize::MAX).for_each(drop);
    let mut tick_next = Instant::now();
    let (mut idle, mut before, mut taken) = (Idle::default(), clock.raw(), 0);
    while !is_stopping.load(Relaxed) {
        let raw = clock.raw();
        idle.add(raw.saturating_sub(std::mem::replace(&mut before, raw)), taken == 0);
        let now = clock.delta_as_nanos(0, raw);
        taken = control.on_events(0, &mut events, 256, now);
        listings.go_on(&control, now);
        if Instant::now() >= tick_next {
            control.on_tick(now);
            tick_next += TICK;
        }
        control.write_commands(0, &mut commands);
        while control.poll().is_some() {}
    }
    (control.summary(0).counters.bindings_made, idle.share())
}
