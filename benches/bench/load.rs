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

/// What the callers saw.
pub struct Seen {
    pub took: Duration,
    /// Of every answered request, sorted.
    pub latencies: Vec<Duration>,
    pub failed: usize,
}

/// Sends for `long` with every caller; requests that were under way at the end are waited for and counted.
pub async fn closed_loop(callers: &[Caller], request: &Bytes, long: Duration) -> Seen {
    let began = Instant::now();
    let until = began + long;
    let tasks: Vec<_> = callers
        .iter()
        .cloned()
        .map(|mut caller| {
            let request = request.clone();
            tokio::spawn(async move {
                let (mut latencies, mut failed) = (Vec::with_capacity(1 << 16), 0);
                loop {
                    let sent = Instant::now();
                    if sent >= until {
                        return (latencies, failed);
                    }
                    match caller.infer(request.clone()).await {
                        Ok(_) => latencies.push(sent.elapsed()),
                        Err(_) => failed += 1,
                    }
                }
            })
        })
        .collect();
    let mut seen = Seen { took: Duration::ZERO, latencies: Vec::new(), failed: 0 };
    for task in tasks {
        let (latencies, failed) = task.await.expect("a caller panicked");
        seen.latencies.extend(latencies);
        seen.failed += failed;
    }
    seen.took = began.elapsed();
    seen.latencies.sort_unstable();
    seen
}
