use std::{
    convert::Infallible,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use http_body_util::{BodyExt as _, StreamBody};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    admission::Account,
    layers::{inflate::tests::deflated, path::INFER},
};

const LONGEST: usize = 8 << 20;

/// A message on the wire.
fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

type Pieces = futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>;

/// A body of `sent`, which comes in pieces and counts in `account`.
async fn inflating(
    account: &Arc<Account>,
    path: &str,
    encoding: &str,
    sent: &[u8],
    piece: usize,
) -> Inflating<StreamBody<Pieces>> {
    let pieces: Vec<_> = sent
        .chunks(piece)
        .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let counted = Arc::new(MessageBytes::new(account.clone()));
    assert!(counted.add(sent.len() as u64));
    let inside = tower::service_fn(|request| std::future::ready(Ok::<_, Infallible>(request)));
    let mut service = Inflate::new(inside, LONGEST, Refusals::default());
    let mut request = Request::builder().uri(path).header(ENCODING, encoding);
    request.extensions_mut().unwrap().insert(counted);
    let body = StreamBody::new(futures::stream::iter(pieces));
    service.call(request.body(body).unwrap()).await.unwrap().into_body()
}

/// What tonic gets of it.
async fn gets(
    account: &Arc<Account>,
    path: &str,
    encoding: &str,
    sent: &[u8],
    piece: usize,
) -> Result<Vec<u8>, String> {
    let inflated = inflating(account, path, encoding, sent, piece).await;
    let told = |error: BoxError| tonic::Status::from_error(error).message().to_owned();
    Ok(inflated.collect().await.map_err(told)?.to_bytes().to_vec())
}

#[tokio::test]
async fn messages_come_inflated_however_they_were_cut() {
    let (short, long) = (b"short".to_vec(), b"a longer one ".repeat(100_000));
    let account = Account::alone(1 << 30);
    for (coding, name) in [(Coding::Gzip, "gzip"), (Coding::Deflate, "deflate"), (Coding::Zstd, "zstd")] {
        let sent = [
            framed(1, &deflated(coding, &short)),
            framed(0, b"as it is"),
            framed(1, &deflated(coding, &long)),
            framed(1, &deflated(coding, b"")),
            framed(0, b""),
        ]
        .concat();
        let expected =
            [framed(0, &short), framed(0, b"as it is"), framed(0, &long), framed(0, b""), framed(0, b"")]
                .concat();
        for piece in [1, 6, 100, usize::MAX] {
            let got = gets(&account, INFER[1], name, &sent, piece).await.unwrap();
            assert!(got == expected, "{name} {piece}: {} bytes", got.len());
        }
        assert!(gets(&account, INFER[0], name, &sent, 100).await.unwrap() == expected);
        // As they are: another service, and a coding that is none of these.
        let health = "/grpc.health.v1.Health/Check";
        for (path, name) in [(health, name), (INFER[1], "br"), (INFER[1], "identity")] {
            assert!(gets(&account, path, name, &sent, 100).await.unwrap() == sent);
        }
    }
    assert_eq!(account.now(), 0);
}

#[tokio::test]
async fn what_it_inflates_to_counts_and_is_bounded() {
    for (coding, name) in [(Coding::Gzip, "gzip"), (Coding::Deflate, "deflate"), (Coding::Zstd, "zstd")] {
        let bomb = framed(1, &deflated(coding, &vec![0; 9 << 20]));
        let account = Account::alone(1 << 30);
        let told = gets(&account, INFER[1], name, &bomb, 1000).await.unwrap_err();
        assert!(told.contains("inflates to more than 8388608 bytes"), "{told}");
        let account = Account::alone(1 << 20);
        let told = gets(&account, INFER[1], name, &bomb, 1000).await.unwrap_err();
        assert!(told.contains("as many bytes of requests in the server as it may"), "{told}");
        let told = gets(&account, INFER[1], name, &framed(1, b"not compressed"), 3).await.unwrap_err();
        assert!(told.contains("the message cannot be read: it does not inflate"), "{told}");
        assert_eq!(account.now(), 0);
    }
}

#[tokio::test]
async fn others_have_their_turn_while_a_long_message_is_handed_on() {
    let turns = Arc::new(AtomicUsize::new(0));
    let others = TaskTracker::new().spawn({
        let turns = turns.clone();
        async move {
            loop {
                turns.fetch_add(1, Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    let sent = framed(1, &deflated(Coding::Zstd, &vec![0; LONGEST]));
    let account = Account::alone(1 << 30);
    let mut inflated = pin!(inflating(&account, INFER[1], "zstd", &sent, usize::MAX).await);
    // All of it is there once the first frame is.
    inflated.frame().await.unwrap().unwrap();
    let before = turns.load(Relaxed);
    let rest = inflated.collect().await.unwrap().to_bytes();
    assert_eq!(rest.len(), LONGEST);
    let turns = turns.load(Relaxed) - before;
    assert!((LONGEST / TURN - 1..=LONGEST / TURN + 1).contains(&turns), "{turns}");
    others.abort();
}

#[tokio::test]
async fn what_is_cut_off_is_for_tonic_to_refuse() {
    let account = Account::alone(1 << 20);
    let whole = framed(1, &deflated(Coding::Gzip, b"message"));
    for cut in [1, 4, 5, 6, whole.len() - 1] {
        let got = gets(&account, INFER[1], "gzip", &whole[..cut], 2).await.unwrap();
        assert!(!got.is_empty() && got.len() <= PREFIX, "{cut}: {got:?}");
    }
    let long = framed(1, &vec![0; LONGEST + 1]);
    assert!(gets(&Account::alone(1 << 30), INFER[1], "gzip", &long, usize::MAX).await.unwrap() == long);
}
