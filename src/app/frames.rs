//! HTTP/2 frames that bring no work have a budget on each connection: SETTINGS, PING, PRIORITY, WINDOW_UPDATE, RST_STREAM and the like cost
//! their sender nothing, and h2 answers each of them. A connection that is over it gets a GOAWAY and is closed.
//!
//! Frames are counted on their way between the socket and h2: nine bytes of each are looked at, and nothing is changed.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Frames without work that a connection may send at once.
const BURST: u32 = 512;
/// Time after which it may send one more. What it needs besides, it earns: see [`earns`] and [`costs`].
const REFILL: Duration = Duration::from_millis(20);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
/// RFC 9113, section 7.
const ENHANCE_YOUR_CALM: u8 = 11;
const WHY: &[u8] = b"too many frames that bring no work";

/// A frame's header (RFC 9113, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// What a frame of a client takes from its budget, or brings.
///
/// A call opens with HEADERS, and may end with RST_STREAM: both are paid for by a message. A change of settings is looked at for each
/// open stream.
fn costs(frame: Frame) -> i64 {
    let ends = frame.flags & END_STREAM != 0;
    match frame.kind {
        // Less is no message.
        DATA if frame.length >= 5 => {
            if ends {
                -2
            } else {
                0
            }
        }
        DATA => i64::from(!ends),
        SETTINGS => 8,
        _ => 1 + i64::from(frame.length / 1024) * i64::from(frame.kind != HEADERS),
    }
}

/// What a frame to a client brings: so many frames may come for it. For each answer, however short, clients of grpc-core send two
/// window updates, one for the stream and one for the connection, and sometimes a PING to measure the way.
fn earns(frame: Frame) -> i64 {
    match frame.kind {
        DATA => 3 + i64::from(frame.length / 512),
        HEADERS => 1 + i64::from(frame.length / 1024),
        _ => 0,
    }
}

/// Where a stream of frames stands.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 9],
    have: usize,
    /// Bytes of a payload that are to come.
    left: usize,
}

impl Frames {
    /// Reads on, and gives each frame whose header is there.
    fn advance(&mut self, mut data: &[u8], mut each: impl FnMut(Frame)) {
        while !data.is_empty() {
            let skipped = self.left.min(data.len());
            self.left -= skipped;
            data = data.get(skipped..).unwrap_or_default();
            if data.is_empty() {
                return;
            }
            let (now, rest) = data.split_at(data.len().min(self.header.len() - self.have));
            if let Some(place) = self.header.get_mut(self.have..self.have + now.len()) {
                place.copy_from_slice(now);
            }
            self.have += now.len();
            data = rest;
            if self.have == self.header.len() {
                self.have = 0;
                let [a, b, c, kind, flags, s1, s2, s3, s4] = self.header;
                let length = u32::from_be_bytes([0, a, b, c]);
                self.left = length as usize;
                each(Frame {
                    length,
                    kind,
                    flags,
                    stream: u32::from_be_bytes([s1, s2, s3, s4]) & (u32::MAX >> 1),
                });
            }
        }
    }

    /// Between two frames.
    fn is_between(&self) -> bool {
        self.left == 0 && self.have == 0
    }
}

#[derive(Debug)]
struct Budget {
    left: i64,
    since: Instant,
}

impl Budget {
    fn pay(&mut self, cost: i64) {
        self.left = (self.left - cost).min(i64::from(BURST));
    }

    /// The clock is looked at only where it is needed.
    fn is_over(&mut self) -> bool {
        if self.left >= 0 {
            return false;
        }
        let more = self.since.elapsed().as_millis() / REFILL.as_millis();
        self.since = Instant::now();
        self.pay(-i64::try_from(more).unwrap_or(i64::MAX).min(i64::from(BURST)));
        self.left < 0
    }
}

pin_project! {
    /// A connection whose client has said its preface.
    pub(super) struct Metered<T> {
        #[pin]
        inner: T,
        incoming: Frames,
        outgoing: Frames,
        budget: Budget,
        last_stream: u32,
        when_over: Option<Box<dyn FnOnce() + Send>>,
    }
}

impl<T> Metered<T> {
    /// The first `preface` bytes that are read are no frames. `when_over` is called once, if it comes to that.
    pub(super) fn new(inner: T, preface: usize, when_over: impl FnOnce() + Send + 'static) -> Self {
        Self {
            inner,
            incoming: Frames { left: preface, ..Frames::default() },
            outgoing: Frames::default(),
            budget: Budget { left: i64::from(BURST), since: Instant::now() },
            last_stream: 0,
            when_over: Some(Box::new(when_over)),
        }
    }
}

/// `last` is the last stream that may have been looked at.
fn goaway(last: u32) -> Vec<u8> {
    let length = u8::try_from(8 + WHY.len()).unwrap_or(8);
    let header = [0, 0, length, GOAWAY, 0, 0, 0, 0, 0];
    [&header[..], &last.to_be_bytes(), &[0, 0, 0, ENHANCE_YOUR_CALM], WHY].concat()
}

