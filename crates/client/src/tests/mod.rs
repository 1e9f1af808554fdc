//! The client against servers in this process, on paused time.

mod network;

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use torchlane_model::error::{Error, Reason};
use torchlane_proto as proto;

use self::network::{Memory, Step};
use super::{Answer, Client, ClientBuilder, ClientError, ErrorKind, Priority, RetryPolicy};

const MS: Duration = Duration::from_millis(1);

/// A client whose connections are there, or known not to be.
async fn connected(network: &Arc<Memory>, builder: ClientBuilder) -> Client {
    let client = builder.build_on(network.clone()).unwrap();
    client.caller.pool.settle().await.unwrap();
    client
}

async fn infer(client: &Client) -> Result<Answer, ClientError> {
    client.infer("m").input("x", vec![1.0_f32, 2.0]).send().await
}

async fn infer_all(client: &Client, count: usize) {
    for _ in 0..count {
        infer(client).await.unwrap();
    }
}

fn refusal(reason: Reason, after: Option<Duration>) -> Step {
    let error = Error::new(reason, "not now");
    Step::Refuse(proto::status(&match after {
        Some(after) => error.with_retry_after(after),
        None => error,
    }))
}

/// The time that the server was told, in microseconds.
fn micros(timeout: Option<&String>) -> u128 {
    timeout.and_then(|text| text.strip_suffix('u')).expect("a timeout in microseconds").parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_request_says_all_that_was_set_and_an_answer_all_that_came() {
    let network = Arc::new(Memory::default());
    let server = network.start("a:1", []);
    let builder = Client::builder().endpoint("a:1").tenant("lab").priority(Priority::Low).deadline(3000 * MS);
    let client = connected(&network, builder).await;
    infer(&client).await.unwrap();
    let request = client.infer("m").input("x", vec![1.0_f32, 2.0]).priority(Priority::Critical).version(7);
    let request = request.deadline(500 * MS).request_id("one").outputs(["x"]);
    let answer = request.send().await.unwrap();
    assert_eq!((answer.request_id.as_str(), answer.model.as_str()), ("one", "m"));
    assert_eq!(answer.version, "a:1");
    assert_eq!(answer.output("x").unwrap().as_f32().unwrap(), [1.0, 2.0]);
    let asked = server.asked();
    assert_eq!(asked[0].message.priority(), Priority::Low, "the client's own");
    assert_eq!((micros(asked[0].timeout.as_ref()), asked[0].tenant.as_deref()), (3_000_000, Some("lab")));
    let message = &asked[1].message;
    assert_eq!((message.priority(), message.version.as_str()), (Priority::Critical, "7"));
    assert_eq!((message.outputs.join(","), message.inputs[0].shape.as_slice()), ("x".to_owned(), &[2][..]));
    assert_eq!(micros(asked[1].timeout.as_ref()), 500_000);
}

#[tokio::test(start_paused = true)]
async fn calls_go_to_all_servers_in_turn_and_around_one_that_is_gone() {
    let network = Arc::new(Memory::default());
    let (a, b) = (network.start("a:1", []), network.start("b:1", []));
    let client = connected(&network, Client::builder().endpoints(["http://a:1", "b:1"])).await;
    infer_all(&client, 8).await;
    assert_eq!((a.count(), b.count()), (4, 4));
    network.stop("a:1");
    infer_all(&client, 6).await;
    assert_eq!((a.count(), b.count()), (4, 10));
    let again = network.start("a:1", []);
    // The longest wait before it is tried again.
    sleep(Duration::from_secs(10)).await;
    infer_all(&client, 8).await;
    assert_eq!((again.count(), b.count()), (4, 14));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_up_on_everybody_is_left_aside() {
    let network = Arc::new(Memory::default());
    network.rude("rude:1");
    let good = network.start("good:1", []);
    let client = connected(&network, Client::builder().endpoints(["rude:1", "good:1"])).await;
    infer_all(&client, 50).await;
    assert_eq!(good.count(), 50);
    assert!(network.dialled("rude:1") <= 2, "{} times", network.dialled("rude:1"));
}

#[tokio::test(start_paused = true)]
async fn addresses_of_a_name_are_looked_up_again() {
    let network = Arc::new(Memory::default());
    let servers = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(|address| network.start(address, []));
    let counts = || servers.each_ref().map(|server| server.count());
    network.name("lanes:1", &["10.0.0.1:1", "10.0.0.2:1"]);
    let builder = Client::builder().endpoint("dns:///lanes:1").resolve_every(5000 * MS);
    let client = connected(&network, builder).await;
    infer_all(&client, 4).await;
    assert_eq!(counts(), [2, 2, 0]);
    network.name("lanes:1", &["10.0.0.2:1", "10.0.0.3:1"]);
    sleep(6000 * MS).await;
    infer_all(&client, 4).await;
    assert_eq!(counts(), [2, 4, 2]);
    // What was known is better than nothing.
    network.name("lanes:1", &[]);
    sleep(6000 * MS).await;
    infer_all(&client, 4).await;
    assert_eq!(counts(), [2, 6, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_tried_again_when_the_server_says_within_the_same_deadline() {
    let network = Arc::new(Memory::default());
    let server = network.start("a:1", [refusal(Reason::QueueFull, Some(200 * MS))]);
    let client = connected(&network, Client::builder().endpoint("a:1").deadline(1000 * MS)).await;
    infer(&client).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    let waited = asked[1].at - asked[0].at;
    assert!((200 * MS..=242 * MS).contains(&waited), "{waited:?}");
    assert_eq!(micros(asked[0].timeout.as_ref()), 1_000_000);
    assert_eq!(micros(asked[1].timeout.as_ref()), (1000 * MS - waited).as_micros(), "what is left of it");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_after_the_deadline() {
    let network = Arc::new(Memory::default());
    let server = network.start("a:1", [refusal(Reason::QueueFull, Some(500 * MS)), Step::Hang]);
    let client = connected(&network, Client::builder().endpoint("a:1").deadline(400 * MS)).await;
    let began = Instant::now();
    let error = infer(&client).await.unwrap_err();
    assert!(began.elapsed() < 10 * MS, "nobody waits for what would be too late: {:?}", began.elapsed());
    assert_eq!((error.kind(), error.reason()), (ErrorKind::ResourceExhausted, Some("QUEUE_FULL")));
    assert_eq!((error.retry_after(), error.tries()), (Some(500 * MS), 1));
    let began = Instant::now();
    let error = infer(&client).await.unwrap_err();
    assert_eq!((error.kind(), error.tries()), (ErrorKind::DeadlineExceeded, 1));
    assert!((399 * MS..=402 * MS).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(server.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_stays_wrong() {
    let network = Arc::new(Memory::default());
    let wrong = Error::new(Reason::WrongShape, "[3] is not [-1, 2]").with_field("inputs[0].shape");
    let server = network.start("a:1", [Step::Refuse(proto::status(&wrong))]);
    let client = connected(&network, Client::builder().endpoint("a:1")).await;
    let error = infer(&client).await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (ErrorKind::InvalidArgument, Some("WRONG_SHAPE")));
    assert_eq!((error.field(), error.tries(), server.count()), (Some("inputs[0].shape"), 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fleet_in_trouble_is_sent_little_on_top() {
    let network = Arc::new(Memory::default());
    let busy = std::iter::repeat_n(refusal(Reason::ShuttingDown, None), 40);
    let server = network.start("a:1", busy);
    let client = connected(&network, Client::builder().endpoint("a:1")).await;
    for _ in 0..30 {
        let error = infer(&client).await.unwrap_err();
        assert_eq!(error.reason(), Some("SHUTTING_DOWN"));
    }
    assert_eq!(server.count(), 40, "the ten that are saved up");
    // The script is at its end: good answers pay for two more.
    infer_all(&client, 20).await;
    server.tell(std::iter::repeat_n(refusal(Reason::ShuttingDown, None), 12));
    for _ in 0..10 {
        infer(&client).await.unwrap_err();
    }
    assert_eq!(server.count(), 40 + 20 + 12);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_costs_no_answer_unless_it_may_not_run_twice() {
    let network = Arc::new(Memory::default());
    let server = network.start("a:1", []);
    let client = connected(&network, Client::builder().endpoint("a:1")).await;
    infer_all(&client, 1).await;
    server.tell([Step::Cut]);
    infer_all(&client, 1).await;
    assert_eq!(server.count(), 3);
    let careful = RetryPolicy { replay: false, ..RetryPolicy::default() };
    let client = connected(&network, Client::builder().endpoint("a:1").retry(careful)).await;
    infer_all(&client, 1).await;
    server.tell([Step::Cut]);
    let error = infer(&client).await.unwrap_err();
    assert_eq!((error.kind(), error.tries(), server.count()), (ErrorKind::Broken, 1, 5));
    infer_all(&client, 1).await;
}

#[tokio::test(start_paused = true)]
async fn where_nobody_is_it_says_so_soon() {
    let network = Arc::new(Memory::default());
    let client = Client::builder().endpoint("a:1").build_on(network.clone()).unwrap();
    let began = Instant::now();
    let error = infer(&client).await.unwrap_err();
    assert_eq!((error.kind(), error.tries()), (ErrorKind::Unreachable, 4));
    assert!(error.message().contains("a:1"), "{error}");
    assert!(began.elapsed() < 1000 * MS, "{:?}", began.elapsed());
    let once = Client::builder().endpoint("a:1").retry(RetryPolicy::never());
    let once = once.build_on(network.clone()).unwrap();
    assert_eq!(infer(&once).await.unwrap_err().tries(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_come_about_is_waited_for_until_the_deadline() {
    let network = Arc::new(Memory::default());
    network.silent("a:1");
    let client = Client::builder().endpoint("a:1").deadline(1000 * MS).build_on(network.clone()).unwrap();
    let began = Instant::now();
    assert_eq!(infer(&client).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!((1000 * MS..=1002 * MS).contains(&began.elapsed()), "{:?}", began.elapsed());
    let why = client.caller.pool.settle().await.unwrap_err();
    assert!(why.contains("no connection within 5s"), "{why}");
    let server = network.start("b:1", []);
    let client = Client::builder().endpoints(["a:1", "b:1"]).build_on(network.clone()).unwrap();
    infer_all(&client, 3).await;
    assert_eq!(server.count(), 3, "one that is there is enough");
}

#[tokio::test(start_paused = true)]
async fn connections_end_with_the_last_clone() {
    let network = Arc::new(Memory::default());
    let client = Client::builder().endpoint("a:1").build_on(network.clone()).unwrap();
    let clone = client.clone();
    drop(client);
    sleep(60_000 * MS).await;
    let dialled = network.dialled("a:1");
    assert!(dialled > 5, "it is tried again and again");
    drop(clone);
    sleep(600_000 * MS).await;
    assert_eq!(network.dialled("a:1"), dialled);
}
