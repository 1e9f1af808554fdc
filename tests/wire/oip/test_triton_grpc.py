"""Triton's own client library over gRPC (tritonclient.grpc): blocking, with callbacks, on streams, and with asyncio."""

import asyncio
import json
import queue

import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from cases import ALL, DIGITS, ONE, TEXT, wire_name
from repositories import SMALL, archive
from rest import one_line
from server import PATIENCE

COMPRESSIONS = [None, "gzip", "deflate"]


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.grpc) as made:
        yield made


def inputs(case):
    made = []
    for name, array in case.inputs.items():
        made.append(triton.InferInput(name, list(array.shape), wire_name(array)))
        made[-1].set_data_from_numpy(array)
    return made


def outputs(case):
    return [triton.InferRequestedOutput(name) for name in case.outputs]


def call(case, **more):
    """The arguments of a call of infer."""
    which = {"model_name": case.model, "model_version": case.version, "inputs": inputs(case)}
    return {**which, "client_timeout": PATIENCE, **more}


def check(case, result):
    assert result is not None
    case.check(result.as_numpy, result.get_response().model_version)


def refused(send, code, *says):
    with pytest.raises(InferenceServerException) as caught:
        send()
    assert caught.value.status() == f"StatusCode.{code}", caught.value
    one_line(caught.value.message())
    for words in says:
        assert words in caught.value.message(), caught.value.message()


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_infer(client, case):
    """InferenceServerClient.infer."""
    check(case, client.infer(**call(case)))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("case", [ONE, TEXT], ids=lambda case: case.model)
def test_infer_with_everything(client, case, compression):
    """infer with compression, named outputs, id, priority, timeout, a sequence, parameters and headers."""
    result = client.infer(
        **call(
            case,
            outputs=outputs(case),
            request_id="42",
            priority=2,
            timeout=60_000_000,
            sequence_id=7,
            sequence_start=True,
            sequence_end=True,
            compression_algorithm=compression,
            parameters={"colour": "grey", "depth": 1, "on": True},
            headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        )
    )
    check(case, result)
    assert result.get_response().id == "42"


def test_infer_errors(client):
    """Errors come as InferenceServerException with the status's name."""
    refused(lambda: client.infer(**{**call(ONE), "model_name": "nope"}), "NOT_FOUND", "nope")
    refused(lambda: client.infer(**{**call(ONE), "inputs": []}), "INVALID_ARGUMENT", "image")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_async_infer(client, compression):
    """async_infer with a callback for each request, all under way at once."""
    answers = queue.Queue()
    for case in ALL:
        client.async_infer(
            callback=lambda result, error, case=case: answers.put((case, result, error)),
            **call(case, compression_algorithm=compression),
        )
    for _ in ALL:
        case, result, error = answers.get(timeout=PATIENCE)
        assert error is None, f"{case.id}: {error}"
        check(case, result)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_stream(server, compression):
    """start_stream, async_stream_infer, stop_stream; an unknown model is an error in band, and the stream goes on."""
    answers = queue.Queue()
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), compression_algorithm=compression)
        by_id = {}
        for at, case in enumerate([*DIGITS, TEXT]):
            by_id[str(at)] = case
            asked = call(case, request_id=str(at), enable_empty_final_response=at == 1)
            del asked["client_timeout"]
            client.async_stream_infer(**asked)
        client.async_stream_infer(model_name="nope", inputs=inputs(ONE))
        errors = []
        for _ in range(len(by_id) + 1):
            result, error = answers.get(timeout=PATIENCE)
            if error is not None:
                errors.append(error)
                continue
            check(by_id.pop(result.get_response().id), result)
        assert not by_id and len(errors) == 1, (by_id, errors)
        one_line(errors[0].message())
        client.stop_stream()


