//! The thread of the control core: carries what happens to [`Control`], and what it decides to where it belongs.
//!
//! It sleeps while nothing happens; workers unpark it when they have events, everyone else by [`ControlSender`].

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddrV4},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread::{self, Thread},
    time::Duration,
};

use serde_json::Value;
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use super::{
    clock::NodeClock,
    metrics::Measured,
    port_claim::PoolClaims,
    views::{self, PathsQuestion},
    worker_thread::Doorbell,
};
use crate::{
    MILLISECOND, Nanos,
    control::{
        CallId, Caller, Control, Effect, KernelEvent, RequestId, Summary,
        page::{Cursor, Page},
        show::SessionView,
        show_nat::{NatAnswer, NatFilter, NatQuestion},
        show_sessions::SessionQuestion,
    },
    dataplane::{
        command::{Command, Event},
        gateway::{Gateway, Transit},
    },
    rpc::{
        messages::{Neighbours, NodeName, Report, Request, Response},
        quic::Responder,
        token,
    },
    telemetry::show::{PathRow, Topic},
};

/// Time between two ticks of the control core.
const TICK_INTERVAL: Nanos = 10 * MILLISECOND;

/// Events of one worker taken before the others', and inputs taken before events again.
const BATCH: usize = 256;

/// Sessions whose paths one question is about: the workers are asked about each.
const PATHS_AT_ONCE: usize = 256;

/// How long workers may take to report on their fans; what has come until then is shown.
const PATHS_PATIENCE: Nanos = 500 * MILLISECOND;

/// What reaches the control core from other threads than the workers'.
pub(super) enum Input {
    /// A request came in.
    Request { caller: Caller, request: Request, responder: Responder },
    /// A request of ours was answered, or failed.
    Answer { call: CallId, response: Option<Response> },
    /// The kernel changed.
    Kernel(KernelEvent),
    /// The control centre spoke.
    Neighbours(Neighbours),
    /// What the probes measured is wanted, for the control centre.
    Report(oneshot::Sender<Report>),
    /// The node at a glance is wanted.
    Summary(oneshot::Sender<Summary>),
    /// What it knows for metrics is wanted.
    Measure(oneshot::Sender<Measured>),
    /// The operator wants to see something else.
    Show { topic: Topic, answer: oneshot::Sender<Result<Value, String>> },
    /// The operator asks about sessions.
    ShowSessions { question: SessionQuestion, answer: oneshot::Sender<Page<SessionView>> },
    /// The operator asks about the paths of sessions.
    ShowPaths { question: SessionQuestion, answer: oneshot::Sender<Page<PathRow>> },
    /// The operator asks about the NAT.
    ShowNat { question: NatQuestion, answer: oneshot::Sender<NatAnswer> },
    /// Bindings are to go; answered by how many went, and where to go on.
    ClearNat { filter: NatFilter, after: Option<Cursor>, answer: oneshot::Sender<(u64, Option<Cursor>)> },
    /// The gateway's file was read anew; answered by the number of bindings its hosts have, or why it cannot be so.
    Gateway { gateway: Gateway, answer: oneshot::Sender<Result<u64, String>> },
    /// Take no new flows, or take them again; answered in the same way.
    Drain { is_draining: bool, answer: oneshot::Sender<Result<u64, String>> },
    /// The thread is to do nothing for so long: a test of everyone who must not wait for it.
    Stall { time: Duration, answer: oneshot::Sender<()> },
    /// The node ends.
    Stop,
}

impl Input {
    /// True of what goes through tables: packets come before the next one.
    fn is_page(&self) -> bool {
        use Input::{ClearNat, ShowNat, ShowPaths, ShowSessions};
        matches!(self, ShowSessions { .. } | ShowPaths { .. } | ShowNat { .. } | ClearNat { .. })
    }
}

/// A request to another node, to be made by the network thread.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) call: CallId,
    pub(super) to: NodeName,
    pub(super) address: SocketAddrV4,
    pub(super) request: Request,
}

/// Sends to the control core from any thread.
#[derive(Clone)]
pub(super) struct ControlSender {
    inputs: Sender<Input>,
    thread: Arc<OnceLock<Thread>>,
}

