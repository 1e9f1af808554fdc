"""What the server tells of itself and of its models: metadata, readiness, configuration, settings."""

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

import rest
from rpcs import REFUSALS, Calls, Code, channel, refused
from server import PATIENCE

DIGITS = {
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}],
}
TAGGER = {
    "inputs": [
        {"name": "tokens", "datatype": "INT64", "shape": [-1]},
        {"name": "weights", "datatype": "FP32", "shape": [-1]},
    ],
    "outputs": [
        {"name": "tags", "datatype": "INT64", "shape": [-1]},
        {"name": "scores", "datatype": "FP32", "shape": [-1, 5]},
        {"name": "total", "datatype": "FP32", "shape": []},
    ],
}
ALWAYS = {
    "classification",
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "schedule_policy",
    "statistics",
    "logging",
}
# Those that are not offered: no model has state, steps of an ensemble are not unloaded with it, and there is no GPU.
NEVER = {"sequence", "model_repository(unload_dependents)", "cuda_shared_memory"}
TRACE_KEYS = {"trace_file", "trace_level", "trace_rate", "trace_count", "log_frequency"}
LOG_KINDS = {
    "log_file": "string_param",
    "log_info": "bool_param",
    "log_warning": "bool_param",
    "log_error": "bool_param",
    "log_verbose_level": "uint32_param",
    "log_format": "string_param",
}


@pytest.fixture(scope="module")
def calls(server):
    return Calls(server)