impl<T: AsyncRead + AsyncWrite> AsyncRead for Metered<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buf.filled().len();
        let mut inner = this.inner;
        std::task::ready!(inner.as_mut().poll_read(cx, buf))?;
        let (budget, last) = (this.budget, this.last_stream);
        this.incoming.advance(buf.filled().get(before..).unwrap_or_default(), |frame| {
            budget.pay(costs(frame));
            if frame.kind == HEADERS {
                *last = frame.stream.max(*last);
            }
        });
        if !budget.is_over() {
            return Poll::Ready(Ok(()));
        }
        if let Some(when_over) = this.when_over.take() {
            when_over();
            // Within another frame it could not be read. A peer that takes nothing is not waited for.
            if this.outgoing.is_between() {
                let _best_effort = inner.poll_write(cx, &goaway(*last));
            }
        }
        Poll::Ready(Err(io::Error::other("too many frames that bring no work")))
    }
}

impl<T: AsyncWrite> AsyncWrite for Metered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let wrote = std::task::ready!(this.inner.poll_write_vectored(cx, bufs))?;
        let (budget, mut left) = (this.budget, wrote);
        for buf in bufs {
            let some = left.min(buf.len());
            this.outgoing.advance(buf.get(..some).unwrap_or_default(), |frame| budget.pay(-earns(frame)));
            left -= some;
        }
        Poll::Ready(Ok(wrote))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const RST_STREAM: u8 = 3;
    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    fn metered() -> (Metered<DuplexStream>, DuplexStream, Arc<AtomicUsize>) {
        let (near, far) = tokio::io::duplex(4 << 20);
        let over = Arc::new(AtomicUsize::new(0));
        let count = over.clone();
        (
            Metered::new(near, 3, move || {
                count.fetch_add(1, Ordering::Relaxed);
            }),
            far,
            over,
        )
    }

    /// Whether the server can read all of it.
    async fn takes(server: &mut Metered<DuplexStream>, client: &mut DuplexStream, sent: &[u8]) -> bool {
        client.write_all(sent).await.unwrap();
        let mut all = vec![0; sent.len()];
        server.read_exact(&mut all).await.is_ok_and(|_| all == sent)
    }

    #[test]
    fn however_it_is_cut_frames_are_found() {
        let sent =
            [frame(DATA, 1, 3, &[7; 300]), frame(PING, 0, 0, &[1; 8]), frame(SETTINGS, 1, 0, &[])].concat();
        let expected = [(300, DATA, 1, 3), (8, PING, 0, 0), (0, SETTINGS, 1, 0)];
        for cut in 0..=sent.len() {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for part in [&sent[..cut], &sent[cut..]] {
                frames.advance(part, |f| found.push((f.length, f.kind, f.flags, f.stream)));
            }
            assert_eq!(found, expected, "{cut}");
            assert!(frames.is_between());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_bring_no_work_have_a_budget_which_time_fills() {
        for (kind, payload, most) in [
            (PING, 8, 512),
            (WINDOW_UPDATE, 4, 512),
            (RST_STREAM, 4, 512),
            (SETTINGS, 6, 64),
            (77, 2048, 170),
            (DATA, 0, 512),
        ] {
            let (mut server, mut client, over) = metered();
            assert!(takes(&mut server, &mut client, b"PRI").await);
            let flood = frame(kind, 0, 0, &vec![0; payload]).repeat(most);
            assert!(takes(&mut server, &mut client, &flood).await, "{kind}");
            assert!(!takes(&mut server, &mut client, &frame(kind, 0, 0, &vec![0; payload])).await, "{kind}");
            let mut buffer = [0; 9 + 8 + WHY.len()];
            client.read_exact(&mut buffer).await.unwrap();
            assert_eq!((buffer[3], buffer[16], &buffer[17..]), (GOAWAY, ENHANCE_YOUR_CALM, WHY));
            assert_eq!(over.load(Ordering::Relaxed), 1);
            // Slowly they may come for ever.
            let (mut server, mut client, _) = metered();
            assert!(takes(&mut server, &mut client, b"PRI").await);
            for _ in 0..2000 {
                tokio::time::sleep(8 * REFILL).await;
                assert!(
                    takes(&mut server, &mut client, &frame(kind, 0, 0, &vec![0; payload])).await,
                    "{kind}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_pay_for_what_belongs_to_them() {
        let (mut server, mut client, _) = metered();
        assert!(takes(&mut server, &mut client, b"PRI").await);
        // Each is called off at once.
        let call = [
            frame(HEADERS, 4, 1, &[0; 40]),
            frame(DATA, END_STREAM, 1, &[0; 5]),
            frame(RST_STREAM, 0, 1, &[0; 4]),
        ];
        assert!(takes(&mut server, &mut client, &call.concat().repeat(5000)).await);
        // Answers are paid for by window updates.
        let update = frame(WINDOW_UPDATE, 0, 0, &[0; 4]);
        for (length, updates) in [(2048, 3), (40, 2), (40, 3)] {
            for _ in 0..2000 {
                server.write_all(&frame(DATA, 0, 1, &vec![0; length])).await.unwrap();
                let mut answer = vec![0; 9 + length];
                client.read_exact(&mut answer).await.unwrap();
                assert!(takes(&mut server, &mut client, &update.repeat(updates)).await, "{length} {updates}");
            }
        }
        // Calls without a message are not work.
        let empty = [frame(HEADERS, 4, 9, &[0; 40]), frame(RST_STREAM, 0, 9, &[0; 4])].concat();
        assert!(!takes(&mut server, &mut client, &empty.repeat(300)).await);
        let mut buffer = [0; 17];
        client.read_exact(&mut buffer).await.unwrap();
        assert_eq!((buffer[3], buffer[12]), (GOAWAY, 9), "the last stream that was seen");
    }
}
