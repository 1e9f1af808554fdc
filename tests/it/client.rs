//! `torchlane::client` against real servers, over TCP.

use std::{collections::BTreeMap, fs, time::Duration};

use futures::StreamExt as _;
use torchlane::{
    client::{Client, ErrorKind, Priority, Tensor},
    proto::ModelState,
};

use super::{
    fake::{reload, repository, version},
    server::Server,
};

fn of(server: &Server) -> torchlane::client::ClientBuilder {
    Client::builder().endpoint(format!("http://{}", server.grpc)).deadline(Duration::from_secs(20))
}

/// Sends requests one after the other; gives how many each version answered.
async fn versions(client: &Client, requests: usize) -> BTreeMap<String, usize> {
    let mut versions = BTreeMap::new();
    for _ in 0..requests {
        let answer = client.infer("m").input("x", vec![1.0_f32]).send().await.unwrap();
        *versions.entry(answer.version).or_default() += 1;
    }
    versions
}

fn counted<const N: usize>(counts: [(&str, usize); N]) -> BTreeMap<String, usize> {
    counts.map(|(version, count)| (version.to_owned(), count)).into()
}

#[tokio::test]
async fn calls_go_around_a_server_that_is_gone_and_to_it_again_when_it_is_back() {
    // Each server has a version of its own: an answer says who gave it.
    let (one, two) = (repository(&[("m", "")]), tempfile::tempdir().unwrap());
    version(two.path(), "m", 2, "");
    let (first, second) = (Server::fake(one.path(), |_| {}), Server::fake(two.path(), |_| {}));
    first.ready().await;
    second.ready().await;
    let address = first.grpc;
    let client = of(&first).endpoint(second.grpc.to_string()).connect().await.unwrap();
    assert_eq!(versions(&client, 10).await, counted([("1", 5), ("2", 5)]));
    // Not on this thread, which has the connections to close.
    tokio::task::spawn_blocking(move || first.join()).await.unwrap();
    assert_eq!(versions(&client, 10).await, counted([("2", 10)]));
    let first = Server::fake(one.path(), |settings| settings.server.grpc_addr = address);
    first.ready().await;
    for _ in 0..2000 {
        if versions(&client, 2).await == counted([("1", 1), ("2", 1)]) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server that came back is asked nothing");
}

#[tokio::test]
async fn a_name_stands_for_the_addresses_that_the_system_knows() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    // `localhost` may have an IPv6 address too, where nobody listens: that one is left aside.
    let name = format!("dns:///localhost:{}", server.grpc.port());
    let client = Client::builder().endpoint(name).connect().await.unwrap();
    assert_eq!(versions(&client, 4).await, counted([("1", 4)]));
}

#[tokio::test]
async fn answers_and_refusals_are_typed() {
    let dir = repository(&[("m", "scale = 2.0")]);
    let signature = "[[inputs]]\nname='x'\ndtype='FP32'\nshape=[-1, 2]\n[[outputs]]\nname='y'\n";
    fs::write(dir.path().join("m/model.toml"), signature).unwrap();
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let client = of(&server).connect().await.unwrap();
    let pair = || Tensor::new(&[1, 2], &[1.0_f32, 2.0]).unwrap();
    let answer = client.infer("m").input("x", pair()).priority(Priority::High).request_id("one");
    let answer = answer.version("stable").send().await.unwrap();
    assert_eq!((answer.request_id.as_str(), answer.version.as_str()), ("one", "1"));
    assert_eq!(answer.output("y").unwrap().as_f32().unwrap(), [2.0, 4.0]);
    assert!(answer.timing.total > Duration::ZERO && answer.timing.batch_size > 0, "{:?}", answer.timing);

    let error = client.infer("nope").input("x", pair()).send().await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (ErrorKind::NotFound, Some("UNKNOWN_MODEL")));
    let error = client.infer("m").input("x", vec![1.0_f32]).send().await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (ErrorKind::InvalidArgument, Some("WRONG_SHAPE")));
    assert_eq!((error.field(), error.tries()), (Some("inputs[0].shape"), 1));
    let nobody = Client::builder().endpoint(server.http.to_string()).connect().await;
    // HTTP answers there, not gRPC: the connection is taken, and of no use.
    let error = nobody.unwrap().infer("m").input("x", pair()).send().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Broken), "{error}");
}

#[tokio::test]
async fn a_stream_gives_each_answer_under_its_own_name() {
    let dir = repository(&[("m", "scale = 2.0")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let client = of(&server).connect().await.unwrap();
    let request = |number: u8| {
        let model = if number == 3 { "nope" } else { "m" };
        let request = client.infer(model).input("x", vec![f32::from(number)]);
        request.request_id(number.to_string()).into_message()
    };
    let requests: Vec<_> = (0..6).map(request).collect();
    let answers = client.infer_stream(futures::stream::iter(requests)).await.unwrap();
    let mut answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    answers.sort_by(|a, b| a.request_id.cmp(&b.request_id));
    assert_eq!(answers.len(), 6);
    for (number, answer) in (0_u8..).zip(&answers) {
        assert_eq!(answer.request_id, number.to_string());
        match &answer.outcome {
            Ok(answer) => assert_eq!(answer.outputs[0].1.as_f32().unwrap(), [2.0 * f32::from(number)]),
            Err(error) => assert_eq!((number, error.reason()), (3, Some("UNKNOWN_MODEL"))),
        }
    }
    assert_eq!(answers.iter().filter(|answer| answer.outcome.is_err()).count(), 1);
}

#[tokio::test]
async fn models_are_listed_watched_and_reloaded() {
    let dir = repository(&[("a", ""), ("b", "")]);
    version(dir.path(), "a", 2, "load_error = 'broken weights'");
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let client = of(&server).connect().await.unwrap();
    let names: Vec<_> = client.models().await.unwrap().into_iter().map(|model| model.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(client.model("b").await.unwrap().state(), ModelState::Ready);
    assert_eq!(client.model("c").await.unwrap_err().reason(), Some("UNKNOWN_MODEL"));
    assert_eq!(client.watch(Some("c")).await.err().map(|error| error.kind()), Some(ErrorKind::NotFound));

    let mut events = client.watch(Some("b")).await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().change, "snapshot");
    assert_eq!(client.reload(reload("b", 1)).await.unwrap().live_version, "1");
    assert_eq!(events.next().await.unwrap().unwrap().change, "reloading");
    assert_eq!(events.next().await.unwrap().unwrap().change, "reloaded");
    let error = client.reload(reload("a", 2)).await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (ErrorKind::FailedPrecondition, Some("LOAD_FAILED")));
}
