//! A connection whose peer takes next to nothing of what is written is closed. By HTTP/1 that is all there is to know of an answer
//! that is not taken: the last of it may wait in buffers long after its body has ended.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::taking::{Outward, PATIENCE};
use crate::{
    layers::{Alarm, Pace, given_up},
    telemetry::Door,
};

pin_project! {
    /// The connection.
    pub(super) struct Paced<T> {
        #[pin]
        inner: T,
        pace: Pace,
        alarm: Alarm,
        outward: Outward,
    }
}

impl<T> Paced<T> {
    /// Of HTTP.
    pub(super) fn new(inner: T, outward: Outward) -> Self {
        Self { inner, pace: Pace::new(PATIENCE), alarm: Alarm::default(), outward }
    }
}

impl<T: AsyncWrite> Paced<T> {
    /// Writes, for as long as that is waited for.
    fn write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        if let Poll::Ready(written) = write(this.inner, cx) {
            this.pace.moved(*written.as_ref().unwrap_or(&0));
            return Poll::Ready(written);
        }
        match given_up(this.pace, this.alarm, &this.outward.room, cx) {
            Poll::Ready(()) => {
                this.outward.untaken.count(Door::Http);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not take its answer")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: AsyncRead> AsyncRead for Paced<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_read(cx, buf)
    }
}

impl<T: AsyncWrite> AsyncWrite for Paced<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |inner, cx| inner.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |inner, cx| inner.poll_write_vectored(cx, bufs))
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;
    use crate::{admission::Account, telemetry::Untaken};

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up_and_who_takes_little_is_not() {
        let (untaken, room) = (Untaken::default(), Account::alone(1));
        let outward = Outward { untaken: untaken.clone(), room };
        let (near, far) = tokio::io::duplex(1024);
        let began = Instant::now();
        let error = Paced::new(near, outward.clone()).write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, PATIENCE));
        assert_eq!(untaken.get(Door::Http), 1);
        drop(far);

        let (near, mut far) = tokio::io::duplex(16 << 10);
        let taking = async {
            let mut taken = vec![0; 16 << 10];
            for _ in 0..200 {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                far.read_exact(&mut taken).await.unwrap();
            }
        };
        let mut paced = Paced::new(near, outward.clone());
        let all = vec![0; 200 * (16 << 10)];
        tokio::join!(async { paced.write_all(&all).await.unwrap() }, taking);
        assert_eq!(untaken.get(Door::Http), 1);
    }
}