def test_every_call_of_the_service_is_there(server):
    """All twenty calls of inference.GRPCInferenceService are served: none is unknown to the server."""
    names = [method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
    assert len(names) >= 20, names
    names.remove("ModelStreamInfer")  # has tests of its own
    for name in names:
        send = channel(server).unary_unary(f"/inference.GRPCInferenceService/{name}")
        try:
            send(b"", timeout=PATIENCE)
        except grpc.RpcError as error:
            # Refusing an empty request is fine, not knowing the call is not.
            assert "no such method" not in error.details(), f"{name}: {error.details()}"


def test_live_and_ready(calls):
    """A server whose models are loaded is live and ready."""
    assert calls.ServerLive(pb.ServerLiveRequest()).live
    assert calls.ServerReady(pb.ServerReadyRequest()).ready


@pytest.mark.parametrize("version", ["", "1", "2", "first", "stable"])
def test_a_model_is_ready_by_version_and_label(calls, server, version):
    """A loaded version is ready by its number, by its label, and without either."""
    assert calls.ModelReady(pb.ModelReadyRequest(name="digits", version=version)).ready
    path = f"/v2/models/digits/versions/{version}/ready" if version else "/v2/models/digits/ready"
    answer = rest.get(server, path).ok()
    assert (answer["name"], answer["ready"]) == ("digits", True), answer


@pytest.mark.parametrize("model,version", [("nope", ""), ("digits", "9"), ("digits", "canary")])
def test_what_is_not_there_is_not_found(calls, server, model, version):
    """Metadata and configuration of an unknown model or version are NOT_FOUND (404). By gRPC it is just not ready, as with Triton."""
    assert not calls.ModelReady(pb.ModelReadyRequest(name=model, version=version)).ready
    for send, Request in (
        (calls.ModelMetadata, pb.ModelMetadataRequest),
        (calls.ModelConfig, pb.ModelConfigRequest),
    ):
        refused(lambda: send(Request(name=model, version=version)), Code.NOT_FOUND)
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
    for what in ("/ready", "", "/config", "/stats"):
        rest.refused(rest.get(server, path + what), 404)


def test_server_metadata(calls, server):
    """Name, version and extensions of the server, the same through both doors."""
    found = calls.ServerMetadata(pb.ServerMetadataRequest())
    assert found.name == "torchlane"
    (info,) = [key for key in server.metrics() if key.startswith("torchlane_build_info{")]
    assert f'version="{found.version}"' in info, f"{found.version} is not that of {info}"
    assert set(found.extensions) >= ALWAYS, f"not named: {ALWAYS - set(found.extensions)}"
    assert not NEVER & set(found.extensions), f"named, but not offered: {NEVER & set(found.extensions)}"
    assert len(set(found.extensions)) == len(found.extensions), "an extension is named twice"
    for path in ("/v2", "/v2/"):
        same = rest.get(server, path).ok()
        assert (same["name"], same["version"]) == (found.name, found.version)
        assert sorted(same["extensions"]) == sorted(found.extensions)


def test_extensions_that_are_off_are_not_named(calls, open_server):
    """system_shared_memory is an extension where it is on, and nowhere else; so is trace where there is a collector, which here
    there is not."""
    off = set(calls.ServerMetadata(pb.ServerMetadataRequest()).extensions)
    assert not off & {"system_shared_memory", "trace"}, off
    on = set(Calls(open_server).ServerMetadata(pb.ServerMetadataRequest()).extensions)
    assert on - off == {"system_shared_memory"} and not off - on, on


@pytest.mark.parametrize("model,versions,tensors", [("digits", ["1", "2"], DIGITS), ("tagger", ["1"], TAGGER)])
def test_model_metadata(calls, server, model, versions, tensors):
    """Inputs and outputs as declared, -1 for any size, [] for a scalar; the versions that are there; the platform."""
    found = calls.ModelMetadata(pb.ModelMetadataRequest(name=model))
    told = {
        side: [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(found, side)]
        for side in ("inputs", "outputs")
    }
    assert told == tensors
    assert (found.name, sorted(found.versions), found.platform) == (model, versions, "pytorch_libtorch")
    for path in (f"/v2/models/{model}", f"/v2/models/{model}/versions/1"):
        same = rest.get(server, path).ok()
        assert {side: same[side] for side in tensors} == tensors
        assert (same["name"], sorted(same["versions"]), same["platform"]) == (model, versions, "pytorch_libtorch")


def test_metadata_of_a_model_that_declares_nothing(calls, server):
    """A bare archive has the argument's name from its code. What its tensors are is learned from answers, and metadata and
    configuration say the same."""
    found = calls.ModelMetadata(pb.ModelMetadataRequest(name="add_two"))
    assert [tensor.name for tensor in found.inputs] == ["a", "b"]
    ones = [rest.tensor(name, "FP32", np.ones((2, 3), np.float32)) for name in ("a", "b")]
    rest.infer(server, "add_two", {"inputs": ones}).ok()
    same, config = (rest.get(server, f"/v2/models/add_two{what}").ok() for what in ("", "/config"))
    for side in ("inputs", "outputs"):
        for tensor, described in zip(same[side], config[side[:-1]], strict=True):
            batch = [-1] if config["max_batch_size"] else []
            assert tensor["name"] == described["name"]
            assert (f"TYPE_{tensor['datatype']}", tensor["shape"]) == (described["data_type"], batch + described["dims"])
            assert tensor["datatype"] == "FP32" and len(tensor["shape"]) == 2, tensor


def test_model_configuration(calls):
    """The configuration as Triton has it: dims without the batch dimension where the model is batched."""
    Type = model_config_pb2.DataType
    found = calls.ModelConfig(pb.ModelConfigRequest(name="digits")).config
    assert (found.name, found.platform, found.backend, found.max_batch_size) == ("digits", "pytorch_libtorch", "pytorch", 16)
    assert [(t.name, t.data_type, list(t.dims)) for t in found.input] == [("image", Type.TYPE_FP32, [1, 8, 8])]
    assert [(t.name, t.data_type, list(t.dims)) for t in found.output] == [("probabilities", Type.TYPE_FP32, [10])]
    assert all(group.kind == model_config_pb2.ModelInstanceGroup.KIND_CPU for group in found.instance_group)
    found = calls.ModelConfig(pb.ModelConfigRequest(name="tagger")).config
    assert found.max_batch_size == 0, "without a batch dimension"
    assert [(t.name, t.data_type, list(t.dims)) for t in found.input] == [
        ("tokens", Type.TYPE_INT64, [-1]),
        ("weights", Type.TYPE_FP32, [-1]),
    ]


@pytest.mark.parametrize("path", ["/v2/models/digits/config", "/v2/models/digits/versions/2/config"])
def test_model_configuration_as_json(server, path):
    """The same as JSON, by the names of the protocol's fields, with enums as text and numbers as numbers."""
    found = rest.get(server, path).ok()
    assert (found["name"], found["platform"], found["max_batch_size"]) == ("digits", "pytorch_libtorch", 16)
    (image,), (probabilities,) = found["input"], found["output"]
    assert (image["name"], image["data_type"], image["dims"]) == ("image", "TYPE_FP32", [1, 8, 8])
    assert (probabilities["name"], probabilities["dims"]) == ("probabilities", [10])


def test_trace_settings_are_told(calls, server):
    """The settings of tracing by the protocol's keys, each a list of texts, for the server and for a model."""
    for model in ("", "digits"):
        found = calls.TraceSetting(pb.TraceSettingRequest(model_name=model)).settings
        assert set(found) >= TRACE_KEYS, set(found)
    for path in ("/v2/trace/setting", "/v2/models/digits/trace/setting"):
        assert set(rest.get(server, path).ok()) >= TRACE_KEYS
    refused(lambda: calls.TraceSetting(pb.TraceSettingRequest(model_name="nope")), Code.NOT_FOUND)
    rest.refused(rest.get(server, "/v2/models/nope/trace/setting"), 404)


def test_log_settings_are_told(calls, server):
    """The settings of logging by the protocol's keys, each of its kind."""
    found = calls.LogSettings(pb.LogSettingsRequest()).settings
    assert {key: found[key].WhichOneof("parameter_choice") for key in LOG_KINDS} == LOG_KINDS
    same = rest.get(server, "/v2/logging").ok()
    assert set(same) >= set(LOG_KINDS)
    assert (type(same["log_info"]), type(same["log_verbose_level"])) == (bool, int)


def test_a_log_setting_is_in_force_or_refused(closed_server):
    """A changed setting is answered as it now is, and told so later; what cannot be changed is refused, not ignored."""
    calls = Calls(closed_server)
    for key, kind in LOG_KINDS.items():
        now = getattr(calls.LogSettings(pb.LogSettingsRequest()).settings[key], kind)
        wanted = {"bool_param": not now, "uint32_param": 1, "string_param": "ISO8601"}[kind] if key != "log_file" else "x"
        asked = pb.LogSettingsRequest()
        setattr(asked.settings[key], kind, wanted)
        try:
            answered = calls.LogSettings(asked).settings[key]
        except grpc.RpcError as error:
            assert error.code() in REFUSALS, error
            wanted = now
        else:
            assert getattr(answered, kind) == wanted, f"{key} was said to be changed"
        told = getattr(calls.LogSettings(pb.LogSettingsRequest()).settings[key], kind)
        assert told == wanted, f"{key} is {told!r}"


def test_a_trace_setting_is_in_force_or_refused(closed_server):
    """The same for tracing."""
    calls = Calls(closed_server)
    now = list(calls.TraceSetting(pb.TraceSettingRequest()).settings["trace_rate"].value)
    asked = pb.TraceSettingRequest()
    asked.settings["trace_rate"].value.append("7")
    try:
        answered = list(calls.TraceSetting(asked).settings["trace_rate"].value)
    except grpc.RpcError as error:
        assert error.code() in REFUSALS, error
        answered = now
    else:
        assert answered == ["7"]
    assert list(calls.TraceSetting(pb.TraceSettingRequest()).settings["trace_rate"].value) == answered


def test_unknown_settings_are_refused(closed_server):
    """A setting that there is not is refused through either door."""
    calls = Calls(closed_server)
    log, trace = pb.LogSettingsRequest(), pb.TraceSettingRequest()
    log.settings["log_colour"].bool_param = True
    trace.settings["trace_colour"].value.append("red")
    refused(lambda: calls.LogSettings(log), REFUSALS)
    refused(lambda: calls.TraceSetting(trace), REFUSALS)
    rest.refused(rest.post(closed_server, "/v2/logging", {"log_colour": True}), {400, 403, 501})
    rest.refused(rest.post(closed_server, "/v2/trace/setting", {"trace_colour": "red"}), {400, 403, 501})
