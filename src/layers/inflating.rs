//! Inflates messages that come compressed, before tonic sees them: away from the wire unless they are short, within the limit of a
//! message, and at the cost of who sent them. tonic itself would do so on the thread of the wire, and count nothing.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{FutureExt as _, future::BoxFuture};
use http::{Extensions, Request};
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

use super::{
    Deadline,
    bytes::{ADMIN, too_many_bytes},
    heavy::heavy,
    inflate::{Coding, Parts, inflate},
    path,
};
use crate::{
    admission::MessageBytes,
    error::{Error, Reason, Result},
    proto,
    telemetry::{Door, Refusals},
};

const ENCODING: &str = "grpc-encoding";
/// Flag and length before each message.
const PREFIX: usize = 5;
/// tonic copies each message into one piece, on the thread of the wire. After so many bytes others have their turn.
const TURN: usize = 128 << 10;
/// What is so short, and inflates to no more than four times as much, is done at once.
const SHORT: usize = 16 << 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Inflates the messages of both APIs; other services take no compressed ones.
#[derive(Debug, Clone)]
pub struct Inflate<S> {
    inner: S,
    longest: usize,
    refusals: Refusals,
}

impl<S> Inflate<S> {
    /// Messages may inflate to `longest` bytes. Inference that is refused is counted in `refusals`.
    pub fn new(inner: S, longest: usize, refusals: Refusals) -> Self {
        Self { inner, longest, refusals }
    }
}

impl<S, B> Service<Request<B>> for Inflate<S>
where
    S: Service<Request<Inflating<B>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let called = request.uri().path();
        let taken = path::is_of_api(called);
        let refusals = path::is_inference(called).then(|| self.refusals.clone());
        let encoding = request.headers().get(ENCODING).filter(|_| taken);
        // Of any other tonic says that it is not known here.
        let coding = encoding.and_then(|name| Coding::named(name.as_bytes()));
        if coding.is_some() {
            request.headers_mut().remove(ENCODING);
        }
        let how = coding.map(|coding| How::new(coding, self.longest, request.extensions()));
        self.inner.call(request.map(|inner| Inflating {
            inner,
            how,
            refusals,
            state: State::default(),
            rest: Bytes::new(),
            turn: TURN,
            others: None,
        }))
    }
}

/// How messages of one call are inflated.
#[derive(Debug, Clone)]
struct How {
    coding: Coding,
    longest: usize,
    counted: Option<Arc<MessageBytes>>,
    until: Option<Instant>,
}

impl How {
    fn new(coding: Coding, longest: usize, extensions: &Extensions) -> Self {
        let until = extensions.get::<Deadline>().and_then(|deadline| deadline.0);
        let counted = extensions.get::<Arc<MessageBytes>>().cloned();
        // What does not count must not be long.
        let longest = if counted.is_some() { longest } else { ADMIN };
        Self { coding, longest, counted, until }
    }

    /// The message that `parts` inflate to.
    async fn message(self, parts: Parts) -> Result<Parts> {
        let came = parts.len();
        if came <= SHORT
            && let Some(message) = self.at_once(parts.clone())?
        {
            return Ok(message);
        }
        let Some(account) = self.counted.as_ref().map(|counted| counted.account().clone()) else {
            return self.inflate(parts, &|| Ok(()));
        };
        let until = self.until;
        heavy(&account, until, move |wanted| self.inflate(parts, &|| wanted.check())).await
    }

    /// `None`: it is too long for that.
    fn at_once(&self, parts: Parts) -> Result<Option<Parts>> {
        let came = parts.len();
        let (mut message, mut length, mut is_long) = (Parts::default(), 0, false);
        let done = inflate(self.coding, parts, self.longest, |piece| {
            length += piece.len();
            is_long = length > 4 * SHORT;
            if is_long {
                return Err(too_long(self.longest));
            }
            message.push(piece);
            Ok(())
        });
        if is_long {
            return Ok(None);
        }
        done?;
        self.count(length)?;
        self.free(came);
        Ok(Some(message))
    }

    fn inflate(&self, parts: Parts, check: &dyn Fn() -> Result<()>) -> Result<Parts> {
        let came = parts.len();
        let (mut message, mut length) = (Parts::default(), 0);
        inflate(self.coding, parts, self.longest, |piece| {
            check()?;
            length += piece.len();
            if length > self.longest {
                return Err(too_long(self.longest));
            }
            self.count(piece.len())?;
            message.push(piece);
            Ok(())
        })?;
        self.free(came);
        Ok(message)
    }

    /// What it was is gone.
    fn free(&self, came: usize) {
        if let Some(counted) = &self.counted {
            counted.free(came as u64);
        }
    }

    fn count(&self, bytes: usize) -> Result<()> {
        let counted = self.counted.as_ref().is_none_or(|counted| counted.add(bytes as u64));
        if counted { Ok(()) } else { Err(too_many_bytes()) }
    }
}

fn too_long(longest: usize) -> Error {
    let message = format!(
        "the message inflates to more than {longest} bytes: send less at once, or raise server.max_message_bytes"
    );
    Error::new(Reason::MessageTooLarge, message)
}

