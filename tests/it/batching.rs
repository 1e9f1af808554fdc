//! Waiting for a batch, sizes of batches, and requests of unlike lengths in one: with a backend that needs no libtorch.

use std::{fs, time::Duration};

use torchlane::proto::{self, Priority};

use super::{
    fake::{reload, repository, run_on_the_wire},
    server::{Client, Server, f32s, floats, reason, request, tensor},
};

/// A server of one model `m`.
fn serve(script: &str, manifest: &str, executors: usize) -> (tempfile::TempDir, Server) {
    let dir = repository(&[("m", script), ("other", "delay_ms = 1500")]);
    fs::write(dir.path().join("m/model.toml"), manifest).unwrap();
    let server = Server::fake(dir.path(), |settings| {
        settings.executors.threads = executors;
        // What passes take here is noise: a batch of one would sometimes look as good as one of two.
        settings.executors.learned_batches = false;
    });
    (dir, server)
}

/// All at once; the answers in the same order.
async fn together(client: &Client, requests: Vec<proto::InferRequest>) -> Vec<proto::InferResponse> {
    let calls = requests.into_iter().map(|request| {
        let mut client = client.clone();
        async move { client.infer(request).await.unwrap().into_inner() }
    });
    futures::future::join_all(calls).await
}

/// The same, once the server has seen that they may share a pass.
async fn shared(client: &Client, requests: Vec<proto::InferRequest>) -> Vec<proto::InferResponse> {
    for _ in 0..20 {
        let answers = together(client, requests.clone()).await;
        let rows: Vec<_> = answers.iter().map(|answer| answer.timing.unwrap().batch_size).collect();
        if rows.iter().all(|rows| *rows >= requests.len() as u32) {
            return answers;
        }
    }
    panic!("they never shared a pass");
}

fn batch_wait(answer: &proto::InferResponse) -> Duration {
    answer.timing.unwrap().batch_wait.unwrap().try_into().unwrap()
}

fn ramp(length: usize) -> Vec<f32> {
    (1..=length).map(|i| (100 * length + i) as f32).collect()
}

#[tokio::test]
async fn requests_of_unlike_lengths_share_a_batch_and_get_what_each_would_get_alone() {
    // All three must be there before any runs: nobody would wait ten seconds.
    let (_dir, server) = serve(
        "inputs = ['x', 'z', 'n']\nscale = 2.0",
        "[batching]\nmax_batch = 4\nmax_delay = '10s'\n\
         [[inputs]]\nname='x'\npad={dim=1, value=-1, to=[8, 16]}\n\
         [[inputs]]\nname='z'\ndtype='INT64'\npad={dim=2, value=7, to=[8]}\n[[inputs]]\nname='n'\n\
         [[outputs]]\nname='x2'\ncut={dim=1, input='x'}\n[[outputs]]\nname='z2'\n[[outputs]]\nname='n2'",
        1,
    );
    let client = server.ready().await;
    let ids = |rows: i64, length: i64| {
        let raw = (0..rows * length).flat_map(|i| i.to_le_bytes()).collect();
        tensor("z", "INT64", &[rows, 1, length], raw)
    };
    // The second has two rows.
    let lengths = [(1_i64, 3_usize), (2, 5), (1, 8)];
    let requests = lengths.map(|(rows, length)| {
        let x = ramp(length * rows as usize);
        let n = vec![length as f32; rows as usize];
        let inputs =
            vec![f32s("x", &[rows, length as i64], &x), ids(rows, length as i64), f32s("n", &[rows], &n)];
        request("m", inputs)
    });
    let answers = shared(&client, requests.into()).await;
    for (answer, (rows, length)) in answers.iter().zip(lengths) {
        assert_eq!(answer.timing.unwrap().batch_size, 4);
        let [x, z, n] = answer.outputs.as_slice() else { panic!("{answer:?}") };
        assert_eq!(x.shape, [rows, length as i64]);
        let doubled: Vec<f32> = ramp(length * rows as usize).iter().map(|x| 2.0 * x).collect();
        assert_eq!(floats(x), doubled);
        // What is not to be cut is as the model gave it, padding and all.
        assert_eq!(z.shape, [rows, 1, 8]);
        let numbers: Vec<i64> =
            z.raw.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
        let padded =
            |row: i64| (0..8).map(move |i| if i < length as i64 { row * length as i64 + i } else { 7 });
        assert_eq!(numbers, (0..rows).flat_map(padded).collect::<Vec<_>>());
        assert_eq!(floats(n), vec![2.0 * length as f32; rows as usize]);
    }
}

