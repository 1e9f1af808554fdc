//! The sample ensemble: pictures in, digits out, and the same as its steps give one by one.

use std::{fs, path::Path};

use torchlane::{config::BackendKind, proto};

use super::server::{Client, Server, f32s, floats, refused, request, tensor};

/// Grey pictures UINT8 `[count, height, width]`, and what they show.
struct Pictures {
    shape: [i64; 3],
    pixels: Vec<u8>,
    digits: Vec<i64>,
}

/// The PNG files; their names begin with the digit.
fn png() -> Pictures {
    let mut all = Pictures { shape: [0, 8, 8], pixels: Vec::new(), digits: Vec::new() };
    for file in fs::read_dir("tests/data/digits/png").unwrap() {
        let path = file.unwrap().path();
        let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(&path).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((frame.color_type, frame.width, frame.height), (png::ColorType::Grayscale, 8, 8));
        all.pixels.extend(pixels);
        all.digits.push(path.file_name().unwrap().to_str().unwrap()[..1].parse().unwrap());
        all.shape[0] += 1;
    }
    assert_eq!(all.shape[0], 10);
    all
}

/// The held-out images as an 8-bit picture has them, each pixel `times` as high and wide.
fn held_out(times: usize) -> Vec<Pictures> {
    let data = fs::read("tests/data/digits/heldout.bin").unwrap();
    let side = 8 * times;
    let picture = |record: &[u8]| -> Vec<u8> {
        let pixel = |at: usize| record[at / side / times * 8 + at % side / times];
        (0..side * side).map(|at| (f32::from(pixel(at)) * 255.0 / 16.0).round() as u8).collect()
    };
    let batches = data[4..].chunks(65 * 16);
    let batches = batches.map(|batch| Pictures {
        shape: [(batch.len() / 65) as i64, side as i64, side as i64],
        pixels: batch.chunks_exact(65).flat_map(picture).collect(),
        digits: batch.chunks_exact(65).map(|record| i64::from(record[64])).collect(),
    });
    batches.collect()
}

fn image(of: &Pictures) -> Vec<proto::Tensor> {
    vec![tensor("image", "UINT8", &of.shape, of.pixels.clone())]
}

fn ints(tensor: &proto::Tensor) -> Vec<i64> {
    assert_eq!(tensor.datatype, "INT64");
    tensor.raw.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

async fn outputs(client: &mut Client, model: &str, inputs: Vec<proto::Tensor>) -> Vec<proto::Tensor> {
    let answer = client.infer(request(model, inputs)).await;
    answer.unwrap_or_else(|status| panic!("{model}: {status}")).into_inner().outputs
}

/// What the last step's caller would get who calls one after the other.
async fn by_hand(client: &mut Client, of: &Pictures) -> Vec<proto::Tensor> {
    let ink = outputs(client, "digits-decode", image(of)).await.remove(0);
    let probabilities =
        outputs(client, "digits", vec![proto::Tensor { name: "image".into(), ..ink }]).await.remove(0);
    let mut all = outputs(client, "digits-top", vec![probabilities.clone()]).await;
    all.push(probabilities);
    all
}

#[tokio::test]
async fn pictures_are_read_as_their_steps_one_by_one_read_them() {
    let server = Server::start(Path::new("models"), BackendKind::Torch, |_| {});
    let mut client = server.ready().await;
    let drawn = png();
    let whole = outputs(&mut client, "read-digits", image(&drawn)).await;
    let names: Vec<_> = whole.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["digits", "scores", "probabilities"]);
    assert_eq!(whole, by_hand(&mut client, &drawn).await);
    let best: Vec<i64> = ints(&whole[0]).chunks_exact(3).map(|three| three[0]).collect();
    assert_eq!(best, drawn.digits);

    // Of pictures that are larger the steps make the same ones again.
    for times in [1, 4] {
        let (mut right, mut all) = (0, 0);
        for batch in held_out(times) {
            let whole = outputs(&mut client, "read-digits", image(&batch)).await;
            assert_eq!(whole, by_hand(&mut client, &batch).await);
            let (digits, scores) = (ints(&whole[0]), floats(&whole[1]));
            for (place, probabilities) in floats(&whole[2]).chunks_exact(10).enumerate() {
                let (digits, scores) = (&digits[place * 3..][..3], &scores[place * 3..][..3]);
                assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
                assert!(
                    digits.iter().zip(scores).all(|(digit, score)| probabilities[*digit as usize] == *score)
                );
                right += usize::from(digits[0] == batch.digits[place]);
            }
            all += batch.digits.len();
        }
        assert!(all == 360 && right * 100 >= all * 97, "{right} of {all} right, {times} times as large");
    }
}

