//! The metrics endpoint: HTTP/1.1, `GET /metrics` and `GET /healthz`, nothing else.
//!
//! For a monitoring system on a network one trusts: it tells nothing secret, but it neither asks who is there nor encrypts.
//! A request is one connection, for at most [`PATIENCE`], of at most [`CONNECTIONS_MAX`] at a time, and of one address at most
//! [`CONNECTIONS_OF_ONE`]; those who ask at about the same time get the same text. So nobody who is slow, or asks for the fun of
//! it, takes more of the process than that, or keeps out the others.
//!
//! hyper, without its client and without HTTP/2, since it is well kept and lives in the runtime that is there already;
//! tiny_http has had no release since 2022, brings threads of its own and lets a client be as slow as it likes.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, timeout},
};
use toml::Spanned;

use super::metrics;
use crate::config_file::{ConfigError, ConfigFile};

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16;

/// Connections of one address at a time; more are closed at once.
const CONNECTIONS_OF_ONE: usize = 8;

/// How long a connection may last: its request, the answer, and the reading of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long its request may take to come.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);

/// How long a text serves those who ask: much shorter than any monitoring system's interval.
const FRESH: Duration = Duration::from_millis(100);

/// Bytes of a request's header, at most.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// The table `[metrics]` of a configuration file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    listen: Spanned<String>,
}

impl Table {
    /// Where to answer. `is_taken` says why not at an address and port, if so.
    pub(crate) fn read(
        &self,
        file: &ConfigFile,
        is_taken: impl FnOnce(SocketAddr) -> Option<String>,
    ) -> Result<SocketAddr, ConfigError> {
        let expected = "an address and port, like 127.0.0.1:9100 or [::1]:9100";
        let listen: SocketAddr = file.parse_field("metrics.listen", &self.listen, expected)?;
        let refuse = |message: String| Err(file.error("metrics.listen", self.listen.span(), message));
        if listen.port() == 0 {
            return refuse("the port must not be 0".to_owned());
        }
        match is_taken(listen) {
            Some(why) => refuse(why),
            None => Ok(listen),
        }
    }
}

/// The address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("metrics.listen: {address}: {cause}")]
pub struct ListenError {
    address: SocketAddr,
    cause: io::Error,
}

/// The endpoint, bound.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    patience: Duration,
    request_patience: Duration,
    fresh: Duration,
}

impl MetricsServer {
    /// Binds the address. Nothing is answered before [`MetricsServer::serve`]. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// With the address in its text: another program has it, or it is not this machine's.
    pub fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |cause| ListenError { address, cause };
        // std's listener sets SO_REUSEADDR, so that a new start does not wait for the last one's connections.
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        Ok(Self { listener, patience: PATIENCE, request_patience: REQUEST_PATIENCE, fresh: FRESH })
    }

    /// Answers with what `metrics` writes, until the future is dropped.
    pub async fn serve<F, A>(&self, metrics: F)
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = String> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let callers = Arc::new(Callers::default());
        let written = Arc::new(Written { metrics, fresh: self.fresh, last: tokio::sync::Mutex::default() });
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            let (stream, caller) = match self.listener.accept().await {
                Ok((stream, from)) => (stream, callers.admit(from.ip().to_canonical())),
                Err(error) => {
                    tracing::warn!("metrics: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(caller) = caller else { continue };
            let (written, patience, request_patience) = (Arc::clone(&written), self.patience, self.request_patience);
            tokio::spawn(async move {
                // Who is too slow, or speaks another protocol, is not answered.
                let _ = timeout(patience, serve_one(stream, &written, request_patience)).await;
                drop((caller, place));
            });
        }
    }
}

/// The addresses that have a connection, each as often as it has one.
#[derive(Debug, Default)]
struct Callers(Mutex<Vec<IpAddr>>);

/// A connection of an address, until dropped.
struct Caller {
    address: IpAddr,
    all: Arc<Callers>,
}

impl Callers {
    /// `None`: the address has enough.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Caller> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_enough = all.iter().filter(|one| **one == address).count() >= CONNECTIONS_OF_ONE;
        (!is_enough).then(|| {
            all.push(address);
            Caller { address, all: Arc::clone(self) }
        })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = all.iter().position(|one| *one == self.address) {
            all.swap_remove(at);
        }
    }
}

/// What writes the metrics, and what it wrote last.
struct Written<F> {
    metrics: F,
    fresh: Duration,
    /// Locked while it is being written: who asks meanwhile waits for that.
    last: tokio::sync::Mutex<Option<(Instant, Arc<str>)>>,
}

