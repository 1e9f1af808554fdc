//! What a call's path says of it.

/// All calls of torchlane's own API start with this.
const API: &str = "/torchlane.v1.ModelServer/";
/// All calls of the Open Inference Protocol with this.
const OPEN_INFERENCE: &str = "/inference.GRPCInferenceService/";
/// Requests for one pass, in either API.
pub(crate) const INFER: [&str; 2] =
    ["/torchlane.v1.ModelServer/Infer", "/inference.GRPCInferenceService/ModelInfer"];
/// Requests for many: messages come for as long as the caller likes.
pub(crate) const INFER_STREAM: [&str; 2] =
    ["/torchlane.v1.ModelServer/InferStream", "/inference.GRPCInferenceService/ModelStreamInfer"];
/// May bring a model's files, where the settings allow it.
const LOAD: &str = "/inference.GRPCInferenceService/RepositoryModelLoad";
/// Messages come here too.
const REFLECTION: &str = "/grpc.reflection.";

/// Inference, streams among them.
pub(super) fn is_inference(path: &str) -> bool {
    INFER.contains(&path) || is_infer_stream(path)
}

pub(super) fn is_infer_stream(path: &str) -> bool {
    INFER_STREAM.contains(&path)
}

/// Calls whose messages may come compressed: those of both APIs.
pub(super) fn is_of_api(path: &str) -> bool {
    path.starts_with(API) || path.starts_with(OPEN_INFERENCE)
}

/// A load that may bring files.
pub(super) fn is_upload(path: &str) -> bool {
    path == LOAD
}

/// One message, and no more.
pub(super) fn is_unary(path: &str) -> bool {
    !is_infer_stream(path) && !path.starts_with(REFLECTION)
}
