//! Classifies a picture with the sample model `digits`, by `torchlane-client`:
//!
//! ```sh
//! cargo run --example client -- 127.0.0.1:50051 tests/data/digits/png/3-0012.png
//! ```

#![allow(missing_docs, reason = "an example")]

use std::{error::Error, fs::File, io::BufReader, process::ExitCode, time::Duration};

use torchlane_client::{Client, Priority, Tensor};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match classify().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What the client says is one line, with the server's reason and when to come back.
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn classify() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let picture = arguments.next().unwrap_or_else(|| "tests/data/digits/png/3-0012.png".to_owned());

    // With several endpoints, or dns:///NAME:PORT, calls would go to all of them in turn.
    let client = Client::builder().endpoint(address).connect().await?;
    let image = Tensor::new(&[1, 1, 8, 8], &pixels(&picture)?)?;
    let request = client.infer("digits").input("image", image).outputs(["probabilities"]);
    // Past the deadline nothing is run, and nothing is tried again.
    let answer = request.priority(Priority::High).deadline(Duration::from_secs(5)).send().await?;

    let probabilities = answer.output("probabilities")?.as_f32()?;
    let best = probabilities.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    let (digit, probability) = best.ok_or("no digits to choose from")?;
    println!("digit {digit} ({:.1} %), version {}", probability * 100.0, answer.version);
    Ok(())
}

/// The pixels of an 8-bit grey picture, from 0 to 1.
fn pixels(path: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut reader = png::Decoder::new(BufReader::new(File::open(path)?)).read_info()?;
    let mut bytes = vec![0; reader.output_buffer_size().ok_or("the picture is too large")?];
    reader.next_frame(&mut bytes)?;
    Ok(bytes.into_iter().map(|byte| f32::from(byte) / 255.0).collect())
}
