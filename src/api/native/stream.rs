//! `InferStream`: many requests over one call, side by side.

use std::sync::Arc;

use futures::{FutureExt as _, Stream, StreamExt as _, future::Either, stream, stream::BoxStream};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, Streaming};

use crate::{
    api::status,
    error::{Error, Reason, Result},
    proto::{self, infer_stream_response::Result as Answer},
};

/// Requests of one stream that run at once, answers that the client has not taken included; beyond, reading waits.
const AT_ONCE: usize = 64;

/// Answers `requests` in a task of its own in `tasks`. What runs goes on to its end whether the client takes answers or
/// not: a request that nobody drives would keep its ticket, and its deadline would not hold.
///
/// Ends with a status where a message cannot be read or `shutdown` comes, after the answers to all messages before.
pub(super) fn serve<F>(
    requests: Streaming<proto::InferRequest>,
    answer: impl Fn(proto::InferRequest) -> F + Send + 'static,
    longest: usize,
    shutdown: CancellationToken,
    tasks: &TaskTracker,
) -> BoxStream<'static, Result<proto::InferStreamResponse, Status>>
where
    F: Future<Output = Result<proto::InferResponse>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(AT_ONCE));
    // Bounded by the places: each answer in it holds one.
    let (send, answers) = mpsc::unbounded_channel::<(Result<_, Status>, Option<OwnedSemaphorePermit>)>();
    tasks.spawn(async move {
        let mut answered = std::pin::pin!(
            messages(requests, shutdown, places)
                .boxed()
                .map(move |message| match message {
                    Err(end) => Either::Left(std::future::ready((Err(end), None))),
                    Ok((message, place)) => {
                        let request_id = message.request_id.clone();
                        let answer = answer(message);
                        Either::Right(
                            answer.map(move |answer| (Ok(item(request_id, answer, longest)), Some(place))),
                        )
                    }
                })
                .buffer_unordered(AT_ONCE + 1)
        );
        let mut end = None;
        loop {
            let next = tokio::select! {
                // The client has left: what waits is dropped.
                () = send.closed() => return,
                next = answered.next() => next,
            };
            match next {
                // What ends the stream comes after the answers to what was read before it.
                Some((Err(status), _)) => end = Some(status),
                Some(answer) => {
                    let _client_left = send.send(answer);
                }
                None => break,
            }
        }
        if let Some(status) = end {
            let _client_left = send.send((Err(status), None));
        }
    });
    stream::unfold(answers, async |mut answers| {
        let (answer, place) = answers.recv().await?;
        drop(place);
        Some((answer, answers))
    })
    .boxed()
}

/// The messages of a stream, each with a place, until it ends; last what ended it, if that is not its own end.
fn messages(
    requests: Streaming<proto::InferRequest>,
    shutdown: CancellationToken,
    places: Arc<Semaphore>,
) -> impl Stream<Item = Result<(proto::InferRequest, OwnedSemaphorePermit), Status>> {
    stream::unfold(Some((requests, shutdown, places)), async |reading| {
        let (mut requests, shutdown, places) = reading?;
        let next = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some(requests.next().await?.map(|message| (message, place)))
        };
        let next = tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                let message = "the server is stopping: send what has no answer on a new stream";
                Some(Err(status(&Error::new(Reason::ShuttingDown, message))))
            }
            next = next => next,
        };
        match next? {
            Ok(message) => Some((Ok(message), Some((requests, shutdown, places)))),
            Err(end) => Some((Err(end), None)),
        }
    })
}

/// The item for an answer. One that is too long is an error of its own: it must not end the stream for the others.
fn item(
    request_id: String,
    answer: Result<proto::InferResponse>,
    longest: usize,
) -> proto::InferStreamResponse {
    // The item is the answer, the id again, and a few bytes of framing.
    let bytes = |response: &proto::InferResponse| response.encoded_len() + request_id.len() + 32;
    let answer = answer.and_then(|response| match bytes(&response) {
        bytes if bytes <= longest => Ok(response),
        bytes => {
            let message = format!(
                "the answer has {bytes} bytes, over the limit of {longest}: ask for fewer rows or outputs, or raise \
                 server.max_message_bytes"
            );
            Err(Error::new(Reason::MessageTooLarge, message))
        }
    });
    let result = answer.map_or_else(
        |error| {
            let status = status(&error);
            Answer::Error(proto::Status {
                code: status.code().into(),
                message: status.message().to_owned(),
                details: details(&status),
            })
        },
        Answer::Response,
    );
    proto::InferStreamResponse { request_id, result: Some(result) }
}

/// The google.rpc details that a status carries, for answers inside a stream.
fn details(status: &Status) -> Vec<prost_types::Any> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct RpcStatus {
        #[prost(message, repeated, tag = "3")]
        details: Vec<prost_types::Any>,
    }
    <RpcStatus as prost::Message>::decode(status.details()).map(|status| status.details).unwrap_or_default()
}
