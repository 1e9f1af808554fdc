//! The benchmark's models, as tools/models/bench_models.py makes them, and a request for each.

use bytes::Bytes;
use prost::Message as _;
use torchlane::proto;

pub struct Model {
    pub name: &'static str,
    /// Of one item.
    pub input: &'static [i64],
    pub output: &'static [i64],
    /// Batch sizes that the plain loop tries.
    pub batches: &'static [i64],
    /// How much longer than others it is measured: a window must hold many of its passes.
    pub longer: f64,
}

pub const MODELS: [Model; 4] = [
    Model { name: "identity", input: &[64], output: &[64], batches: &[], longer: 1.0 },
    Model { name: "mlp", input: &[784], output: &[10], batches: &[1, 2, 4, 8, 16, 32], longer: 1.0 },
    Model { name: "transformer", input: &[64, 256], output: &[64, 256], batches: &[1, 2, 4, 8], longer: 2.0 },
    Model { name: "resnet18", input: &[3, 224, 224], output: &[1000], batches: &[1, 2, 4, 8], longer: 5.0 },
];

pub fn batch_of(rows: i64, dims: &[i64]) -> Vec<i64> {
    std::iter::once(rows).chain(dims.iter().copied()).collect()
}

fn tensor(name: &str, dims: &[i64], raw: Bytes) -> proto::Tensor {
    proto::Tensor {
        name: name.into(),
        datatype: "FP32".into(),
        shape: batch_of(1, dims),
        raw,
        ..Default::default()
    }
}

/// Numbers in [-1, 1) from a fixed seed (splitmix64): zeros would let kernels and compression cheat.
fn noise(count: i64) -> Bytes {
    let mut state = 7_u64;
    (0..count)
        .flat_map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z >> 40) as f32 / (1_u64 << 23) as f32 - 1.0).to_le_bytes()
        })
        .collect()
}

impl Model {
    /// One item, encoded: every caller sends the same bytes.
    pub fn request(&self) -> Bytes {
        self.request_to(self.name)
    }

    /// The same, for a model of another name.
    pub fn request_to(&self, name: &str) -> Bytes {
        let input = tensor("x", self.input, noise(self.input.iter().product()));
        let request = proto::InferRequest { model: name.into(), inputs: vec![input], ..Default::default() };
        request.encode_to_vec().into()
    }

    /// What the echo answers: as long as the model's answer.
    pub fn canned(&self) -> proto::InferResponse {
        let output = tensor("y", self.output, noise(self.output.iter().product()));
        proto::InferResponse {
            request_id: "0123456789abcdef".into(),
            model: self.name.into(),
            version: "1".into(),
            outputs: vec![output],
            timing: None,
        }
    }

    /// An answer that could be this model's.
    pub fn check(&self, answer: &[u8]) -> Result<(), String> {
        let answer = proto::InferResponse::decode(answer).map_err(|e| e.to_string())?;
        let [output] = answer.outputs.as_slice() else {
            return Err(format!("{}: {} outputs instead of 1", self.name, answer.outputs.len()));
        };
        let bytes = usize::try_from(self.output.iter().product::<i64>() * 4).unwrap();
        if output.shape != batch_of(1, self.output) || output.raw.len() != bytes {
            return Err(format!("{}: an answer of shape {:?}", self.name, output.shape));
        }
        Ok(())
    }
}
