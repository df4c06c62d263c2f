//! The operator's UNIX socket: a topic in, JSON out.
//!
//! A request is the topic's name and a newline. The answer is one JSON object, `{"ok": …}` or
//! `{"error": "…"}`, and the end of the stream. Only the owner of the process can connect (mode 0600).

use std::{
    fs,
    future::Future,
    io::{self, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream as BlockingStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

/// Longest request.
const REQUEST_BYTES_MAX: u64 = 4096;

/// Requests answered at a time; more wait.
const REQUESTS_MAX: usize = 8;

/// How long a request may take to arrive, and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Value),
    Error(String),
}

/// The server's end. The file is removed when it is dropped.
#[derive(Debug)]
pub struct OperatorSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl OperatorSocket {
    /// Listens at `path`, and makes its folder where missing. A socket that a dead process left is replaced.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// With the path in its text; also where another process answers there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        match BlockingStream::connect(path) {
            Ok(_) => {
                return Err(failed(io::Error::new(io::ErrorKind::AddrInUse, "another process answers at this socket")));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed)?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers requests by `answer`, which gets the topic's name, until the future is dropped.
    pub async fn serve<F, A>(&self, answer: F)
    where
        F: Fn(String) -> A + Clone + Send + 'static,
        A: Future<Output = Result<Value, String>> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("operator's socket: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let answer = answer.clone();
            tokio::spawn(async move {
                // Who does not ask or does not read in time is not answered.
                let _ = serve_one(stream, answer).await;
                drop(place);
            });
        }
    }
}

impl Drop for OperatorSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

async fn serve_one<F, A>(stream: UnixStream, answer: F) -> io::Result<()>
where
    F: Fn(String) -> A,
    A: Future<Output = Result<Value, String>>,
{
    let mut topic = String::new();
    let mut reader = BufReader::new(stream);
    timeout(PATIENCE, (&mut reader).take(REQUEST_BYTES_MAX).read_line(&mut topic)).await??;
    let answer = match answer(topic.trim().to_owned()).await {
        Ok(value) => Answer::Ok(value),
        Err(error) => Answer::Error(error),
    };
    let bytes = serde_json::to_vec(&answer)?;
    let mut stream = reader.into_inner();
    timeout(PATIENCE, stream.write_all(&bytes)).await??;
    stream.shutdown().await
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers there.
    #[error("{}: {cause}; is the process running, and are you its user?", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The answer broke off or is none.
    #[error("{}: the answer broke off: {cause}", .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        cause: io::Error,
    },
    /// The process refused.
    #[error("{0}")]
    Refused(String),
}

/// Asks the process at `path` for `topic`.
pub fn ask(path: &Path, topic: &str) -> Result<Value, AskError> {
    let mut stream =
        BlockingStream::connect(path).map_err(|cause| AskError::Connect { path: path.to_owned(), cause })?;
    let broken = |cause| AskError::Broken { path: path.to_owned(), cause };
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    stream.write_all(format!("{topic}\n").as_bytes()).map_err(broken)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(broken)?;
    match serde_json::from_slice(&bytes).map_err(|error| broken(error.into()))? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(error) => Err(AskError::Refused(error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    async fn answer(topic: String) -> Result<Value, String> {
        if topic == "node" { Ok(json!({ "name": "fra1" })) } else { Err(format!("'{topic}' is not a topic")) }
    }

    #[test]
    fn a_topic_is_answered_and_an_unknown_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/node.sock");
        runtime().block_on(async {
            let socket = OperatorSocket::bind(&path).unwrap();
            let asked = path.clone();
            let client = tokio::task::spawn_blocking(move || (ask(&asked, "node"), ask(&asked, "weather")));
            let (known, unknown) = tokio::select! {
                _ = socket.serve(answer) => unreachable!("serve does not end"),
                answers = client => answers.unwrap(),
            };
            assert_eq!(known.unwrap(), json!({ "name": "fra1" }));
            assert_eq!(unknown.unwrap_err().to_string(), "'weather' is not a topic");
        });
        assert!(!path.exists(), "the socket's file is removed");
        assert!(ask(&path, "node").unwrap_err().to_string().contains("is the process running"));
    }

    #[test]
    fn a_dead_processs_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        runtime().block_on(async {
            let _living = OperatorSocket::bind(&path).unwrap();
            let error = OperatorSocket::bind(&path).unwrap_err().to_string();
            assert!(error.ends_with("another process answers at this socket"), "{error}");
        });
    }
}
