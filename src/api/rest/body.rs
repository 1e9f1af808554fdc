//! Reads bodies: whole, in time and at a pace, and no more bytes than there is room for.

use axum::body::{Body, HttpBody as _};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use crate::{
    admission::MessageBytes,
    error::{Error, Reason, Result},
    layers::{PATIENCE, Pace, late, too_many_bytes, too_slow},
};

/// The whole body, of at most `longest` bytes, counted in `counted` as they come: what is counted may be as long as the settings
/// allow, what is not has a limit of its kind. Not waited for longer than `until`, nor for one that comes in drops.
///
/// # Errors
/// It is too long, too late, too slow, broken off, or there is no room for it.
pub(in crate::api) async fn read(
    mut body: Body,
    longest: usize,
    counted: Option<&MessageBytes>,
    until: Instant,
) -> Result<Bytes> {
    let too_long = || too_long(longest, counted.is_some());
    // Where its length is told it need not come.
    if body.size_hint().lower() > longest as u64 {
        return Err(too_long());
    }
    let mut first: Option<Bytes> = None;
    let mut whole = BytesMut::new();
    let mut length = 0;
    let mut pace = Pace::new(PATIENCE);
    loop {
        let enough = pace.wait();
        let frame = timeout_at(until.min(enough), body.frame())
            .await
            .map_err(|_| if until <= enough { late() } else { too_slow() })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| {
            let message = format!("the body cannot be read: {}", cause(&error));
            Error::new(Reason::BadRequest, message)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        pace.moved(data.len());
        length += data.len();
        if length > longest {
            return Err(too_long());
        }
        if counted.is_some_and(|counted| !counted.add(data.len() as u64)) {
            return Err(too_many_bytes());
        }
        // A body that comes in one piece is not copied.
        match first.take() {
            None if whole.is_empty() => first = Some(data),
            None => whole.extend_from_slice(&data),
            Some(before) => {
                whole.extend_from_slice(&before);
                whole.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}

/// The refusal of a body of more than `longest` bytes; with `raisable` that is a setting.
pub(super) fn too_long(longest: usize, raisable: bool) -> Error {
    let message = if raisable {
        format!(
            "the body has more than {longest} bytes: send less at once, or raise server.max_message_bytes"
        )
    } else {
        format!("the body has more than the {longest} bytes that a request of this kind may have")
    };
    Error::new(Reason::MessageTooLarge, message)
}

/// What is at the bottom of an error.
fn cause(error: &axum::Error) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt as _;

    use super::*;
    use crate::admission::Account;

    fn pieces<const N: usize>(pieces: [&'static str; N]) -> Body {
        let pieces = pieces.map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece.as_bytes())));
        Body::from_stream(futures::stream::iter(pieces))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_whole_and_bounded() {
        assert_eq!(read(pieces([]), 4, None, soon()).await.unwrap(), "");
        assert_eq!(read(pieces(["abcd"]), 4, None, soon()).await.unwrap(), "abcd");
        assert_eq!(read(pieces(["ab", "", "cd", "e"]), 5, None, soon()).await.unwrap(), "abcde");
        let error = read(pieces(["ab", "cd", "e"]), 4, None, soon()).await.unwrap_err();
        assert_eq!(error.reason(), Reason::MessageTooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_limit_that_can_be_raised_is_said_to_be() {
        let counted = MessageBytes::new(Account::alone(100));
        for (counted, says) in [
            (Some(&counted), "raise server.max_message_bytes"),
            (None, "the 4 bytes that a request of this kind"),
        ] {
            let error = read(pieces(["abcde"]), 4, counted, soon()).await.unwrap_err();
            assert!(error.message().contains(says), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn there_must_be_room_and_time_for_it() {
        let all = Account::alone(4);
        let counted = MessageBytes::new(all.clone());
        let error = read(pieces(["abcd", "e"]), 100, Some(&counted), soon()).await.unwrap_err();
        assert_eq!((error.reason(), all.now()), (Reason::Overloaded, 4));
        drop(counted);
        assert_eq!(all.now(), 0);
        let never = futures::stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"a")) })
            .chain(futures::stream::pending());
        let began = Instant::now();
        let error = read(Body::from_stream(never), 100, None, soon()).await.unwrap_err();
        assert_eq!((error.reason(), began.elapsed().as_secs()), (Reason::DeadlineExceeded, 5));
        let drops = futures::stream::repeat(()).then(async |()| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, std::io::Error>(Bytes::from_static(b"a"))
        });
        let (began, much_later) = (Instant::now(), Instant::now() + Duration::from_secs(300));
        let error = read(Body::from_stream(drops), 1000, None, much_later).await.unwrap_err();
        assert_eq!((error.reason(), began.elapsed().as_secs()), (Reason::DeadlineExceeded, 10));
        assert!(error.message().contains("too slowly"), "{error}");
        let broken = futures::stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
        let error = read(Body::from_stream(broken), 100, None, soon()).await.unwrap_err();
        assert_eq!((error.reason(), error.message()), (Reason::BadRequest, "the body cannot be read: gone"));
    }
}