#[tokio::test]
async fn what_is_no_picture_is_refused_before_a_step_runs() {
    let server = Server::start(Path::new("models"), BackendKind::Torch, |_| {});
    let mut client = server.ready().await;
    for (inputs, expected, says) in [
        (vec![f32s("image", &[1, 8, 8], &[0.0; 64])], "WRONG_DATATYPE", "takes UINT8"),
        (vec![tensor("image", "UINT8", &[8, 8], vec![0; 64])], "WRONG_SHAPE", "input 'image'"),
        (vec![tensor("ink", "UINT8", &[1, 8, 8], vec![0; 64])], "UNKNOWN_INPUT", "no input 'ink'"),
        // One more than the first step takes.
        (
            vec![tensor("image", "UINT8", &[17, 8, 8], vec![0; 17 * 64])],
            "WRONG_SHAPE",
            "step 0 (digits-decode): ",
        ),
    ] {
        let (why, status) = refused(&mut client, request("read-digits", inputs)).await;
        assert_eq!((why.as_str(), status.code()), (expected, tonic::Code::InvalidArgument), "{status}");
        assert!(status.message().contains(says), "{status}");
    }
    // A picture without pixels is for the model to refuse.
    let (why, status) =
        refused(&mut client, request("read-digits", vec![tensor("image", "UINT8", &[1, 0, 8], vec![])]))
            .await;
    assert_eq!(why, "FORWARD_FAILED", "{status}");
}

/// A step that writes into its input must not change what another step, or the caller, gets of it.
#[tokio::test]
async fn a_step_that_writes_into_its_input_has_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["inplace", "identity"] {
        fs::copy(format!("tests/data/models/{name}.pt"), dir.path().join(format!("{name}.pt"))).unwrap();
    }
    fs::create_dir(dir.path().join("both")).unwrap();
    let step = |model: &str, from: &str, to: &str| {
        format!(
            "[[steps]]\nmodel = '{model}'\ninputs = {{ x = '{from}' }}\noutputs = {{ output_0 = '{to}' }}\n"
        )
    };
    let text = format!(
        "[[inputs]]\nname = 'in'\n[[outputs]]\nname = 'mid'\n[[outputs]]\nname = 'more'\n[[outputs]]\nname = 'most'\n\
         [[outputs]]\nname = 'same'\n{}{}{}{}",
        step("identity", "in", "mid"),
        step("inplace", "mid", "more"),
        step("inplace", "more", "most"),
        step("identity", "mid", "same")
    );
    fs::write(dir.path().join("both/model.toml"), text).unwrap();
    let server = Server::start(dir.path(), BackendKind::Torch, |_| {});
    let mut client = server.ready().await;
    // Small tensors are copied anyway; large ones may be lent.
    for elements in [4_usize, 100_000] {
        let sent = vec![f32s("in", &[elements as i64], &vec![1.0; elements])];
        let found = outputs(&mut client, "both", sent).await;
        for (output, value) in found.iter().zip([1.0, 2.0, 3.0, 1.0]) {
            assert!(floats(output).iter().all(|found| *found == value), "{} of {elements}", output.name);
        }
        assert_eq!(found.len(), 4);
    }
}
