//! Bodies that come compressed. tower-http's layer looks at one header only, by its exact name, and reads one member only: what it
//! leaves out would be lost without a word.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use tokio::time::Instant;

use super::body;
use crate::{
    admission::MessageBytes,
    error::{Error, Reason, Result, shown},
    layers::{Coding, heavy, inflate, too_many_bytes},
};

/// The whole body as it was before it was compressed, where `headers` say that it is: at most `longest` bytes, counted in `counted`, by
/// `until`. What counts is inflated away from this thread.
///
/// # Errors
/// As [`body::read`], more than one coding, an unknown one, or it does not inflate.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    longest: usize,
    counted: Option<&Arc<MessageBytes>>,
    until: Instant,
) -> Result<Bytes> {
    let coding = coding(headers)?;
    let sent = body::read(body, longest, counted.map(|counted| &**counted), until).await?;
    let Some(coding) = coding else { return Ok(sent) };
    let Some(counted) = counted.cloned() else {
        return whole(coding, sent, (longest, false), |_| Ok(()));
    };
    let (account, came) = (counted.account().clone(), sent.len() as u64);
    heavy(&account, Some(until), move |wanted| {
        let body = whole(coding, sent, (longest, true), |more| {
            wanted.check()?;
            if counted.add(more as u64) { Ok(()) } else { Err(too_many_bytes()) }
        })?;
        counted.free(came);
        Ok(body)
    })
    .await
}

/// What `sent` inflates to. `more` is asked before each piece.
fn whole(
    coding: Coding,
    sent: Bytes,
    (longest, raisable): (usize, bool),
    mut more: impl FnMut(usize) -> Result<()>,
) -> Result<Bytes> {
    let mut body = Vec::new();
    inflate(coding, sent.into(), longest, |piece| {
        if body.len() + piece.len() > longest {
            return Err(body::too_long(longest, raisable));
        }
        more(piece.len())?;
        body.extend_from_slice(&piece);
        Ok(())
    })?;
    Ok(body.into())
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
    let plain = name.to_ascii_lowercase();
    match Coding::named(plain.strip_prefix("x-").filter(|rest| *rest == "gzip").unwrap_or(&plain).as_bytes())
    {
        Some(coding) => Ok(Some(coding)),
        None => refused(format!("content-encoding '{}' is not one of gzip, deflate, zstd", shown(name, 32))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{admission::Account, layers::deflated};

    fn named(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (header::CONTENT_ENCODING, line.parse().unwrap())).collect()
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
    async fn it_is_bounded_and_counted_by_what_it_inflates_to() {
        let text = b"what is sent ".repeat(1000);
        for (coding, name) in [(Coding::Gzip, "gzip"), (Coding::Deflate, "deflate"), (Coding::Zstd, "zstd")] {
            let sent = deflated(coding, &text);
            let until = Instant::now() + Duration::from_secs(60);
            let account = Account::alone(20_000);
            let counted = Arc::new(MessageBytes::new(account.clone()));
            let get = async |longest, counted| {
                read(&named(&[name]), Body::from(sent.clone()), longest, counted, until).await
            };
            for counted in [Some(&counted), None] {
                assert_eq!(get(13_000, counted).await.unwrap(), text, "{name}");
            }
            assert_eq!(account.now(), 13_000);
            for counted in [Some(&counted), None] {
                let error = get(12_999, counted).await.unwrap_err();
                assert_eq!(error.reason(), Reason::MessageTooLarge, "{name}");
            }
            let held = MessageBytes::new(account.clone());
            assert!(held.add(6000));
            let error = get(13_000, Some(&counted)).await.unwrap_err();
            assert_eq!(error.reason(), Reason::Overloaded, "{name}");
        }
    }
}
