"""Triton's own client library over HTTP (tritonclient.http): blocking, with greenlets, and with asyncio."""

import asyncio
import json

import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

import rest
from cases import ALL, ONE, TEXT, wire_name
from repositories import SMALL, archive

COMPRESSIONS = [None, "gzip", "deflate"]
FORMS = {"binary": True, "json": False}


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.http, concurrency=4) as made:
        yield made


def inputs(case, binary=True):
    made = []
    for name, array in case.inputs.items():
        made.append(triton.InferInput(name, list(array.shape), wire_name(array)))
        made[-1].set_data_from_numpy(array, binary_data=binary)
    return made


def call(case, binary_in=True, binary_out=None, **more):
    """The arguments of a call of infer. Without `binary_out` no outputs are named: all come, as bytes."""
    made = {"model_name": case.model, "model_version": case.version, "inputs": inputs(case, binary_in), **more}
    if binary_out is not None:
        made["outputs"] = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in case.outputs]
    return made


def check(case, result):
    case.check(result.as_numpy, result.get_response()["model_version"])


def refused(send, status, *says):
    with pytest.raises(InferenceServerException) as caught:
        send()
    assert caught.value.status() == str(status), caught.value
    rest.one_line(caught.value.message())
    for words in says:
        assert words in caught.value.message(), caught.value.message()


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_infer(client, case):
    """InferenceServerClient.infer as it is by default: bytes in both directions."""
    check(case, client.infer(**call(case)))


@pytest.mark.parametrize("answered", COMPRESSIONS)
@pytest.mark.parametrize("sent", COMPRESSIONS)
@pytest.mark.parametrize("binary_out", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("binary_in", FORMS.values(), ids=FORMS)
def test_forms_and_compressions(client, binary_in, binary_out, sent, answered):
    """JSON and bytes in each direction, request and answer compressed by gzip, deflate or not."""
    for case in (ONE, TEXT):
        asked = call(case, binary_in, binary_out)
        check(case, client.infer(**asked, request_compression_algorithm=sent, response_compression_algorithm=answered))


def test_infer_with_everything(client):
    """infer with id, priority, timeout, a sequence, parameters and headers."""
    result = client.infer(
        **call(
            ONE,
            request_id="42",
            priority=2,
            timeout=60_000_000,
            sequence_id="seven",
            sequence_start=True,
            sequence_end=True,
            parameters={"colour": "grey", "depth": 1.5, "on": True},
            headers={"x-tenant": "wire", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        )
    )
    check(ONE, result)
    assert result.get_response()["id"] == "42"


def test_infer_errors(client):
    """Errors come as InferenceServerException with the HTTP status and the server's line."""
    refused(lambda: client.infer(**{**call(ONE), "model_name": "nope"}), 404, "nope")
    refused(lambda: client.infer(**{**call(ONE), "inputs": []}), 400, "image")


def test_async_infer(client):
    """async_infer: several requests under way at once."""
    waiting = [(case, client.async_infer(**call(case))) for case in ALL[:8]]
    for case, request in waiting:
        check(case, request.get_result())


def test_asyncio(server):
    """tritonclient.http.aio: infer of every case in every form and compression, and what the server tells of itself."""

    async def all_of_it():
        async with triton_aio.InferenceServerClient(server.http) as client:
            assert await client.is_server_live() and await client.is_server_ready()
            assert await client.is_model_ready("digits", "1")
            assert (await client.get_server_metadata())["name"] == "torchlane"
            assert (await client.get_model_metadata("tagger"))["versions"] == ["1"]
            assert (await client.get_model_config("digits"))["max_batch_size"] == 16
            assert {row["name"] for row in await client.get_model_repository_index()} >= {"digits", "tagger"}
            assert (await client.get_inference_statistics("digits", "1"))["model_stats"][0]["version"] == "1"
            assert "log_info" in await client.get_log_settings()
            assert "trace_level" in await client.get_trace_settings()
            for case in ALL:
                for how in COMPRESSIONS:
                    packed = {"request_compression_algorithm": how, "response_compression_algorithm": how}
                    check(case, await client.infer(**call(case, how is None, how != "gzip", **packed)))
            with pytest.raises(InferenceServerException) as caught:
                await client.infer(**{**call(ONE), "model_name": "nope"})
            assert caught.value.status() == "404"

    asyncio.run(all_of_it())


@pytest.mark.parametrize("binary", FORMS.values(), ids=FORMS)
def test_classification(client, binary):
    """InferRequestedOutput with class_count: the top n as texts, as JSON and as bytes."""
    wanted = [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    found = client.infer(**{**call(ONE), "outputs": wanted}).as_numpy("probabilities")
    assert list(found.shape) == [2, 2]
    for row, expected in zip(found, ONE.outputs["probabilities"]):
        text = row[0].decode() if isinstance(row[0], bytes) else row[0]
        value, index, label = text.split(":")
        assert (int(index), label) == (int(expected.argmax()), str(expected.argmax()))
        assert abs(float(value) - expected.max()) < 1e-3


def test_what_it_tells(client):
    """Liveness, readiness, metadata and configuration."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("digits") and client.is_model_ready("digits", "first")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["name"] == "torchlane"
    assert [tensor["name"] for tensor in client.get_model_metadata("tagger")["outputs"]] == ["tags", "scores", "total"]
    assert client.get_model_config("digits", "2")["max_batch_size"] == 16
    assert {row["name"] for row in client.get_model_repository_index()} >= {"digits", "tagger"}
    assert client.get_inference_statistics("digits", "1")["model_stats"][0]["version"] == "1"
    assert {one["name"] for one in client.get_inference_statistics()["model_stats"]} >= {"digits", "tagger"}
    assert "trace_level" in client.get_trace_settings() and "trace_level" in client.get_trace_settings("digits")
    assert "log_info" in client.get_log_settings()


def test_bodies_without_the_client(server):
    """generate_request_body and parse_response_body, as people use them with an HTTP library of their own."""
    body, length = triton.InferenceServerClient.generate_request_body(inputs(TEXT))
    headers = {rest.HEADER_LENGTH: str(length), "Content-Type": "application/octet-stream"}
    answer = rest.infer(server, "tagger", body, headers)
    length = int(answer.headers[rest.HEADER_LENGTH.lower()])
    check(TEXT, triton.InferenceServerClient.parse_response_body(answer.body, header_length=length))


def test_load_and_unload(closed_server):
    """load_model and unload_model."""
    archive(closed_server.repository, "triton-http", 1, SMALL / "two_versions/1/model.pt")
    with triton.InferenceServerClient(closed_server.http) as client:
        client.load_model("triton-http")
        assert client.is_model_ready("triton-http")
        client.unload_model("triton-http", unload_dependents=True)
        assert not client.is_model_ready("triton-http")


def test_uploads(open_server):
    """load_model with config and files."""
    config = json.dumps({"platform": "pytorch_libtorch", "max_batch_size": 0})
    files = {"file:1/model.pt": (SMALL / "two_versions/2/model.pt").read_bytes()}
    with triton.InferenceServerClient(open_server.http) as client:
        client.load_model("triton-http-upload", config=config, files=files)
        assert client.is_model_ready("triton-http-upload", "1")
