//! Ports for servers that a test starts, stops, and starts again.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port of this machine that nobody listens on but who is told its number. It is bound as long as this is there, so that it is
/// given to nobody else while who listens there is down; to listen there, or to be refused, nothing but its number is needed.
#[derive(Debug)]
pub struct HeldPort {
    number: u16,
    _bound: TcpSocket,
}

impl HeldPort {
    /// A port that is free.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> io::Result<HeldPort> {
        let bound = TcpSocket::new_v4()?;
        // With that, as servers do too, who listens needs not be who has bound it.
        bound.set_reuseaddr(true)?;
        bound.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        Ok(HeldPort { number: bound.local_addr()?.port(), _bound: bound })
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Its number; it is held until this process ends.
    #[must_use]
    pub fn for_good(self) -> u16 {
        let number = self.number;
        std::mem::forget(self);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_held_port_is_listened_on_again_and_again_and_given_to_nobody() {
        let port = HeldPort::new().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        for _ in 0..3 {
            assert!(tokio::net::TcpStream::connect(address).await.is_err());
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let (client, server) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
            drop((client.unwrap(), server.unwrap()));
        }
    }
}
