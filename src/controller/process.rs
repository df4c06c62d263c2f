//! The control centre as a process: QUIC, the operator's socket, signals.

use std::{
    future, io,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use super::{Controller, ControllerConfig, metrics, show};
use crate::{
    Nanos,
    rpc::{
        cert::{CONTROLLER_DNS_NAME, Tls},
        files::FileError,
        quic::{Incoming, ListenError, Server},
        token::{self, SigningKey},
    },
    telemetry::{
        http::{self, MetricsServer},
        operator::OperatorSocket,
    },
};

/// Why the control centre could not be started.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A key or certificate.
    #[error(transparent)]
    File(#[from] FileError),
    /// The QUIC port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The operator's socket.
    #[error("the operator's socket {0}")]
    Operator(#[source] io::Error),
    /// The metrics' address.
    #[error(transparent)]
    Metrics(#[from] http::ListenError),
    /// The runtime or the signal handler.
    #[error("cannot start: {0}")]
    System(String),
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// Where a file, port or socket cannot be used: nothing runs then.
pub fn run(config: &ControllerConfig) -> Result<(), RunError> {
    let system = |error: &dyn std::fmt::Display| RunError::System(error.to_string());
    let stop = Arc::new(Notify::new());
    let on_signal = Arc::clone(&stop);
    ctrlc::set_handler(move || on_signal.notify_one()).map_err(|error| system(&error))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| system(&error))?;
    runtime.block_on(serve(config, &stop))
}

/// Serves until `stop` is notified.
async fn serve(config: &ControllerConfig, stop: &Notify) -> Result<(), RunError> {
    let tls = Tls::load(&config.ca, &config.certificate, &config.key, CONTROLLER_DNS_NAME)?;
    let token_key = SigningKey::load(&config.token_key)?.public();
    let controller = Arc::new(Mutex::new(Controller::new(config.links.clone(), token_key)));
    let operator = OperatorSocket::bind(&config.socket).map_err(RunError::Operator)?;
    let metrics_server = config.metrics.map(MetricsServer::bind).transpose()?;
    let (server, mut requests) = Server::listen(config.listen, &tls)?;
    tracing::info!(address = %config.listen, socket = %config.socket.display(), "control centre is up");

    let start = Instant::now();
    let now = move || Nanos::try_from(start.elapsed().as_nanos()).unwrap_or(Nanos::MAX);
    let shown = Arc::clone(&controller);
    let show = operator.serve(move |topic| {
        let answer = show::answer(lock(&shown).registry(), &topic, now());
        async move { answer }
    });
    let measured = Arc::clone(&controller);
    let measure = move || {
        let text = metrics::text(&lock(&measured), 0, now());
        async move { text }
    };
    let measure = async {
        match &metrics_server {
            Some(server) => server.serve(measure).await,
            None => future::pending().await,
        }
    };
    let answer = async {
        while let Some(Incoming { caller, request, responder }) = requests.recv().await {
            responder.respond(lock(&controller).handle(&caller, request, now(), token::unix_seconds()));
        }
    };
    tokio::select! {
        () = show => {}
        () = measure => {}
        () = answer => {}
        () = stop.notified() => tracing::info!("stopping"),
    }
    server.close().await;
    Ok(())
}

fn lock(controller: &Mutex<Controller>) -> std::sync::MutexGuard<'_, Controller> {
    controller.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, SocketAddrV4},
        time::Duration,
    };

    use super::{
        super::{Links, registry::tests::register},
        *,
    };
    use crate::{
        rpc::{
            cert::{
                ServerIdentity,
                tests::{deployment, load_node},
            },
            messages::{FailureReason, Request, Response},
            quic::Pool,
            token::{Claims, issue},
        },
        telemetry::operator::ask,
    };

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn nodes_clients_and_the_operator_are_served_until_the_end() {
        let dir = deployment(&["relay-1"]);
        let path = |name: &str| dir.path().join(name);
        let key = SigningKey::generate();
        key.save(&path("token.key"), false).unwrap();
        let free = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let config = ControllerConfig {
            listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, free),
            socket: path("controller.sock"),
            metrics: None,
            links: Links::FullMesh,
            ca: path("ca.pem"),
            certificate: path("controller.pem"),
            key: path("controller.key"),
            token_key: path("token.key"),
        };
        let stop = Arc::new(Notify::new());
        let task = tokio::spawn({
            let (config, stop) = (config.clone(), Arc::clone(&stop));
            async move { serve(&config, &stop).await }
        });
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let node = Pool::bind(any, &load_node(dir.path(), "relay-1").unwrap()).unwrap();
        let client = Pool::bind(any, &Tls::load_client(&path("ca.pem")).unwrap()).unwrap();
        let centre = ServerIdentity::Controller;

        let request = Request::Register(register("relay-1", 1, 7));
        let answer = node.call(&centre, config.listen, &request, LONG).await.unwrap();
        let Response::Neighbours(neighbours) = answer else { panic!("{answer:?}") };
        assert_eq!(neighbours.token_key, key.public());
        let answer = client.call(&centre, config.listen, &request, LONG).await.unwrap();
        assert!(matches!(&answer, Response::Failed(f) if f.reason == FailureReason::Unauthorised), "{answer:?}");

        let now = token::unix_seconds();
        let claims = Claims {
            client: "alice".into(),
            expires: now + 600,
            not_before: now,
            exits: None,
            paths_max: 2,
            sessions_max: 4,
        };
        let request = Request::Topology { token: issue(&claims, &key) };
        let answer = client.call(&centre, config.listen, &request, LONG).await.unwrap();
        let Response::Topology(topology) = answer else { panic!("{answer:?}") };
        assert_eq!(topology.nodes[0].name, "relay-1");

        let socket = config.socket.clone();
        let shown = tokio::task::spawn_blocking(move || ask(&socket, "nodes").unwrap()).await.unwrap();
        assert_eq!(shown[0]["name"], "relay-1");

        stop.notify_one();
        task.await.unwrap().unwrap();
        assert!(!config.socket.exists());
    }
}
