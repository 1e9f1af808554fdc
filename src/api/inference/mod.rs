//! The gRPC calls for inference, of both APIs, past tonic's codec: tonic frames their messages, and what is long in them is neither
//! decoded nor copied on the thread of the wire. All other calls are tonic's.

mod body;
mod gather;
mod survey;

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use hyper::body::Body as HttpBody;
use prost::Message;
use tokio::time::Instant;
use tonic::{
    Extensions, Request, Response, Status, Streaming,
    body::Body,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::Service,
    server::{Grpc, StreamingService, UnaryService},
};

pub(in crate::api) use gather::{Gather, listed};
pub(in crate::api) use survey::Raw;

use self::{
    body::Answers,
    gather::framed,
    survey::{Decodes, check, glance},
};
use super::stream::{Items, Messages};
use crate::{
    admission::{Account, MessageBytes},
    error::{Error, Reason, Result},
    layers::{Deadline, LONG, heavy, too_many_bytes},
    proto,
    telemetry::{Door, Refusals},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Inference by one of the APIs.
pub(in crate::api) trait Infers: Send + Sync + 'static {
    /// Paths of the call for one request, and of the one for many.
    const PATHS: [&'static str; 2];
    /// Where requests have bytes that are not decoded.
    const RAW: Raw;
    type Request: Message + Default + 'static;
    type Answer: Gather + 'static;
    type Item: Gather + 'static;

    /// Bytes of memory of a request's lists.
    fn listed(request: &Self::Request) -> usize;

    fn one(
        &self,
        request: Request<Self::Request>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;

    fn many(&self, requests: Request<Messages<Self::Request>>) -> Items<Self::Item>;
}

/// Takes the calls of `native` and `open`, and leaves all others to `rest`. It is cloned for each call.
#[derive(Debug)]
pub struct Inference<N, O, R> {
    native: Arc<N>,
    open: Arc<O>,
    rest: R,
    how: Arc<How>,
}

impl<N, O, R: Clone> Clone for Inference<N, O, R> {
    fn clone(&self) -> Self {
        Self {
            native: self.native.clone(),
            open: self.open.clone(),
            rest: self.rest.clone(),
            how: self.how.clone(),
        }
    }
}

/// How messages are read and written.
#[derive(Debug)]
struct How {
    longest: usize,
    refusals: Refusals,
}

impl<N, O, R> Inference<N, O, R> {
    /// Messages and answers have at most `longest` bytes. Messages that cannot be read are counted in `refusals`.
    pub fn new(native: N, open: O, rest: R, longest: usize, refusals: Refusals) -> Self {
        let how = Arc::new(How { longest, refusals });
        Self { native: Arc::new(native), open: Arc::new(open), rest, how }
    }
}

impl<N, O, R, B> Service<http::Request<B>> for Inference<N, O, R>
where
    N: Infers,
    O: Infers,
    R: Service<http::Request<B>, Response = http::Response<Body>>,
    R::Future: Send + 'static,
    R::Error: 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    type Response = http::Response<Body>;
    type Error = R::Error;
    type Future = BoxFuture<'static, Result<http::Response<Body>, R::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        self.rest.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        if let Some(at) = N::PATHS.iter().position(|known| *known == path) {
            infer(&self.native, &self.how, request, at == 0).map(Ok).boxed()
        } else if let Some(at) = O::PATHS.iter().position(|known| *known == path) {
            infer(&self.open, &self.how, request, at == 0).map(Ok).boxed()
        } else {
            Box::pin(self.rest.call(request))
        }
    }
}

/// One call, for one request or for many.
fn infer<S, B>(
    service: &Arc<S>,
    how: &Arc<How>,
    request: http::Request<B>,
    is_one: bool,
) -> impl Future<Output = http::Response<Body>> + Send + use<S, B>
where
    S: Infers,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    let call = Call { service: service.clone(), how: how.clone() };
    async move {
        let mut grpc = inflating!(Grpc::new(AsItIs)).max_decoding_message_size(call.how.longest);
        let mut response =
            if is_one { grpc.unary(call, request).await } else { grpc.streaming(call, request).await };
        match response.extensions_mut().remove::<Answers>() {
            Some(answers) => response.map(|_none| Body::new(answers)),
            // It was refused.
            None => response,
        }
    }
}

struct Call<S> {
    service: Arc<S>,
    how: Arc<How>,
}

