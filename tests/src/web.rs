//! HTTP/1.0 in its plainest form, for asking what listens on the host.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

/// The answer to one request line, `GET /`, head and body.
///
/// # Errors
/// What the connection says; of nobody there, `ConnectionRefused`.
pub fn ask(address: &str, port: u16, line: &str) -> io::Result<String> {
    exchange(address, port, &format!("{line} HTTP/1.0\r\n\r\n"))
}

/// The same of a request that brings a JSON document, `POST /`.
///
/// # Errors
/// Those of `ask`.
pub fn send(address: &str, port: u16, line: &str, document: &str) -> io::Result<String> {
    let head = format!("Content-Type: application/json\r\nContent-Length: {}", document.len());
    exchange(address, port, &format!("{line} HTTP/1.0\r\n{head}\r\n\r\n{document}"))
}

fn exchange(address: &str, port: u16, request: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect((address, port))?;
    socket.write_all(request.as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    match answer.is_empty() {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(answer),
    }
}

/// A port that nobody had a moment ago.
///
/// # Panics
/// If there is none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").expect("find a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Answers one request with a line, and tells who asked.
///
/// # Panics
/// If nobody does properly.
pub fn answer_once(listener: &TcpListener, line: &str) -> SocketAddr {
    let (mut stream, peer) = listener.accept().expect("accept a request");
    let mut head = [0; 512];
    let _read = stream.read(&mut head).expect("read a request");
    let length = line.len() + 1;
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{line}\n").expect("answer");
    peer
}
