//! `kubectl port-forward` for as long as it lives. It writes a line for each connection, and ends when nobody reads it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::Error;
use crate::kubectl::Kubectl;

/// The program has to start, and to reach a pod.
const OPEN: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(5);

/// A port of this machine that leads into the tenant.
pub(super) struct Forward {
    child: Child,
    address: SocketAddr,
    _lines: BufReader<ChildStdout>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Forward {
    pub(super) fn start(kubectl: &Kubectl, to: &str, port: u16) -> Result<Self, Error> {
        let command = kubectl.command(&["port-forward", to, &format!(":{port}")]);
        let mut command = crate::process::dying_with_us(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(Error::io("start", "kubectl port-forward"))?;
        let (told, heard) = channel();
        if let Some(mut lines) = child.stdout.take().map(BufReader::new) {
            std::thread::spawn(move || {
                let mut first = String::new();
                // The address, or it ends.
                let _ = lines.read_line(&mut first);
                let _ = told.send((first, lines));
            });
        }
        let opened = heard.recv_timeout(OPEN).ok().map(|(first, lines)| (address(&first), first, lines));
        match opened {
            Some((Some(address), _, lines)) => Ok(Self { child, address, _lines: lines }),
            other => {
                let _ = child.kill();
                let _ = child.wait();
                let first = other.map(|(_, first, _)| first).unwrap_or_default();
                Err(Error::Invalid(format!("kubectl port-forward {to} says `{first}`")))
            }
        }
    }

    pub(super) fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: forwarded\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// `Forwarding from 127.0.0.1:40205 -> 8080`
fn address(line: &str) -> Option<SocketAddr> {
    line.split_whitespace().find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_in_the_first_line() {
        let found = address("Forwarding from 127.0.0.1:40205 -> 8080\n");
        assert_eq!(found, Some(SocketAddr::from(([127, 0, 0, 1], 40205))));
        assert_eq!(address("error: unable to forward port\n"), None);
    }
}
