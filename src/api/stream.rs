//! Many requests over one call, side by side.

use std::sync::Arc;

use futures::{FutureExt as _, Stream, StreamExt as _, future::Either, stream, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;

use crate::{
    error::{Error, Reason, Result},
    layers::AnswerBytes,
    proto,
};

/// The messages of a stream.
pub(super) type Messages<M> = BoxStream<'static, Result<M, Status>>;

/// The items of a stream, each with what it holds until it is sent.
pub(super) type Items<A> = BoxStream<'static, (Result<A, Status>, Option<Held>)>;

/// Requests of one stream that run at once, answers that the client has not taken included; beyond, reading waits.
const AT_ONCE: usize = 64;
/// So many at first, and one more for each answer: how long answers are is not known before.
const AT_FIRST: usize = 16;
/// An answer counts once more for each of these: the stream is not to fill its caller's part with what waits to be taken.
const COUNTS_MORE: usize = 1 << 20;

/// In which order answers are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// As they are there: each says which request it is of.
    AsTheyCome,
    /// As the requests came.
    OfRequests,
}

/// What an answer holds until it is sent.
pub(super) struct Held {
    _place: Place,
    _bytes: Option<AnswerBytes>,
}

/// How many requests of a stream may run, and how many do.
#[derive(Debug)]
struct Window {
    size: Mutex<Size>,
    freed: Notify,
}

#[derive(Debug)]
struct Size {
    most: usize,
    now: usize,
}

impl Window {
    fn new() -> Arc<Self> {
        Arc::new(Self { size: Mutex::new(Size { most: AT_FIRST, now: 0 }), freed: Notify::new() })
    }

    /// Waits for a place. There is one reader.
    async fn enter(self: &Arc<Self>) -> Place {
        loop {
            {
                let mut size = self.size.lock();
                if size.now < size.most {
                    size.now += 1;
                    return Place { of: self.clone(), counts: 1 };
                }
            }
            // One that came since is not missed.
            self.freed.notified().await;
        }
    }
}

/// A request in a window.
#[derive(Debug)]
struct Place {
    of: Arc<Window>,
    counts: usize,
}

impl Place {
    /// It has an answer of so many bytes, which waits to be taken.
    fn answered(&mut self, bytes: usize) {
        let more = bytes / COUNTS_MORE;
        self.counts += more;
        let mut size = self.of.size.lock();
        size.now += more;
        size.most = (size.most + 1).min(AT_ONCE);
        self.of.freed.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.size.lock().now -= self.counts;
        self.of.freed.notify_one();
    }
}

/// Answers `requests` in a task of its own in `tasks`. What runs goes on to its end whether the client takes answers or
/// not: a request that nobody drives would keep its ticket, and its deadline would not hold.
///
/// Ends with a status where a message cannot be read or `shutdown` comes, after the answers to all messages before; and at
/// once where `answer` gives one.
pub(super) fn serve<M, A, F>(
    requests: Messages<M>,
    answer: impl Fn(M) -> F + Send + 'static,
    order: Order,
    shutdown: CancellationToken,
    tasks: &TaskTracker,
) -> Items<A>
where
    M: Send + 'static,
    A: Send + 'static,
    F: Future<Output = (Result<A, Status>, Option<AnswerBytes>)> + Send + 'static,
{
    let window = Window::new();
    // Bounded by the places: each answer in it holds one.
    let (send, answers) = mpsc::unbounded_channel::<(Result<A, Status>, Option<Held>)>();
    let answering = messages(requests, shutdown, window).map(move |message| match message {
        Err(end) => Either::Left(std::future::ready((Err(end), None))),
        Ok((message, mut place)) => {
            let held = move |(answer, bytes): (_, Option<AnswerBytes>)| {
                place.answered(bytes.as_ref().map_or(0, AnswerBytes::count));
                (answer, Some(Held { _place: place, _bytes: bytes }))
            };
            Either::Right(answer(message).map(held))
        }
    });
    let mut answered = match order {
        Order::AsTheyCome => answering.buffer_unordered(AT_ONCE + 1).boxed(),
        Order::OfRequests => answering.buffered(AT_ONCE + 1).boxed(),
    };
    tasks.spawn(async move {
        let mut end = None;
        loop {
            let next = tokio::select! {
                // The client has left: what waits is dropped.
                () = send.closed() => return,
                next = answered.next() => next,
            };
            match next {
                // What ends the reading comes after the answers to what was read before it.
                Some((Err(status), None)) => end = Some(status),
                Some((Err(status), held)) => {
                    let _client_left = send.send((Err(status), held));
                    return;
                }
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
    stream::unfold(answers, async |mut answers| answers.recv().await.map(|answer| (answer, answers))).boxed()
}

/// The messages of a stream, each with a place, until it ends; last what ended it, if that is not its own end.
fn messages<M: Send + 'static>(
    requests: Messages<M>,
    shutdown: CancellationToken,
    window: Arc<Window>,
) -> impl Stream<Item = Result<(M, Place), Status>> + Send {
    stream::unfold(Some((requests, shutdown, window)), async |reading| {
        let (mut requests, shutdown, window) = reading?;
        let next = async {
            let place = window.enter().await;
            Some(requests.next().await?.map(|message| (message, place)))
        };
        let next = tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                let message = "the server is stopping: send what has no answer on a new stream";
                Some(Err(proto::status(&Error::new(Reason::ShuttingDown, message))))
            }
            next = next => next,
        };
        match next? {
            Ok(message) => Some((Ok(message), Some((requests, shutdown, window)))),
            Err(end) => Some((Err(end), None)),
        }
    })
}

/// What a request of a stream came to, and the bytes that its item holds.
pub(super) fn parted<T>(answered: Result<(T, AnswerBytes)>) -> (Result<T>, Option<AnswerBytes>) {
    match answered {
        Ok((answer, bytes)) => (Ok(answer), Some(bytes)),
        Err(error) => (Err(error), None),
    }
}

/// What is wrong with an answer of `bytes` where `longest` is allowed. In a stream that is an error of its own: it must not
/// end the stream for the others.
pub(super) fn too_long(bytes: usize, longest: usize) -> Option<Error> {
    (bytes > longest).then(|| {
        let message = format!(
            "the answer has {bytes} bytes, over the limit of {longest}: ask for fewer rows or outputs, or raise \
             server.max_message_bytes"
        );
        Error::new(Reason::MessageTooLarge, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_window_grows_with_answers_and_long_ones_fill_it() {
        let window = Window::new();
        let mut places = Vec::new();
        let free = |window: &Arc<Window>| window.enter().now_or_never();
        while let Some(place) = free(&window) {
            places.push(place);
        }
        assert_eq!(places.len(), AT_FIRST);
        // Short answers that are taken at once.
        for _ in 0..100 {
            places.pop().unwrap().answered(100);
            places.push(free(&window).unwrap());
        }
        while let Some(place) = free(&window) {
            places.push(place);
        }
        assert_eq!(places.len(), AT_ONCE);
        // Each of these counts for eight.
        let mut long = places.split_off(AT_ONCE - 8);
        long.iter_mut().for_each(|place| place.answered(7 * COUNTS_MORE));
        drop(places);
        assert!(free(&window).is_none());
        let waits = window.enter();
        long.pop();
        let mut more = vec![waits.await];
        while let Some(place) = free(&window) {
            more.push(place);
        }
        assert_eq!(more.len(), 8);
    }
}
