//! Bodies that come compressed. tower-http's layer looks at one header only, by its exact name, and reads one member only: what it
//! leaves out would be lost without a word.

use std::io;

use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder, ZstdDecoder};
use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use futures::TryStreamExt as _;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::error::{Error, Reason, Result, shown};

/// Bytes of what was inflated that come at once.
const PIECE: usize = 32 << 10;

/// The body as it was before it was compressed, where `headers` say that it is. It is inflated as it is read: who reads bounds it.
/// All members are read one after the other, and anything else behind the first is an error, as an end that is missing is.
///
/// # Errors
/// More than one coding, or an unknown one.
pub(super) fn inflated(headers: &HeaderMap, body: Body) -> Result<Body> {
    let Some(coding) = coding(headers)? else { return Ok(body) };
    let compressed = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    Ok(match coding {
        Coding::Gzip => {
            let mut inflated = GzipDecoder::new(compressed);
            inflated.multiple_members(true);
            in_pieces(inflated)
        }
        Coding::Deflate => {
            let mut inflated = ZlibDecoder::new(compressed);
            inflated.multiple_members(true);
            in_pieces(inflated)
        }
        Coding::Zstd => {
            let mut inflated = ZstdDecoder::new(compressed);
            inflated.multiple_members(true);
            in_pieces(inflated)
        }
    })
}

fn in_pieces(inflated: impl AsyncRead + Send + 'static) -> Body {
    Body::from_stream(ReaderStream::with_capacity(inflated, PIECE))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Gzip,
    /// With zlib's frame (RFC 9110, section 8.4.1.2).
    Deflate,
    Zstd,
}

/// `None`: the body is as it is. Names are read as RFC 9110, section 8.4.1 has them.
fn coding(headers: &HeaderMap) -> Result<Option<Coding>> {
    let refused = |message: String| {
        Err(Error::new(Reason::BadRequest, message).with_field(header::CONTENT_ENCODING.as_str()))
    };
    let lines = headers.get_all(header::CONTENT_ENCODING).iter();
    let lines: Vec<_> = lines.map(|line| line.to_str().unwrap_or("(not ASCII)")).collect();
    let named = lines.iter().flat_map(|line| line.split(',')).map(str::trim);
    let named: Vec<_> =
        named.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity")).collect();
    let name = match named.as_slice() {
        [] => return Ok(None),
        [name] => *name,
        _ => {
            let all = named.join(", ");
            return refused(format!(
                "content-encoding names more than one coding ('{}'): use one",
                shown(&all, 64)
            ));
        }
    };
    match name.to_ascii_lowercase().as_str() {
        "gzip" | "x-gzip" => Ok(Some(Coding::Gzip)),
        "deflate" => Ok(Some(Coding::Deflate)),
        "zstd" => Ok(Some(Coding::Zstd)),
        _ => refused(format!("content-encoding '{}' is not one of gzip, deflate, zstd", shown(name, 32))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_compression::tokio::write::{GzipEncoder, ZlibEncoder, ZstdEncoder};
    use bytes::Bytes;
    use tokio::{io::AsyncWriteExt as _, time::Instant};

    use super::*;
    use crate::api::rest::body;

    fn named(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (header::CONTENT_ENCODING, line.parse().unwrap())).collect()
    }

    /// `text` as that coding has it.
    async fn compressed(coding: &str, text: &[u8]) -> Vec<u8> {
        macro_rules! by {
            ($encoder:ident) => {{
                let mut encoder = $encoder::new(Vec::new());
                encoder.write_all(text).await.unwrap();
                encoder.shutdown().await.unwrap();
                encoder.into_inner()
            }};
        }
        match coding {
            "gzip" => by!(GzipEncoder),
            "deflate" => by!(ZlibEncoder),
            _ => by!(ZstdEncoder),
        }
    }

    /// What is read of `sent`, which comes in pieces of `piece` bytes.
    async fn read(coding: &str, sent: &[u8], piece: usize, longest: usize) -> Result<Bytes> {
        let pieces: Vec<_> =
            sent.chunks(piece).map(|piece| Ok::<_, io::Error>(Bytes::copy_from_slice(piece))).collect();
        let body = inflated(&named(&[coding]), Body::from_stream(futures::stream::iter(pieces)))?;
        body::read(body, longest, None, Instant::now() + Duration::from_secs(5)).await
    }

    #[test]
    fn one_coding_is_read_by_any_of_its_names() {
        for (lines, is) in [
            (&[][..], None),
            (&["identity"], None),
            (&[""], None),
            (&["gzip"], Some(Coding::Gzip)),
            (&["GZIP"], Some(Coding::Gzip)),
            (&["X-Gzip"], Some(Coding::Gzip)),
            (&["identity, gzip"], Some(Coding::Gzip)),
            (&["Deflate"], Some(Coding::Deflate)),
            (&["zstd", "identity"], Some(Coding::Zstd)),
        ] {
            assert_eq!(coding(&named(lines)), Ok(is), "{lines:?}");
        }
        for (lines, says) in [
            (&["br"][..], "'br' is not one of"),
            (&["gzip;q=1"], "is not one of"),
            (&["gzip, deflate"], "more than one coding ('gzip, deflate')"),
            (&["gzip", "gzip"], "more than one coding ('gzip, gzip')"),
        ] {
            let error = coding(&named(lines)).unwrap_err();
            assert_eq!((error.reason(), error.field()), (Reason::BadRequest, Some("content-encoding")));
            assert!(error.message().contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn all_members_are_read_and_nothing_else_may_come() {
        let text = b"what is sent ".repeat(50);
        for coding in ["gzip", "deflate", "zstd"] {
            let one = compressed(coding, &text).await;
            let two = [one.clone(), compressed(coding, b"and more").await].concat();
            // Wherever the pieces end.
            for piece in [1, 7, one.len(), usize::MAX] {
                assert_eq!(read(coding, &one, piece, 10_000).await.unwrap(), text, "{coding} {piece}");
                let both = read(coding, &two, piece, 10_000).await.unwrap();
                assert_eq!(both, [&text[..], b"and more"].concat(), "{coding} {piece}");
                for bad in [
                    [&one[..], b"x"].concat(),
                    [&one[..], b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"].concat(),
                    [&one[..], b"{\"model\": \"something else\"}"].concat(),
                    one[..one.len() - 1].to_vec(),
                    two[..two.len() - 1].to_vec(),
                    text.clone(),
                ] {
                    let error = read(coding, &bad, piece, 10_000).await.unwrap_err();
                    assert_eq!(error.reason(), Reason::BadRequest, "{coding} {piece} {error}");
                }
            }
            let error = read(coding, &two, usize::MAX, text.len()).await.unwrap_err();
            assert_eq!(error.reason(), Reason::MessageTooLarge, "it is bounded as it was before");
        }
    }
}