impl<S: Infers> UnaryService<Bytes> for Call<S> {
    type Response = Elsewhere;
    type Future = BoxFuture<'static, Result<Response<Elsewhere>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (service, how) = (self.service.clone(), self.how.clone());
        Box::pin(async move {
            let (metadata, extensions, message) = request.into_parts();
            let call = Around::of(&extensions);
            let message = call.decoded::<S>(message).await.map_err(|error| how.unread(&error))?;
            let answered = service.one(Request::from_parts(metadata, extensions, message)).await?;
            let (metadata, answer, mut extensions) = answered.into_parts();
            let pieces = call.framed(answer, how.longest).await.map_err(|error| proto::status(&error))?;
            extensions.insert(Answers::one(pieces));
            Ok(Response::from_parts(metadata, Elsewhere, extensions))
        })
    }
}

impl<S: Infers> StreamingService<Bytes> for Call<S> {
    type Response = Elsewhere;
    type ResponseStream = futures::stream::Empty<Result<Elsewhere, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (metadata, extensions, messages) = request.into_parts();
        let (call, how) = (Around::of(&extensions), self.how.clone());
        let (answering, longest) = (call.clone(), how.longest);
        let messages = messages.then(move |message| {
            let (call, how) = (call.clone(), how.clone());
            async move { call.decoded::<S>(message?).await.map_err(|error| how.unread(&error)) }
        });
        let items = self.service.many(Request::from_parts(metadata, extensions, messages.boxed()));
        let items = items.then(move |(item, held)| {
            let call = answering.clone();
            async move {
                let pieces =
                    async { call.framed(item?, longest).await.map_err(|error| proto::status(&error)) };
                (pieces.await, held)
            }
        });
        let mut response = Response::new(futures::stream::empty());
        response.extensions_mut().insert(Answers::many(items.boxed()));
        std::future::ready(Ok(response))
    }
}

impl How {
    /// The status of a message that never became a request.
    fn unread(&self, error: &Error) -> Status {
        self.refusals.count(Door::Grpc, error);
        proto::status(error)
    }
}

/// What a call brings beside its messages.
#[derive(Clone)]
struct Around {
    account: Option<Arc<Account>>,
    counted: Option<Arc<MessageBytes>>,
    until: Option<Instant>,
}

impl Around {
    fn of(extensions: &Extensions) -> Self {
        let until = extensions.get::<Deadline>().and_then(|deadline| deadline.0);
        Self { account: extensions.get().cloned(), counted: extensions.get().cloned(), until }
    }

    async fn decoded<S: Infers>(&self, message: Bytes) -> Result<S::Request> {
        let length = message.len();
        let read = |message| {
            S::Request::decode(message).map_err(|error| {
                let error = error.to_string();
                let message = format!("the message cannot be read: {}", error.trim_end_matches('.'));
                Error::new(Reason::BadRequest, message)
            })
        };
        let request = match glance(&message, S::RAW)? {
            Decodes::AtOnce => read(message)?,
            Decodes::Long => {
                self.heavy(move || {
                    check(&message, S::RAW)?;
                    read(message)
                })
                .await?
            }
        };
        // On the wire a number may have a byte, and in a list it has up to eight.
        let more = S::listed(&request).saturating_sub(length);
        match &self.counted {
            Some(counted) if more > 0 && !counted.add(more as u64) => Err(too_many_bytes()),
            _ => Ok(request),
        }
    }

    async fn framed(&self, answer: impl Gather + 'static, longest: usize) -> Result<Vec<Bytes>> {
        let is_long = answer.listed() > LONG;
        let write = move || framed(answer, longest);
        if is_long { self.heavy(write).await } else { write() }
    }

    /// Runs what takes a while, away from the wire where that costs its caller.
    async fn heavy<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        match &self.account {
            Some(account) => heavy(account, self.until, |_| work()).await,
            None => work(),
        }
    }
}

/// Bytes of a message that need no room beyond what there is at first.
const SHORT: usize = 512;

/// The messages as they come. Answers are in the response's extensions.
struct AsItIs;

/// The answer is not here.
struct Elsewhere;

impl Codec for AsItIs {
    type Encode = Elsewhere;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AsItIs {
    type Item = Elsewhere;
    type Error = Status;

    fn encode(&mut self, _: Elsewhere, _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // tonic allocates one for each call, and nothing goes into it.
        BufferSettings::new(0, 0)
    }
}

impl Decoder for AsItIs {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        // A longer message makes room for itself once its length is known.
        BufferSettings::new(SHORT, SHORT)
    }
}
