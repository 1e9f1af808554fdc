//! Closed-loop callers: each has a connection of its own and sends its next request when the last was answered.
//! Requests are encoded once and answers are not decoded, so that the generator costs every subject the same.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::{
    Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

use crate::Result;

const INFER: &str = "/torchlane.v1.ModelServer/Infer";

/// Messages as they are.
#[derive(Debug, Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> std::result::Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> std::result::Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[derive(Clone)]
pub struct Caller {
    grpc: Grpc<Channel>,
}

impl Caller {
    pub async fn connect(to: SocketAddr) -> Result<Self> {
        let channel = Channel::from_shared(format!("http://{to}"))?
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .tcp_nodelay(true)
            .connect()
            .await?;
        Ok(Self { grpc: Grpc::new(channel).max_decoding_message_size(64 << 20) })
    }

    /// Sends an encoded request; the encoded answer.
    pub async fn infer(&mut self, request: Bytes) -> std::result::Result<Bytes, Status> {
        self.grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let path = PathAndQuery::from_static(INFER);
        Ok(self.grpc.unary(tonic::Request::new(request), path, Raw).await?.into_inner())
    }
}

/// What the callers saw in the window that was measured.
pub struct Seen {
    /// Answers a second.
    pub rate: f64,
    /// Of every request that was answered in the window, sorted.
    pub latencies: Vec<Duration>,
    pub failed: usize,
    /// What `cost` grew by.
    pub cpu: Duration,
}

/// Every caller sends without pause for `settle`, then for `window`, and only what is answered in the window counts:
/// the load is the same before, in and after it.
pub async fn closed_loop(
    callers: &[Caller],
    request: &Bytes,
    settle: Duration,
    window: Duration,
    cost: impl Fn() -> Result<Duration>,
) -> Result<Seen> {
    let opens = Instant::now() + settle;
    let closes = opens + window;
    let mut tasks = tokio::task::JoinSet::new();
    for mut caller in callers.iter().cloned() {
        let request = request.clone();
        tasks.spawn(async move {
            let (mut latencies, mut failed) = (Vec::with_capacity(1 << 16), 0);
            loop {
                let sent = Instant::now();
                if sent >= closes {
                    return (latencies, failed);
                }
                let answer = caller.infer(request.clone()).await;
                let answered = Instant::now();
                match answer {
                    Ok(_) if answered >= opens && answered < closes => latencies.push(answered - sent),
                    Ok(_) => {}
                    Err(_) => failed += 1,
                }
            }
        });
    }
    tokio::time::sleep_until(opens.into()).await;
    let before = cost()?;
    tokio::time::sleep_until(closes.into()).await;
    let mut seen = Seen { rate: 0.0, latencies: Vec::new(), failed: 0, cpu: cost()?.saturating_sub(before) };
    while let Some(caller) = tasks.join_next().await {
        let (latencies, failed) = caller?;
        seen.latencies.extend(latencies);
        seen.failed += failed;
    }
    seen.rate = seen.latencies.len() as f64 / window.as_secs_f64();
    seen.latencies.sort_unstable();
    Ok(seen)
}