#[tokio::test]
async fn without_sizes_a_batch_is_padded_to_its_longest() {
    let (_dir, server) = serve(
        "inputs = ['x', 'z']",
        "[batching]\nmax_batch = 2\nmax_delay = '10s'\n\
         [[inputs]]\nname='x'\npad={dim=1}\n[[inputs]]\nname='z'\npad={dim=1, value=0.5}\n\
         [[outputs]]\nname='y'\ncut={dim=1, input='x'}\n[[outputs]]\nname='seen'",
        1,
    );
    let client = server.ready().await;
    let of = |length: usize| {
        let shape = [1, length as i64];
        request("m", vec![f32s("x", &shape, &ramp(length)), f32s("z", &shape, &ramp(length))])
    };
    let answers = shared(&client, vec![of(5), of(7)]).await;
    assert_eq!(
        answers.iter().map(|answer| floats(&answer.outputs[0])).collect::<Vec<_>>(),
        [ramp(5), ramp(7)]
    );
    assert_eq!(floats(&answers[0].outputs[1]), [ramp(5), vec![0.5, 0.5]].concat(), "7, not 8");
    assert_eq!(floats(&answers[1].outputs[1]), ramp(7));
    // A batch by itself is not padded.
    let rows = request("m", vec![f32s("x", &[2, 3], &ramp(6)), f32s("z", &[2, 3], &ramp(6))]);
    assert_eq!(together(&client, vec![rows]).await[0].outputs[1].shape, [2, 3]);
}

#[tokio::test]
async fn batches_are_padded_to_their_sizes_and_only_these_run() {
    let (_dir, server) = serve(
        "scale = 3.0",
        "[batching]\nbuckets = [2, 6]\n[[inputs]]\nname='x'\ndtype='FP32'\nshape=[-1, -1]\npad={dim=1, to=[2, 4]}\n\
         [[outputs]]\nname='y'\ncut={dim=1, input='x'}",
        1,
    );
    let mut client = server.ready().await;
    let mut ask = client.clone();
    let model =
        |m: proto::Model| m.profile.iter().map(|point| (point.row_bytes, point.rows)).collect::<Vec<_>>();
    let get = || proto::GetModelRequest { model: "m".into() };
    let warm = model(ask.get_model(get()).await.unwrap().into_inner());
    assert_eq!(warm, [(8, 2), (8, 6), (16, 2), (16, 6)], "the warm-up ran each");
    for rows in [1_i64, 2, 3, 5, 6] {
        let x = ramp(rows as usize * 3);
        let answer = client.infer(request("m", vec![f32s("x", &[rows, 3], &x)])).await.unwrap().into_inner();
        assert_eq!(answer.timing.unwrap().batch_size, rows as u32);
        assert_eq!(answer.outputs[0].shape, [rows, 3]);
        assert_eq!(floats(&answer.outputs[0]), x.iter().map(|x| 3.0 * x).collect::<Vec<_>>());
    }
    let seen = model(ask.get_model(get()).await.unwrap().into_inner());
    assert!(seen.iter().all(|(_, rows)| [2, 6].contains(rows)), "{seen:?}");
    let none = client.infer(request("m", vec![f32s("x", &[0, 3], &[])])).await.unwrap().into_inner();
    assert_eq!(none.outputs[0].shape, [0, 3]);
}

