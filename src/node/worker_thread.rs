//! The thread of a worker: sweep after sweep, and what to do when there is nothing to do.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
            fence,
        },
    },
    thread::Thread,
    time::Duration,
};

use super::{clock::NodeClock, config::IdlePolicy};
use crate::{
    Nanos,
    dataplane::{driver::Driver, published::Published, worker::Worker},
};

/// How long an adaptive worker spins after its last packet before it sleeps: about what falling asleep and waking up
/// cost.
const SPIN: Nanos = 20_000;

/// Longest sleep: a bound on what a lost wake-up can cost, and the heartbeat of an idle worker.
const SLEEP_MAX: Duration = Duration::from_millis(10);

/// Wakes a worker that sleeps; costs nearly nothing while it is awake.
#[derive(Clone)]
pub struct Doorbell {
    published: Arc<Published>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Doorbell {
    /// The bell of the worker that shows `published`; `wake` ends its [`Driver::wait`].
    pub fn new(published: Arc<Published>, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { published, wake: Arc::new(wake) }
    }

    /// To be called after something was put into one of the worker's rings.
    pub fn ring(&self) {
        // With the fence in `fall_asleep`: either we see that it sleeps, or its last look sees what was put there.
        fence(SeqCst);
        if self.published.worker.is_asleep.load(Relaxed) != 0 {
            (self.wake)();
        }
    }

    /// Wakes it in any case.
    pub fn wake(&self) {
        (self.wake)();
    }
}

/// All that a worker's thread needs.
pub struct WorkerThread<D: Driver> {
    /// The worker.
    pub worker: Worker<D>,
    /// What it shows.
    pub published: Arc<Published>,
    /// What it does without packets.
    pub idle: IdlePolicy,
    /// The node's clock.
    pub clock: NodeClock,
    /// By worker number.
    pub doorbells: Vec<Doorbell>,
    /// The control core's, to be unparked when there are events.
    pub control: Thread,
    /// Set once, then the thread ends; ring its bell afterwards.
    pub is_stopping: Arc<AtomicBool>,
}

impl<D: Driver> WorkerThread<D> {
    /// Runs until told to stop.
    pub fn run(mut self) {
        let mut spin_until = 0;
        while !self.is_stopping.load(Relaxed) {
            let now = self.clock.now();
            if self.sweep(now) {
                spin_until = now + SPIN;
            } else if self.idle == IdlePolicy::Busy || now < spin_until {
                std::hint::spin_loop();
            } else {
                self.fall_asleep();
            }
        }
    }

    /// One sweep, and news of it to whom it concerns. True where there was something to do.
    #[inline]
    fn sweep(&mut self, now: Nanos) -> bool {
        let sweep = self.worker.sweep(now);
        if sweep.has_events {
            self.control.unpark();
        }
        let mut others = sweep.handed_to;
        while others != 0 {
            self.doorbells[others.trailing_zeros() as usize].ring();
            others &= others - 1;
        }
        !sweep.is_idle()
    }

    fn fall_asleep(&mut self) {
        self.published.worker.is_asleep.store(1, Relaxed);
        fence(SeqCst);
        // A last look: what came before the store above rang no bell.
        if !self.sweep(self.clock.now()) && !self.is_stopping.load(Relaxed) {
            self.worker.driver().wait(SLEEP_MAX);
        }
        self.published.worker.is_asleep.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::mpsc::{self, Receiver},
    };

    use super::*;
    use crate::dataplane::{
        command::{Command, Event},
        driver::{DriverStatistics, Frames, Received, Transmit, memory::MemoryDriver},
        forwarding::Identity,
        handoff,
        nat::NatConfig,
        worker::{Rings, WorkerConfig},
    };

    /// A memory driver that sleeps until it is woken, however long that takes.
    struct Sleeper {
        driver: MemoryDriver,
        wake: Receiver<()>,
    }

    impl Driver for Sleeper {
        fn frames(&mut self) -> &mut Frames {
            self.driver.frames()
        }
        fn receive(&mut self, into: &mut [Received]) -> usize {
            self.driver.receive(into)
        }
        fn allocate(&mut self) -> Option<u32> {
            self.driver.allocate()
        }
        fn release(&mut self, frame: u32) {
            self.driver.release(frame);
        }
        fn transmit(&mut self, batch: &[Transmit], refused: &mut crate::dataplane::packet::Bitmap) {
            self.driver.transmit(batch, refused)
        }
        fn flush(&mut self) {
            self.driver.flush();
        }
        fn wait(&mut self, _: Duration) {
            self.wake.recv().unwrap();
        }
        fn statistics(&mut self) -> DriverStatistics {
            self.driver.statistics()
        }
    }

    #[test]
    fn a_sleeping_worker_applies_commands_when_its_bell_rings_and_tells_the_control_core() {
        let published = Arc::new(Published::new(4, 4));
        let clock = NodeClock::start();
        let (mut commands, worker_commands) = rtrb::RingBuffer::new(16);
        let (worker_events, mut events) = rtrb::RingBuffer::new(16);
        let identity = Identity {
            address: Ipv4Addr::LOCALHOST,
            data_port: 40_000,
            nat_port_first: 40_001,
            nat_port_last: 49_999,
            probe_key: [0; 16],
            workers: 1,
        };
        let config = WorkerConfig {
            index: 0,
            identity,
            fans: 4,
            bindings: 4,
            nat: NatConfig::of(&identity),
            hash_key: [0; 16],
            clock: clock.raw_clock().clone(),
        };
        let rings = Rings { commands: worker_commands, events: worker_events, handoff: handoff::mesh(1).remove(0) };
        let (wake, woken) = mpsc::channel();
        let driver = Sleeper { driver: MemoryDriver::new(1024), wake: woken };
        let doorbell = Doorbell::new(Arc::clone(&published), move || wake.send(()).unwrap());
        let is_stopping = Arc::new(AtomicBool::new(false));
        let thread = WorkerThread {
            worker: Worker::new(config, driver, rings, Arc::clone(&published)),
            published: Arc::clone(&published),
            idle: IdlePolicy::Adaptive,
            clock,
            doorbells: vec![doorbell.clone()],
            control: std::thread::current(),
            is_stopping: Arc::clone(&is_stopping),
        };
        let thread = std::thread::spawn(move || thread.run());
        for slot in 0..4 {
            while published.worker.is_asleep.load(Relaxed) == 0 {
                std::thread::yield_now();
            }
            commands.push(Command::FreeSlot { slot, generation: 0, idle_since: None }).unwrap();
            doorbell.ring();
            let event = loop {
                match events.pop() {
                    Ok(event) => break event,
                    Err(_) => std::thread::park(),
                }
            };
            assert!(matches!(event, Event::SlotFreed { slot: freed } if freed == slot), "{event:?}");
        }
        is_stopping.store(true, Relaxed);
        doorbell.wake();
        thread.join().unwrap();
    }
}