impl ControlSender {
    /// Never blocks. What is sent to a control core that has ended is dropped.
    pub(super) fn send(&self, input: Input) {
        let _ = self.inputs.send(input);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Tells which thread to unpark from now on.
    pub(super) fn attach(&self, thread: &Thread) {
        let _ = self.thread.set(thread.clone());
    }
}

/// A sender and the end to hand to [`ControlThread`].
pub(super) fn inputs() -> (ControlSender, Receiver<Input>) {
    let (inputs, receiver) = channel();
    (ControlSender { inputs, thread: Arc::default() }, receiver)
}

/// The control core's ends of a worker's rings.
pub(super) struct WorkerLink {
    pub(super) commands: rtrb::Producer<Command>,
    pub(super) events: rtrb::Consumer<Event>,
    pub(super) doorbell: Doorbell,
}

/// All that the control core's thread needs.
pub(super) struct ControlThread {
    pub(super) control: Control,
    pub(super) clock: NodeClock,
    /// By worker number.
    pub(super) workers: Vec<WorkerLink>,
    pub(super) inputs: Receiver<Input>,
    pub(super) calls: UnboundedSender<Call>,
    /// Has the kernel resolve a neighbour of an interface.
    pub(super) resolve: Box<dyn FnMut(u8, IpAddr) + Send>,
    /// Has the XDP programs take these packets.
    pub(super) take: Box<dyn FnMut(&Transit) + Send>,
    /// Of the outside addresses, so that no other node takes their ports.
    pub(super) claims: PoolClaims,
    /// When it last went round its loop.
    pub(super) heartbeat: Arc<AtomicU64>,
    pub(super) waiting: Waiting,
}

/// What came of an order: how many bindings there are, or why nothing was done.
type Done = Result<u64, String>;

/// Who waits for an answer of the control core.
#[derive(Default)]
pub(super) struct Waiting {
    number_next: u64,
    requests: HashMap<RequestId, Responder>,
    paths: Vec<PathsQuestion>,
    /// Orders that were carried out, but for what is to be told to others.
    orders: Vec<(oneshot::Sender<Done>, Done)>,
}

impl Waiting {
    fn number(&mut self) -> RequestId {
        self.number_next += 1;
        RequestId(self.number_next)
    }
}

impl ControlThread {
    /// Puts what the kernel is known to say into the workers' rings, before there are threads: no packet comes to a
    /// worker that does not know where to send it.
    pub(super) fn prepare(&mut self) {
        let now = self.clock.now();
        while self.take_inputs(now).is_some_and(|count| count > 0) {}
        self.control.on_tick(now);
        self.execute();
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        let mut tick_next = 0;
        loop {
            let now = self.clock.now();
            self.heartbeat.store(now, Relaxed);
            let events = self.take_events(now);
            let Some(inputs) = self.take_inputs(now) else { return };
            if now >= tick_next {
                self.control.on_tick(now);
                tick_next = now + TICK_INTERVAL;
            }
            let effects = self.execute();
            self.answer_paths(now);
            if events + inputs + effects == 0 {
                thread::park_timeout(Duration::from_nanos(tick_next.saturating_sub(now)));
            }
        }
    }

    fn take_events(&mut self, now: Nanos) -> usize {
        let mut count = 0;
        for (number, worker) in self.workers.iter_mut().enumerate() {
            count += self.control.on_events(number, &mut worker.events, BATCH, now);
        }
        count
    }

    /// How many; `None` where the node ends.
    fn take_inputs(&mut self, now: Nanos) -> Option<usize> {
        for count in 0..BATCH {
            match self.inputs.try_recv() {
                Ok(Input::Stop) | Err(TryRecvError::Disconnected) => return None,
                Ok(input) => {
                    let is_page = input.is_page();
                    self.take_input(input, now);
                    if is_page {
                        return Some(count + 1);
                    }
                }
                Err(TryRecvError::Empty) => return Some(count),
            }
        }
        Some(BATCH)
    }

