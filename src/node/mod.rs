//! A node as a process: config, threads, kernel, QUIC, the operator's socket.