def test_stream_with_real_errors(server):
    """With the header triton_grpc_error the stream ends with the error's status."""
    answers = queue.Queue()
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"})
        client.async_stream_infer(model_name="nope", inputs=inputs(ONE))
        result, error = answers.get(timeout=PATIENCE)
        assert result is None and error.status() == "StatusCode.NOT_FOUND", error
        client.stop_stream()


def test_asyncio(server):
    """tritonclient.grpc.aio: infer of every case, with and without compression, and a stream."""

    async def all_of_it():
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            assert await client.is_server_live() and await client.is_server_ready()
            assert await client.is_model_ready("digits", "1")
            for compression in COMPRESSIONS:
                asked = [call(case, compression_algorithm=compression) for case in ALL]
                results = await asyncio.gather(*(client.infer(**each) for each in asked))
                for case, result in zip(ALL, results):
                    check(case, result)

            async def requests():
                for at, case in enumerate(DIGITS):
                    asked = call(case, request_id=str(at))
                    del asked["client_timeout"]
                    yield asked

            seen = set()
            async for result, error in client.stream_infer(requests(), stream_timeout=PATIENCE):
                assert error is None, error
                check(DIGITS[int(result.get_response().id)], result)
                seen.add(result.get_response().id)
            assert len(seen) == len(DIGITS)
            with pytest.raises(InferenceServerException):
                await client.infer(**{**call(ONE), "model_name": "nope"})

    asyncio.run(all_of_it())


def test_classification(client):
    """InferRequestedOutput with class_count: the top n as texts."""
    wanted = [triton.InferRequestedOutput("probabilities", class_count=2)]
    found = client.infer(**call(ONE, outputs=wanted)).as_numpy("probabilities")
    assert list(found.shape) == [2, 2]
    for row, expected in zip(found, ONE.outputs["probabilities"]):
        value, index, label = row[0].decode().split(":")
        assert (int(index), label) == (int(expected.argmax()), str(expected.argmax()))
        assert abs(float(value) - expected.max()) < 1e-3


def test_what_it_tells(client):
    """Liveness, readiness, metadata and configuration, as messages and as JSON."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("digits") and client.is_model_ready("digits", "first")
    assert client.get_server_metadata().name == "torchlane"
    assert client.get_server_metadata(as_json=True)["name"] == "torchlane"
    assert [tensor.name for tensor in client.get_model_metadata("tagger").outputs] == ["tags", "scores", "total"]
    assert client.get_model_metadata("digits", "1", as_json=True)["inputs"][0]["shape"] == ["-1", "1", "8", "8"]
    assert client.get_model_config("digits").config.max_batch_size == 16
    assert client.get_model_config("digits", as_json=True)["config"]["name"] == "digits"
    assert {row.name for row in client.get_model_repository_index().models} >= {"digits", "tagger"}
    assert client.get_inference_statistics("digits", "1").model_stats[0].version == "1"
    assert "trace_level" in client.get_trace_settings(as_json=True)["settings"]
    assert "log_info" in client.get_log_settings(as_json=True)["settings"]


def test_load_and_unload(closed_server):
    """load_model and unload_model; load_model with config and files where uploads are on is in test_uploads."""
    archive(closed_server.repository, "triton-grpc", 1, SMALL / "two_versions/1/model.pt")
    with triton.InferenceServerClient(closed_server.grpc) as client:
        client.load_model("triton-grpc", client_timeout=PATIENCE)
        assert client.is_model_ready("triton-grpc")
        client.unload_model("triton-grpc", unload_dependents=True)
        assert not client.is_model_ready("triton-grpc")


def test_uploads(open_server):
    """load_model with config and files."""
    config = json.dumps({"platform": "pytorch_libtorch", "max_batch_size": 0})
    files = {"file:1/model.pt": (SMALL / "two_versions/2/model.pt").read_bytes()}
    with triton.InferenceServerClient(open_server.grpc) as client:
        client.load_model("triton-grpc-upload", config=config, files=files, client_timeout=PATIENCE)
        assert client.is_model_ready("triton-grpc-upload", "1")