#[tokio::test]
async fn a_delay_is_kept_and_ends_for_urgent_requests_and_deadlines() {
    let (dir, server) = serve("delay_ms = 100", "[batching]\nmax_batch = 8\nmax_delay = '300ms'", 1);
    let mut client = server.ready().await;
    let one = || request("m", vec![f32s("x", &[1, 1], &[1.0])]);
    let alone = client.infer(one()).await.unwrap().into_inner();
    assert!(batch_wait(&alone) >= Duration::from_millis(300), "{alone:?}");
    fs::write(dir.path().join("m/model.toml"), "[batching]\nmax_batch = 8\nmax_delay = '10s'").unwrap();
    client.reload_model(reload("m", 1)).await.unwrap();
    let urgent = proto::InferRequest { priority: Priority::Critical.into(), ..one() };
    let answer = client.infer(urgent).await.unwrap().into_inner();
    assert!(batch_wait(&answer) < Duration::from_secs(5), "{answer:?}");
    let mut due = tonic::Request::new(one());
    due.set_timeout(Duration::from_secs(2));
    client.infer(due).await.expect("in time for its deadline");
}

#[tokio::test]
async fn what_waits_is_run_in_time_by_another_executor() {
    let (_dir, server) = serve("", "[batching]\nmax_batch = 8\nmax_delay = '200ms'", 2);
    let client = server.ready().await;
    let one = |model| request(model, vec![f32s("x", &[1, 1], &[1.0])]);
    // The executor that would look after the first is woken for the second, which takes 1.5 s.
    let answers = together(&client, vec![one("m"), one("other")]).await;
    let waited = batch_wait(&answers[0]);
    assert!(waited >= Duration::from_millis(200) && waited < Duration::from_millis(1200), "{waited:?}");
}

#[tokio::test]
async fn a_quick_model_that_waits_is_not_run_on_the_wire() {
    let manifest =
        "[batching]\nmax_batch = 2\nmax_delay = '1ms'\n[[inputs]]\nname='x'\ndtype='FP32'\nshape=[-1, 2]\n";
    let (_dir, server) = serve("", manifest, 1);
    let mut client = server.ready().await;
    for _ in 0..30 {
        let answer = client.infer(request("m", vec![f32s("x", &[1, 2], &[1.0, 2.0])])).await.unwrap();
        assert!(batch_wait(answer.get_ref()) >= Duration::from_millis(1));
    }
    assert_eq!(run_on_the_wire(&server).await, 0.0);
}

#[tokio::test]
async fn a_value_that_a_request_cannot_hold_and_an_output_that_cannot_be_cut_are_told() {
    let (dir, server) = serve(
        "inputs = ['x', 'z']",
        "[[inputs]]\nname='x'\npad={dim=1, value=0.5, to=[4]}\n[[inputs]]\nname='z'\n\
         [[outputs]]\nname='y'\n[[outputs]]\nname='w'\ncut={dim=1, input='x'}",
        1,
    );
    let mut client = server.ready().await;
    let z = || f32s("z", &[1, 2], &[1.0, 2.0]);
    let whole = request("m", vec![tensor("x", "INT32", &[1, 2], vec![0; 8]), z()]);
    let status = client.infer(whole).await.unwrap_err();
    assert_eq!(reason(&status), "WRONG_DATATYPE");
    assert!(status.message().contains("0.5"), "{}", status.message());
    let status = client.infer(request("m", vec![f32s("x", &[1, 2], &[1.0, 2.0]), z()])).await.unwrap_err();
    assert_eq!(reason(&status), "FORWARD_FAILED");
    assert!(status.message().contains("it cannot be cut along dimension 1"), "{}", status.message());
    fs::write(dir.path().join("m/model.toml"), "[[inputs]]\nname='x'\ndtype='INT32'\npad={dim=1, value=0.5}")
        .unwrap();
    let status = client.reload_model(reload("m", 1)).await.unwrap_err();
    assert!(status.message().contains("INT32 cannot hold the value 0.5"), "{}", status.message());
}
