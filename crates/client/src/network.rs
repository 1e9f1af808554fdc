//! What a client asks of the outside: addresses of names, and streams of bytes. Tests put a network in memory in its
//! place, so that time can stand still: with sockets, a paused clock would run ahead of bytes that are on their way.

use std::{io, net::SocketAddr};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// A connection's two directions.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Where names are looked up and connections are made.
pub(super) trait Network: Send + Sync + 'static {
    /// Connects to `HOST:PORT`. May take for ever.
    fn dial<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Io>>>;

    /// Every address of `NAME:PORT`.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// TCP and the system's resolver.
#[derive(Debug)]
pub(super) struct System;

impl Network for System {
    fn dial<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(to).await?;
            // Small requests are not held back for more.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host(name).await?.collect()) })
    }
}