    fn take_input(&mut self, input: Input, now: Nanos) {
        match input {
            Input::Request { caller, request, responder } => {
                let id = self.waiting.number();
                self.waiting.requests.insert(id, responder);
                self.control.on_request(caller, id, request, now, token::unix_seconds());
            }
            Input::Answer { call, response } => self.control.on_response(call, response, now),
            Input::Kernel(event) => self.control.on_kernel(event, now),
            Input::Neighbours(neighbours) => self.control.on_neighbours(neighbours, now),
            Input::Report(answer) => {
                let _ = answer.send(self.control.report());
            }
            Input::Summary(answer) => {
                let _ = answer.send(self.control.summary(now));
            }
            // Who scraped and gave up costs nothing.
            Input::Measure(answer) if answer.is_closed() => {}
            Input::Measure(answer) => {
                let _ = answer.send(Measured::of(&self.control, now));
            }
            Input::ShowSessions { question, answer } => {
                let _ = answer.send(self.control.session_page(&question, now));
            }
            Input::ShowPaths { mut question, answer } => {
                question.limit = question.limit.min(PATHS_AT_ONCE);
                let sessions = self.control.session_page(&question, now);
                let mut question = PathsQuestion::new(sessions, answer, now + PATHS_PATIENCE);
                for ct_index in question.merging() {
                    let id = self.waiting.number();
                    if self.control.read_paths(id, ct_index) {
                        question.wait_for(id, ct_index);
                    }
                }
                self.waiting.paths.push(question);
            }
            Input::Show { topic, answer } => {
                let _ = answer.send(views::of_control(&self.control, topic));
            }
            Input::ShowNat { question, answer } => {
                let _ = answer.send(self.control.answer_nat(&question, now));
            }
            Input::ClearNat { filter, after, answer } => {
                let _ = answer.send(self.control.clear_nat(&filter, after));
            }
            Input::Gateway { gateway, answer } => {
                let done = self.set_gateway(gateway, now);
                self.waiting.orders.push((answer, done));
            }
            Input::Drain { is_draining, answer } => {
                self.control.set_draining(is_draining);
                self.waiting.orders.push((answer, Ok(self.control.gateway_bindings())));
            }
            Input::Stall { time, answer } => {
                thread::sleep(time);
                let _ = answer.send(());
            }
            Input::Stop => {}
        }
    }

    /// All of it or nothing.
    fn set_gateway(&mut self, gateway: Gateway, now: Nanos) -> Result<u64, String> {
        let claimed = self.claims.claim(&gateway.addresses).map_err(|error| error.to_string())?;
        self.control.set_gateway(gateway, now).map_err(|error| error.to_string())?;
        self.claims.hold(claimed);
        Ok(self.control.gateway_bindings())
    }

    /// Does what the control core decided; how much that was.
    fn execute(&mut self) -> usize {
        let mut count = 0;
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let told = self.control.write_commands(number, &mut worker.commands);
            if told > 0 {
                worker.doorbell.ring();
            }
            count += told;
        }
        while let Some(effect) = self.control.poll() {
            count += 1;
            match effect {
                Effect::Respond { request, response } => {
                    if let Some(responder) = self.waiting.requests.remove(&request) {
                        responder.respond(response);
                    }
                }
                Effect::Call { call, to, address, request } => {
                    // Fails only while the node ends.
                    let _ = self.calls.send(Call { call, to, address, request });
                }
                Effect::Resolve { interface, address } => (self.resolve)(interface, address),
                Effect::Take(transit) => {
                    (self.take)(&transit);
                    // Not those of `transit`, which may be older than what was claimed since.
                    self.claims.keep(self.control.outside_addresses());
                }
                Effect::FanReport { request, report } => {
                    self.waiting.paths.iter_mut().for_each(|question| question.take(request, &report));
                }
            }
        }
        for (answer, done) in self.waiting.orders.drain(..) {
            let _ = answer.send(done);
        }
        count
    }