/// Where a body stands.
#[derive(Default)]
enum State {
    /// Between messages, or within a prefix.
    #[default]
    Between,
    /// Within a message that is sent on as it comes.
    Plain {
        left: usize,
    },
    /// Within a compressed one.
    Compressed {
        left: usize,
        parts: Parts,
    },
    /// It is being inflated.
    Working(BoxFuture<'static, Result<Parts>>),
    /// There is this to send on.
    Sending(Parts),
    Ended,
}

pin_project! {
    /// A body whose messages are not compressed any more.
    pub struct Inflating<B> {
        #[pin]
        inner: B,
        // None: as it comes.
        how: Option<How>,
        refusals: Option<Refusals>,
        state: State,
        // What came and has not been looked at.
        rest: Bytes,
        // Bytes that are left of this turn.
        turn: usize,
        // Ready once others have had theirs.
        others: Option<BoxFuture<'static, ()>>,
    }
}

/// A message of `length` bytes that is not compressed begins.
fn prefix(length: usize) -> Bytes {
    let mut prefix = BytesMut::with_capacity(PREFIX);
    prefix.put_u8(0);
    prefix.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    prefix.freeze()
}

impl<B> Inflating<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    /// What is to be sent on of what is there. `None`: more must come.
    fn advance(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let this = self.project();
        let Some(how) = this.how else {
            return Poll::Ready((!this.rest.is_empty()).then(|| Ok(std::mem::take(this.rest))));
        };
        loop {
            match this.state {
                State::Between => {
                    let Some(mut begins) = this.rest.get(..PREFIX) else { return Poll::Ready(None) };
                    let (flag, length) = (begins.get_u8(), begins.get_u32() as usize);
                    // A length over the limit, and a flag that is none, are for tonic to refuse.
                    if flag == 1 && length <= how.longest {
                        this.rest.advance(PREFIX);
                        *this.state = State::Compressed { left: length, parts: Parts::default() };
                    } else {
                        *this.state = State::Plain { left: PREFIX + length };
                    }
                }
                State::Plain { left: 0 } => *this.state = State::Between,
                State::Plain { left } => {
                    let some = this.rest.split_to(this.rest.len().min(*left));
                    *left -= some.len();
                    return Poll::Ready((!some.is_empty()).then_some(Ok(some)));
                }
                State::Compressed { left: 0, parts } => {
                    let parts = std::mem::take(parts);
                    *this.state = State::Working(how.clone().message(parts).boxed());
                }
                State::Compressed { left, parts } => {
                    let some = this.rest.split_to(this.rest.len().min(*left));
                    if some.is_empty() {
                        return Poll::Ready(None);
                    }
                    *left -= some.len();
                    parts.push(some);
                }
                State::Working(work) => match ready!(work.as_mut().poll(cx)) {
                    Ok(message) => {
                        let begins = prefix(message.len());
                        *this.state = State::Sending(message);
                        return Poll::Ready(Some(Ok(begins)));
                    }
                    Err(error) => {
                        *this.state = State::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                },
                State::Sending(message) => match message.pop() {
                    Some(piece) => return Poll::Ready(Some(Ok(piece))),
                    None => *this.state = State::Between,
                },
                State::Ended => return Poll::Ready(None),
            }
        }
    }

    /// The body has ended. What of a message that is cut off is to be sent on, for tonic to refuse.
    fn end(self: Pin<&mut Self>) -> Option<Bytes> {
        let this = self.project();
        let cut = match std::mem::replace(this.state, State::Ended) {
            State::Between => std::mem::take(this.rest),
            State::Compressed { left, parts } => prefix(left + parts.len()),
            _ => Bytes::new(),
        };
        (!cut.is_empty()).then_some(cut)
    }
}

impl<B> Body for Inflating<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, BoxError>>> {
        if let Some(others) = self.as_mut().project().others {
            ready!(others.as_mut().poll(cx));
            *self.as_mut().project().others = None;
        }
        loop {
            match ready!(self.as_mut().advance(cx)) {
                Some(Ok(bytes)) => {
                    let this = self.as_mut().project();
                    *this.turn = this.turn.saturating_sub(bytes.len());
                    if *this.turn == 0 {
                        *this.turn = TURN;
                        *this.others = Some(tokio::task::yield_now().boxed());
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => {
                    // Once, however often it is asked for more.
                    if let Some(refusals) = self.project().refusals.take() {
                        refusals.count(Door::Grpc, &error);
                    }
                    return Poll::Ready(Some(Err(proto::status(&error).into())));
                }
                None => {}
            }
            let this = self.as_mut().project();
            if matches!(this.state, State::Ended) {
                return Poll::Ready(None);
            }
            let frame = match ready!(this.inner.poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(self.end().map(|cut| Ok(Frame::data(cut)))),
            };
            match frame.into_data() {
                Ok(data) if this.rest.is_empty() => *this.rest = data,
                // Less than a prefix was left.
                Ok(data) => *this.rest = [&this.rest[..], &data[..]].concat().into(),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let waits = matches!(self.state, State::Between | State::Ended) && self.rest.is_empty();
        waits && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.how.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}

#[cfg(test)]
mod tests;
