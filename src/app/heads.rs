//! When a connection of HTTP/1 is closed that has nothing to say: the head of a request must come soon after its first byte, and
//! between requests the connection may rest for longer.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::io::HELLO;
use crate::layers::Alarm;

/// How many requests of a connection have begun and ended, together: odd while one is being answered. Clones are of the same
/// connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Busy(Arc<AtomicU64>);

impl Busy {
    /// A request has begun: its head is there.
    pub(super) fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Its answer, whose end is the end of the request.
    pub(super) fn until_end<B>(&self, inner: B) -> Answer<B> {
        Answer { inner, busy: self.clone() }
    }
}

pin_project! {
    /// The body of an answer.
    pub(super) struct Answer<B> {
        #[pin]
        inner: B,
        busy: Busy,
    }

    impl<B> PinnedDrop for Answer<B> {
        fn drop(this: Pin<&mut Self>) {
            this.project().busy.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<B: Body<Data = Bytes>> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.project().inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project! {
    /// The connection. Reading fails once a head has taken too long.
    pub(super) struct Heads<T> {
        #[pin]
        inner: T,
        busy: Busy,
        // As it was when `until` was set.
        seen: u64,
        // Of the head that has begun. The first one begins with the connection.
        until: Option<Instant>,
        alarm: Alarm,
    }
}

impl<T> Heads<T> {
    pub(super) fn new(inner: T, busy: Busy) -> Self {
        Self { inner, busy, seen: 0, until: Some(Instant::now() + HELLO), alarm: Alarm::default() }
    }
}

impl<T: AsyncRead> AsyncRead for Heads<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let now = this.busy.0.load(Ordering::Relaxed);
        if *this.seen != now {
            (*this.seen, *this.until) = (now, None);
        }
        if now % 2 == 1 {
            return this.inner.poll_read(cx, buf);
        }
        let before = buf.filled().len();
        if let Poll::Ready(read) = this.inner.poll_read(cx, buf) {
            if buf.filled().len() > before {
                this.until.get_or_insert_with(|| Instant::now() + HELLO);
            }
            return Poll::Ready(read);
        }
        let Some(until) = *this.until else { return Poll::Pending };
        this.alarm.poll(until, cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite> AsyncWrite for Heads<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_shutdown(cx)
    }
}