    fn answer_paths(&mut self, now: Nanos) {
        for question in self.waiting.paths.extract_if(.., |question| question.is_ready(now)) {
            question.answer();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        control::ControlConfig,
        dataplane::{
            command::PuntCause,
            exit_policy::ExitPolicy,
            forwarding::{Identity, Interface},
            gateway::OutsideAddress,
            nat::NatConfig,
            published::Published,
        },
        rpc::messages::Roles,
    };
    use std::net::Ipv4Addr;

    /// Far more than is ever needed: a test that runs into it has failed.
    const LONG: Duration = Duration::from_secs(20);

    struct Fixture {
        sender: ControlSender,
        commands: rtrb::Consumer<Command>,
        events: rtrb::Producer<Event>,
        resolved: Receiver<(u8, IpAddr)>,
        thread: thread::JoinHandle<()>,
        _calls: tokio::sync::mpsc::UnboundedReceiver<Call>,
    }

    /// A control core in its thread, its worker's ends of the rings, and what it asks of the kernel.
    fn start() -> Fixture {
        start_after(|_| {})
    }

    /// The same, after `before` has happened.
    fn start_after(before: impl FnOnce(&ControlSender)) -> Fixture {
        let claims = PoolClaims::new(std::path::Path::new("/nonexistent"), "n1", Ipv4Addr::LOCALHOST);
        let (mut control, sender, commands, events, resolved, calls) = control(None, claims);
        before(&sender);
        control.prepare();
        assert_eq!(commands.slots(), 1, "the ring as a worker finds it");
        let thread = thread::spawn(move || control.run());
        sender.attach(thread.thread());
        Fixture { sender, commands, events, resolved, thread, _calls: calls }
    }

    type Ends = (
        ControlThread,
        ControlSender,
        rtrb::Consumer<Command>,
        rtrb::Producer<Event>,
        Receiver<(u8, IpAddr)>,
        tokio::sync::mpsc::UnboundedReceiver<Call>,
    );

    /// A control core that waits for its thread, and the other ends of what it has.
    fn control(gateway: Option<Gateway>, claims: PoolClaims) -> Ends {
        let identity = Identity {
            address: Ipv4Addr::LOCALHOST,
            data_port: 40_000,
            nat_port_first: 40_001,
            nat_port_last: 41_999,
            probe_key: [0; 16],
            workers: 1,
        };
        let config = ControlConfig {
            name: "fra1".into(),
            identity,
            control: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 4401),
            roles: Roles { entry: true, relay: true, exit: true },
            slots: 8,
            fans: 8,
            bindings: 8,
            bindings_a_session: 8,
            nat: NatConfig::of(&identity),
            interfaces: vec![Interface { index: 5, mac: [2; 6], mtu: 1500, is_up: true }],
            policy: ExitPolicy::default(),
            gateway,
            boot_epoch: 1,
            seed: [7; 32],
        };
        let clock = NodeClock::start();
        let published = Arc::new(Published::new(8, 8));
        let (command_producer, commands) = rtrb::RingBuffer::new(64);
        let (events, event_consumer) = rtrb::RingBuffer::new(64);
        let (sender, inputs) = inputs();
        let (calls, calls_made) = tokio::sync::mpsc::unbounded_channel();
        let (asked, resolved) = channel();
        let control = ControlThread {
            control: Control::new(config, vec![Arc::clone(&published)], clock.now()),
            clock,
            workers: vec![WorkerLink {
                commands: command_producer,
                events: event_consumer,
                doorbell: Doorbell::new(published, || {}),
            }],
            inputs,
            calls,
            resolve: Box::new(move |interface, address| asked.send((interface, address)).unwrap()),
            take: Box::new(|_| {}),
            claims,
            heartbeat: Arc::default(),
            waiting: Waiting::default(),
        };
        (control, sender, commands, events, resolved, calls_made)
    }

