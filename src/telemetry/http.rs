//! The metrics endpoint: HTTP/1.1, `GET /metrics` and `GET /healthz`, nothing else.
//!
//! For a monitoring system on a network one trusts: it tells nothing secret, but it neither asks who is there nor encrypts.
//! A request is one connection, for at most [`PATIENCE`], of at most [`CONNECTIONS_MAX`] at a time, so that nobody who is
//! slow, or asks for the fun of it, takes more of the process than that.
//!
//! hyper, without its client and without HTTP/2, since it is well kept and lives in the runtime that is there already;
//! tiny_http has had no release since 2022, brings threads of its own and lets a client be as slow as it likes.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use toml::Spanned;

use super::metrics;
use crate::config_file::{ConfigError, ConfigFile};

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 8;

/// How long a connection may last: its request, the answer, and the reading of it.
const PATIENCE: Duration = Duration::from_secs(10);

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
        Ok(Self { listener: TcpListener::from_std(listener).map_err(failed)?, patience: PATIENCE })
    }

    /// Answers with what `metrics` writes, until the future is dropped.
    pub async fn serve<F, A>(&self, metrics: F)
    where
        F: Fn() -> A + Clone + Send + Sync + 'static,
        A: Future<Output = String> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("metrics: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (metrics, patience) = (metrics.clone(), self.patience);
            tokio::spawn(async move {
                // Who is too slow, or speaks another protocol, is not answered.
                let _ = timeout(patience, serve_one(stream, metrics)).await;
                drop(place);
            });
        }
    }
}

async fn serve_one<F, A>(stream: TcpStream, metrics: F) -> Result<(), hyper::Error>
where
    F: Fn() -> A,
    A: Future<Output = String>,
{
    let answer = |request: Request<Incoming>| {
        let metrics = &metrics;
        async move { Ok::<_, Infallible>(respond(request.method(), request.uri().path(), metrics).await) }
    };
    http1::Builder::new()
        // The whole connection has its limit where it is spawned.
        .header_read_timeout(None)
        .max_buf_size(HEADER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await
}

async fn respond<F, A>(method: &Method, path: &str, metrics: F) -> Response<String>
where
    F: Fn() -> A,
    A: Future<Output = String>,
{
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let (status, kind, text) = match path {
        "/metrics" | "/healthz" if !is_read => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".to_owned())
        }
        "/metrics" => (StatusCode::OK, metrics::CONTENT_TYPE, metrics().await),
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
    };

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

    #[tokio::test]
    async fn who_sends_nothing_loses_the_connection_and_its_place() {
        let mut server = MetricsServer::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        server.patience = Duration::from_secs(1);
        let address = server.listener.local_addr().unwrap();
        let ask = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut silent = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            // All places are taken: this one waits for them to be free.
            let mut late = TcpStream::connect(address).await.unwrap();
            late.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            late.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("ok\n"), "{answer}");
            for mut stream in silent {
                let mut rest = String::new();
                stream.read_to_string(&mut rest).await.unwrap();
                assert!(!rest.contains("ok"), "{rest}");
            }
        };
        tokio::select! {
            () = server.serve(|| async { String::new() }) => unreachable!("serve does not end"),
            () = ask => {}
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
