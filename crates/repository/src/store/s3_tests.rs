//! Through the real client, against a server that speaks as much of S3 as is asked for.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
};

use super::*;

type Keys = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Serves a bucket called `b`; gives back its address.
fn serve(keys: &Keys) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let keys = keys.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let keys = keys.clone();
            std::thread::spawn(move || while answer(stream.as_ref().unwrap(), &keys).is_some() {});
        }
    });
    address
}

fn answer(stream: &TcpStream, keys: &Keys) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).ok()?;
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let url = url::Url::parse(&format!("http://host{target}")).ok()?;
    let query: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
    let key = target.split('?').next()?.strip_prefix("/b/").unwrap_or_default();
    let (status, body) = if query.contains_key("list-type") {
        (200, list(&keys.lock(), &query).into_bytes())
    } else {
        match keys.lock().get(&decoded(key)) {
            Some(bytes) => (200, bytes.clone()),
            None => (404, b"<Error><Code>NoSuchKey</Code></Error>".to_vec()),
        }
    };
    let (length, modified) = (body.len(), "Wed, 01 Jan 2025 00:00:00 GMT");
    let tag = hex(&Sha256::digest(&body));
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nLast-Modified: {modified}\r\nETag: \"{tag}\"\r\n\r\n"
    );
    let body = if method == "GET" { body } else { Vec::new() };
    // In one piece: two would wait for each other's acknowledgement.
    let (mut stream, whole) = (stream, [head.into_bytes(), body].concat());
    stream.write_all(&whole).ok()?;
    Some(())
}

/// Once, as S3 does.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        match code.filter(|_| *first == b'%') {
            Some(byte) => (bytes, rest) = ([bytes, vec![byte]].concat(), &after[2..]),
            None => (bytes, rest) = ([bytes, vec![*first]].concat(), after),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn list(keys: &BTreeMap<String, Vec<u8>>, query: &BTreeMap<String, String>) -> String {
    let get = |name: &str| query.get(name).cloned().unwrap_or_default();
    let after = query.get("continuation-token").cloned().unwrap_or_else(|| get("start-after"));
    let most = query.get("max-keys").map_or(4, |most| most.parse().unwrap()).min(4);
    let all: Vec<_> =
        keys.iter().filter(|(key, _)| key.starts_with(&get("prefix")) && **key > after).collect();
    let mut text = "<?xml version=\"1.0\"?><ListBucketResult>".to_owned();
    let escaped = |key: &str| {
        key.chars().fold(String::new(), |mut text, c| {
            match c {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '/' | '.' => text.push(c),
                odd => write!(text, "&#x{:x};", u32::from(odd)).unwrap(),
            }
            text
        })
    };
    for (key, bytes) in all.iter().take(most) {
        let (tag, size) = (hex(&Sha256::digest(bytes)), bytes.len());
        write!(
            text,
            "<Contents><Key>{}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>\"{tag}\"</ETag>\
             <Size>{size}</Size></Contents>",
            escaped(key)
        )
        .unwrap();
    }
    if all.len() > most {
        let token = escaped(all[most - 1].0);
        write!(text, "<NextContinuationToken>{token}</NextContinuationToken>").unwrap();
    }
    text + "</ListBucketResult>"
}

fn mirror(address: &str, prefix: &str, cache: &Path) -> Mirror {
    let options = [
        ("endpoint", address),
        ("allow_http", "true"),
        ("skip_signature", "true"),
        ("region", "us-east-1"),
        ("virtual_hosted_style_request", "false"),
    ];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let config = MirrorConfig {
        cache: cache.to_owned(),
        max_bytes: 1 << 20,
        patience: Duration::from_secs(60),
        list_every: Duration::ZERO,
        options: StoreOptions::from([("s3".to_owned(), options.into())]),
    };
    Mirror::open(&format!("s3://b/{prefix}"), &config, StoreMetrics::default()).unwrap()
}

#[tokio::test]
async fn any_key_may_lie_in_a_bucket_and_names_are_taken_as_they_are() {
    let keys = Keys::default();
    let put = |key: &str, bytes: &[u8]| drop(keys.lock().insert(key.to_owned(), bytes.to_vec()));
    let names = [
        "100%.txt",
        "a%20b.txt",
        "größe.txt",
        "a#b.txt",
        "a b+c.txt",
        "what?.txt",
        "[x]{y}~.txt",
        "&'\".txt",
    ];
    for model in ["m", "n", "o"] {
        put(&format!("my models/ü%/{model}/1/model.pt"), model.as_bytes());
        for name in names {
            put(&format!("my models/ü%/{model}/1/{name}"), name.as_bytes());
        }
        for folder in ["", "1/", "1/deep/", "2/"] {
            put(&format!("my models/ü%/{model}/{folder}"), b"");
        }
    }
    for odd in
        ["/x", "n//2/model.pt", "n/1/../model.pt", "./m/1/model.pt", "z\u{1}", "m/1/a\tb", "o/1//", "/"]
    {
        put(&format!("my models/ü%/{odd}"), b"odd");
    }
    let (address, cache) = (serve(&keys), tempfile::tempdir().unwrap());
    let mirror = mirror(&address, "my%20models/%C3%BC%25", cache.path());
    let found = mirror.scan().await.unwrap();
    let names_of: Vec<_> = found.iter().map(|found| (found.name.to_string(), found.numbers())).collect();
    let one = vec![torchlane_model::Version(1)];
    assert_eq!(names_of, ["m", "n", "o"].map(|name| (name.to_owned(), one.clone())));
    for found in found {
        let files = mirror.fetch(found.versions[0].clone()).await.unwrap();
        assert_eq!(fs::read_to_string(&files.archive).unwrap(), found.name.to_string());
        for name in names {
            assert_eq!(fs::read_to_string(files.archive.with_file_name(name)).unwrap(), name);
        }
        let again = mirror.find(&found.name).await.unwrap().unwrap();
        assert_eq!(again.numbers(), found.numbers());
    }
}