    fn ask<T>(sender: &ControlSender, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> T {
        let (answer, answered) = oneshot::channel();
        sender.send(input(answer));
        answered.blocking_recv().unwrap()
    }

    #[test]
    fn questions_are_answered_and_a_stop_is_the_end() {
        let fixture = start();
        assert_eq!(ask(&fixture.sender, Input::Summary).name, "fra1");
        assert_eq!(ask(&fixture.sender, Input::Report).boot_epoch, 1);
        let shown = ask(&fixture.sender, |answer| Input::Show { topic: Topic::Peers, answer });
        assert_eq!(shown, Ok(Value::Array(Vec::new())));
        let question = SessionQuestion::default();
        let sessions = ask(&fixture.sender, |answer| Input::ShowSessions { question: question.clone(), answer });
        assert_eq!(sessions, Page { rows: Vec::new(), next: None });
        let paths = ask(&fixture.sender, |answer| Input::ShowPaths { question, answer });
        assert_eq!(paths, Page { rows: Vec::new(), next: None });
        fixture.sender.send(Input::Stop);
        fixture.thread.join().unwrap();
    }

    #[test]
    fn a_worker_that_starts_finds_all_that_the_kernel_said_before() {
        let count = 3 * BATCH as u32;
        let mut fixture = start_after(|sender| {
            for number in 0..count {
                let address = Ipv4Addr::from_bits(0x0a00_0000 + number).into();
                sender.send(Input::Kernel(KernelEvent::NeighbourUp { interface: 0, address, mac: [2; 6] }));
            }
        });
        let Ok(Command::SetForwarding(forwarding)) = fixture.commands.pop() else { panic!("not the tables") };
        assert_eq!(forwarding.adjacencies.len(), count as usize);
        fixture.sender.send(Input::Stop);
        fixture.thread.join().unwrap();
    }

    #[test]
    fn a_workers_event_reaches_the_control_core_and_its_command_the_worker() {
        let mut fixture = start();
        // A packet waits for a neighbour's MAC address: the kernel is asked.
        let next_hop = IpAddr::from([192, 0, 2, 1]);
        let cause = PuntCause::NoAdjacency { interface: 5, next_hop };
        fixture.events.push(Event::Punt { waiting: 3, cause }).unwrap();
        fixture.thread.thread().unpark();
        assert_eq!(fixture.resolved.recv_timeout(LONG), Ok((0, next_hop)));
        // It is gone: the packet is refused.
        fixture.sender.send(Input::Kernel(KernelEvent::NeighbourGone { interface: 0, address: next_hop }));
        let start = Instant::now();
        while !matches!(fixture.commands.pop(), Ok(Command::Refuse { waiting: 3, .. })) {
            assert!(start.elapsed() < LONG, "the packet is never refused");
            thread::yield_now();
        }
        fixture.sender.send(Input::Stop);
        fixture.thread.join().unwrap();
    }

    #[test]
    fn who_ordered_a_reload_hears_of_it_when_packets_are_taken_by_it() {
        let claims = PoolClaims::new(std::path::Path::new("/nonexistent"), "n1", Ipv4Addr::LOCALHOST);
        let (mut control, ..) = control(Some(Gateway::default()), claims);
        let (took, taken) = channel();
        control.take = Box::new(move |transit| took.send(transit.exempt.clone()).unwrap());
        let exempt = vec!["192.0.2.0/24".parse().unwrap()];
        let (answer, mut answered) = oneshot::channel();
        control.take_input(
            Input::Gateway { gateway: Gateway { exempt: exempt.clone(), ..Gateway::default() }, answer },
            0,
        );
        assert!(answered.try_recv().is_err(), "the XDP programs know nothing of it");
        control.execute();
        assert_eq!((answered.try_recv().unwrap(), taken.try_iter().last()), (Ok(0), Some(exempt)));
    }

    #[test]
    fn what_a_reload_claims_is_held_though_the_kernels_addresses_changed_just_before() {
        let outside = |n| OutsideAddress { address: Ipv4Addr::new(192, 0, 2, n), first: 1024, last: 65_535 };
        let file = |addresses: &[OutsideAddress]| Gateway { addresses: addresses.to_vec(), ..Gateway::default() };
        let folder = tempfile::tempdir().unwrap();
        let claims = PoolClaims::new(folder.path(), "n1", Ipv4Addr::LOCALHOST);
        let (mut control, ..) = control(Some(file(&[])), claims);
        let others = PoolClaims::new(folder.path(), "n2", Ipv4Addr::LOCALHOST);
        let reload = |control: &mut ControlThread, gateway| {
            // The address was given to the machine a moment ago; the thread takes both inputs at once.
            control.take_input(Input::Kernel(KernelEvent::Addresses(Vec::new())), 0);
            let (answer, mut answered) = oneshot::channel();
            control.take_input(Input::Gateway { gateway, answer }, 0);
            control.execute();
            answered.try_recv().unwrap().unwrap();
        };
        reload(&mut control, file(&[outside(1)]));
        assert!(others.claim(&[outside(1)]).is_err(), "it is another node's");
        reload(&mut control, file(&[outside(2)]));
        assert!(others.claim(&[outside(1)]).is_err(), "its flows may go on");
        control.control.on_tick(2 * crate::SECOND);
        control.execute();
        assert!(others.claim(&[outside(1)]).is_ok(), "it is out of the pool");
        assert!(others.claim(&[outside(2)]).is_err());
    }
}
