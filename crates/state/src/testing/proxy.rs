//! A small TCP proxy between a server and its database, for tests of networks that fail: connections that are cut, and
//! half-open ones, on which packets vanish and nothing is closed.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Which way bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From who connects.
    Upstream,
    /// Back to it.
    Downstream,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Weather {
    upstream_silent: bool,
    downstream_silent: bool,
    /// How many bytes still get through this way before it falls silent.
    upstream_left: Option<usize>,
    downstream_left: Option<usize>,
    refusing: bool,
    /// Raised to close all connections that there are.
    cuts: u64,
}

impl Weather {
    fn silent(self, direction: Direction) -> bool {
        match direction {
            Direction::Upstream => self.upstream_silent,
            Direction::Downstream => self.downstream_silent,
        }
    }

    fn left(&mut self, direction: Direction) -> (&mut Option<usize>, &mut bool) {
        match direction {
            Direction::Upstream => (&mut self.upstream_left, &mut self.upstream_silent),
            Direction::Downstream => (&mut self.downstream_left, &mut self.downstream_silent),
        }
    }
}

/// A proxy on a port of its own. Dropping it closes everything that goes through it.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    weather: Arc<watch::Sender<Weather>>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    /// Listens on a free port of the loopback address and passes on to `target`.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(target: SocketAddr) -> std::io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let weather = Arc::new(watch::Sender::new(Weather::default()));
        let accepting = tokio::spawn(accept(listener, target, weather.clone()));
        Ok(Proxy { port, weather, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on nothing gets through this way, on connections that there are and on new ones, and nothing is closed.
    pub fn silence(&self, direction: Direction) {
        self.weather.send_modify(|weather| match direction {
            Direction::Upstream => weather.upstream_silent = true,
            Direction::Downstream => weather.downstream_silent = true,
        });
    }

    /// As [`Proxy::silence`], both ways.
    pub fn silence_both(&self) {
        self.silence(Direction::Upstream);
        self.silence(Direction::Downstream);
    }

    /// From now on only so many bytes get through this way, on all connections together: it falls silent in the middle of a
    /// statement, or of an answer.
    pub fn silence_after(&self, direction: Direction, bytes: usize) {
        self.weather.send_modify(|weather| {
            let (left, silent) = weather.left(direction);
            (*left, *silent) = (Some(bytes), bytes == 0);
        });
    }

    /// How many bytes still get through this way before it falls silent; none where that was not asked for.
    #[must_use]
    pub fn left(&self, direction: Direction) -> Option<usize> {
        let mut weather = *self.weather.borrow();
        *weather.left(direction).0
    }

    /// Waits until it has fallen silent this way.
    pub async fn fallen_silent(&self, direction: Direction) {
        // The sender is in the proxy, so the wait only ends by the condition.
        let _ = self.weather.subscribe().wait_for(|weather| weather.silent(direction)).await;
    }

    /// Everything gets through again, first what was held back, as TCP would send it again; new connections too.
    pub fn resume(&self) {
        self.weather.send_modify(|weather| {
            *weather = Weather { cuts: weather.cuts, ..Weather::default() };
        });
    }

    /// Closes every connection. New ones get through.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Closes every connection and refuses new ones until [`Proxy::resume`].
    pub fn close(&self) {
        self.weather.send_modify(|weather| {
            weather.cuts += 1;
            weather.refusing = true;
        });
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, weather: Arc<watch::Sender<Weather>>) {
    let mut connections = JoinSet::new();
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                Err(_) => continue,
            },
            Some(_) = connections.join_next() => continue,
        };
        if weather.borrow().refusing {
            continue;
        }
        let weather = weather.clone();
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(target).await else { return };
            // A proxy that waits for more to send would be slower than what it stands for.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            carry(client, server, weather).await;
        });
    }
}

async fn carry(client: TcpStream, server: TcpStream, weather: Arc<watch::Sender<Weather>>) {
    let cuts = weather.borrow().cuts;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut cut = weather.subscribe();
    tokio::select! {
        () = pass(from_client, to_server, Direction::Upstream, &weather) => {}
        () = pass(from_server, to_client, Direction::Downstream, &weather) => {}
        // Ends when the proxy is gone, too.
        _ = cut.wait_for(|now| now.cuts != cuts) => {}
    }
}

/// Passes bytes one way until an end closes.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: Direction, sender: &watch::Sender<Weather>) {
    let mut weather = sender.subscribe();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => {
                // That it was closed does not get through silence either.
                let _ = weather.wait_for(|now| !now.silent(direction)).await;
                return;
            }
            Ok(read) => read,
        };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            if weather.wait_for(|now| !now.silent(direction)).await.is_err() {
                return;
            }
            let (through, held) = rest.split_at(allowed(sender, direction, rest.len()));
            if to.write_all(through).await.is_err() {
                return;
            }
            rest = held;
        }
    }
}

/// How many of so many bytes get through now; the last one that does makes it silent.
fn allowed(sender: &watch::Sender<Weather>, direction: Direction, bytes: usize) -> usize {
    let mut allowed = bytes;
    sender.send_if_modified(|weather| {
        let (left, silent) = weather.left(direction);
        let Some(left) = left else { return false };
        allowed = bytes.min(*left);
        *left -= allowed;
        *silent |= *left == 0;
        *silent
    });
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn d13_silence_holds_bytes_back_and_closes_nothing_and_a_cut_closes() {
        let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let target = echo.local_addr().unwrap();
        let echoing = tokio::spawn(async move {
            let (mut stream, _) = echo.accept().await.unwrap();
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        let proxy = Proxy::start(target).await.unwrap();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        let mut answer = [0; 3];
        client.write_all(b"one").await.unwrap();
        client.read_exact(&mut answer).await.unwrap();
        proxy.silence(Direction::Downstream);
        client.write_all(b"two").await.unwrap();
        let held = tokio::time::timeout(std::time::Duration::from_millis(50), client.read_exact(&mut answer)).await;
        assert!(held.is_err(), "nothing gets through, and nothing is closed");
        proxy.resume();
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"two");
        assert_eq!(proxy.left(Direction::Upstream), None);
        proxy.silence_after(Direction::Upstream, 2);
        assert_eq!(proxy.left(Direction::Upstream), Some(2));
        client.write_all(b"red").await.unwrap();
        proxy.fallen_silent(Direction::Upstream).await;
        assert_eq!(proxy.left(Direction::Upstream), Some(0));
        client.read_exact(&mut answer[..2]).await.unwrap();
        proxy.resume();
        client.read_exact(&mut answer[2..]).await.unwrap();
        assert_eq!(&answer, b"red");
        proxy.cut();
        assert!(matches!(client.read(&mut answer).await, Ok(0) | Err(_)));
        echoing.await.unwrap();
    }
}