impl<F, A> Written<F>
where
    F: Fn() -> A,
    A: Future<Output = String>,
{
    async fn text(&self) -> Arc<str> {
        let mut last = self.last.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < self.fresh
        {
            return Arc::clone(text);
        }
        let at = Instant::now();
        let text: Arc<str> = (self.metrics)().await.into();
        *last = Some((at, Arc::clone(&text)));
        text
    }
}

async fn serve_one<F, A>(stream: TcpStream, written: &Written<F>, patience: Duration) -> Result<(), hyper::Error>
where
    F: Fn() -> A,
    A: Future<Output = String>,
{
    let answer = |request: Request<Incoming>| async move {
        Ok::<_, Infallible>(respond(request.method(), request.uri().path(), written).await)
    };
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(HEADER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await
}

async fn respond<F, A>(method: &Method, path: &str, written: &Written<F>) -> Response<String>
where
    F: Fn() -> A,
    A: Future<Output = String>,
{
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let (status, kind, text) = match path {
        "/metrics" | "/healthz" if !is_read => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".to_owned())
        }
        "/metrics" => (StatusCode::OK, metrics::CONTENT_TYPE, written.text().await.to_string()),
        "/healthz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /metrics and /healthz\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, TcpStream as BlockingStream},
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Sends `request` as it is and reads to the end of the connection.
    fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = BlockingStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Runs `ask` beside a server whose metrics are one line.
    fn with_server<T: Send + 'static>(ask: impl FnOnce(SocketAddr) -> T + Send + 'static) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = MetricsServer::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let address = server.listener.local_addr().unwrap();
            let asked = tokio::task::spawn_blocking(move || ask(address));
            tokio::select! {
                () = server.serve(|| async { "starnet_up 1\n".to_owned() }) => unreachable!("serve does not end"),
                answer = asked => answer.unwrap(),
            }
        })
    }

    fn get(address: SocketAddr, method: &str, path: &str) -> String {
        exchange(address, &format!("{method} {path} HTTP/1.1\r\nHost: node\r\n\r\n"))
    }

    #[test]
    fn metrics_and_health_are_answered_and_nothing_else() {
        let answers = with_server(|address| {
            [("GET", "/metrics"), ("GET", "/healthz"), ("HEAD", "/metrics"), ("GET", "/"), ("POST", "/metrics")]
                .map(|(method, path)| get(address, method, path))
        });
        let [metrics, health, head, nowhere, post] = answers.each_ref().map(|answer| answer.as_str());
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n") && metrics.ends_with("\r\n\r\nstarnet_up 1\n"), "{metrics}");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{metrics}");
        assert!(health.starts_with("HTTP/1.1 200 OK\r\n") && health.ends_with("\r\n\r\nok\n"), "{health}");
        assert!(head.contains("content-length: 13\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(nowhere.starts_with("HTTP/1.1 404 Not Found\r\n"), "{nowhere}");
        assert!(post.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{post}");
        assert!(post.contains("allow: GET, HEAD\r\n"), "{post}");
    }

    #[test]
    fn what_is_not_http_or_is_too_much_of_it_ends_the_connection() {
        let long = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(2 * HEADER_BYTES_MAX));
        let (other, long) = with_server(move |address| {
            // It may reset the connection while we are still writing.
            let mut stream = BlockingStream::connect(address).unwrap();
            let _ = stream.write_all(long.as_bytes());
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            (exchange(address, "\x16\x03\x01 tls?\r\n\r\n"), String::from_utf8_lossy(&answer).into_owned())
        });
        assert!(!other.contains("starnet_up"), "{other}");
        assert!(!long.contains("starnet_up"), "{long}");
    }

    fn server() -> (MetricsServer, SocketAddr) {
        let server = MetricsServer::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = server.listener.local_addr().unwrap();
        (server, address)
    }

    /// Never: a test that waits for it has failed.
    const NEVER: Duration = Duration::from_secs(3600);

    /// A connection of a host, by the last byte of its address.
    async fn connect(host: u8, to: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    /// What is answered over `stream`, to its end.
    async fn ask(stream: &mut TcpStream, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn who_sends_nothing_loses_the_connection_and_its_place() {
        let (mut server, address) = server();
        server.patience = NEVER;
        server.request_patience = Duration::from_secs(1);
        let asking = async {
            let mut silent = Vec::new();
            for number in 0..CONNECTIONS_MAX {
                silent.push(connect(2 + (number / CONNECTIONS_OF_ONE) as u8, address).await);
            }
            // All places are taken: this one waits for them to be free.
            let answer = ask(&mut connect(1, address).await, "/healthz").await;
            assert!(answer.ends_with("ok\n"), "{answer}");
            for mut stream in silent {
                let mut rest = String::new();
                stream.read_to_string(&mut rest).await.unwrap();
                assert!(!rest.contains("ok"), "{rest}");
            }
        };
        tokio::select! {
            () = server.serve(|| async { String::new() }) => unreachable!("serve does not end"),
            () = asking => {}
        }
    }

    #[tokio::test]
    async fn one_address_cannot_take_all_places() {
        let (mut server, address) = server();
        (server.patience, server.request_patience) = (NEVER, NEVER);
        let asking = async {
            let mut silent = Vec::new();
            for _ in 0..CONNECTIONS_OF_ONE {
                silent.push(connect(2, address).await);
            }
            let mut refused = connect(2, address).await;
            assert_eq!(refused.read(&mut [0; 1]).await.unwrap(), 0, "closed at once");
            for _ in 0..3 {
                assert!(ask(&mut connect(1, address).await, "/healthz").await.ends_with("ok\n"));
            }
            silent.pop();
            // Its place is free as soon as the server has seen the end.
            while !timeout(NEVER, try_ask(2, address)).await.unwrap() {}
        };
        tokio::select! {
            () = server.serve(|| async { String::new() }) => unreachable!("serve does not end"),
            () = asking => {}
        }
    }

    /// True where a host is answered, false where its connection is closed.
    async fn try_ask(host: u8, to: SocketAddr) -> bool {
        let mut stream = connect(host, to).await;
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer.ends_with(b"ok\n")
    }

    #[tokio::test]
    async fn who_does_not_read_keeps_nobody_waiting() {
        let (mut server, address) = server();
        server.patience = NEVER;
        // More than the kernel takes for someone who does not read.
        let text = "x".repeat(16 << 20);
        let asking = async {
            let mut slow = connect(2, address).await;
            slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
            assert!(slow.read(&mut [0; 1]).await.unwrap() == 1, "it is being answered");
            let answer = ask(&mut connect(2, address).await, "/metrics").await;
            assert!(answer.len() > 16 << 20);
        };
        let metrics = move || {
            let text = text.clone();
            async move { text }
        };
        tokio::select! {
            () = server.serve(metrics) => unreachable!("serve does not end"),
            () = asking => {}
        }
    }

    #[tokio::test]
    async fn all_who_ask_at_the_same_time_get_what_was_written_once() {
        for (fresh, writings) in [(NEVER, 1), (Duration::ZERO, 4)] {
            let (mut server, address) = server();
            server.fresh = fresh;
            let asking = async {
                let mut answers = Vec::new();
                for asked in [1, 2, 3, 4]
                    .map(|host| tokio::spawn(async move { ask(&mut connect(host, address).await, "/metrics").await }))
                {
                    answers.push(asked.await.unwrap());
                }
                answers
            };
            let count = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&count);
            let metrics = move || {
                let number = counted.fetch_add(1, Relaxed);
                async move {
                    tokio::task::yield_now().await;
                    format!("writing {number}\n")
                }
            };
            let answers = tokio::select! {
                () = server.serve(metrics) => unreachable!("serve does not end"),
                answers = asking => answers,
            };
            assert_eq!(count.load(Relaxed), writings);
            let mut told: Vec<_> = answers.iter().filter_map(|answer| answer.rsplit("writing ").next()).collect();
            told.sort_unstable();
            told.dedup();
            assert_eq!(told.len(), writings);
        }
    }

    #[test]
    fn a_wrong_address_is_told_by_field_and_one_in_use_by_its_number() {
        let read = |listen: &str| {
            #[derive(Deserialize)]
            struct File {
                metrics: Table,
            }
            let file = ConfigFile::new("n.toml", format!("[metrics]\nlisten = \"{listen}\"\n"));
            let File { metrics } = file.parse().unwrap();
            let taken = |at: SocketAddr| (at.port() == 40_000).then(|| "port 40000 is another's".to_owned());
            metrics.read(&file, taken).map_err(|error| error.to_string())
        };
        assert_eq!(read("127.0.0.1:9100").unwrap(), "127.0.0.1:9100".parse().unwrap());
        assert_eq!(read("[::1]:9100").unwrap(), "[::1]:9100".parse().unwrap());
        for (listen, told) in [
            ("9100", "'9100' is not an address and port, like 127.0.0.1:9100 or [::1]:9100"),
            ("localhost:9100", "'localhost:9100' is not an address and port, like 127.0.0.1:9100 or [::1]:9100"),
            ("127.0.0.1:0", "the port must not be 0"),
            ("0.0.0.0:40000", "port 40000 is another's"),
        ] {
            assert_eq!(read(listen).unwrap_err(), format!("n.toml:2: metrics.listen: {told}"));
        }

        let other = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = other.local_addr().unwrap();
        let error = MetricsServer::bind(address).unwrap_err().to_string();
        assert!(error.starts_with(&format!("metrics.listen: {address}: ")) && error.contains("in use"), "{error}");
    }
}
