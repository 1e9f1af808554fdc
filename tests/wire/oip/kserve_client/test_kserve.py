"""KServe's inference clients, over REST and gRPC.

In a folder of its own, which runs in a process of its own: KServe's and Triton's clients define the same protobuf messages,
and one process can hold one definition of a name.
"""

import asyncio
import importlib
import importlib.util
import sys
import types

import grpc
import httpx
import numpy as np
import pytest

from cases import ALL, ONE, TAGGER, TEXT, wire_name

# The package itself imports KServe's server and its Kubernetes client; its inference clients need none of that.
package = types.ModuleType("kserve")
package.__path__ = list(importlib.util.find_spec("kserve").submodule_search_locations)
sys.modules["kserve"] = package
# It names the parts of CloudEvents as they were called before that library's version 2.
for part in ("conversion", "http"):
    sys.modules[f"cloudevents.{part}"] = importlib.import_module(f"cloudevents.v1.{part}")

from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig  # noqa: E402
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput  # noqa: E402


def request(case, binary, **fields):
    inputs = []
    for name, array in case.inputs.items():
        inputs.append(InferInput(name, list(array.shape), wire_name(array)))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return InferRequest(case.model, inputs, **fields)


def check(case, response):
    found = {output.name: output.as_numpy() for output in response.outputs}
    assert response.model_name == case.model
    case.check(found.get)


def over_rest(server, work, **config):
    """Runs `work(client, base_url)`."""

    async def run():
        async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0, **config)) as client:
            return await work(client, f"http://{server.http}")

    return asyncio.run(run())


def over_grpc(server, work):
    """Runs `work(client)`."""

    async def run():
        async with InferenceGRPCClient(server.grpc, retries=0) as client:
            return await work(client)

    return asyncio.run(run())


@pytest.mark.parametrize("answer", ["json", "bytes"])
@pytest.mark.parametrize("sent", ["json", "bytes"])
def test_rest_infer(server, sent, answer):
    """infer over REST: JSON and bytes, in each direction, for every case of a live version."""

    async def work(client, url):
        for case in (case for case in ALL if not case.version):
            if case is TAGGER[0] and sent == "bytes":
                continue  # of a tensor without elements this client sends neither data nor bytes
            asked = request(case, sent == "bytes", parameters={"binary_data_output": answer == "bytes"})
            check(case, await client.infer(url, asked, model_name=case.model))

    over_rest(server, work)


def test_rest_infer_with_everything(server):
    """infer with id, priority, named outputs and headers; the answer's headers come along."""

    async def work(client, url):
        outputs = [RequestedOutput("total", {"binary_data": True}), RequestedOutput("tags", {"binary_data": False})]
        asked = request(TEXT, True, request_id="42", parameters={"priority": 2}, request_outputs=outputs)
        headers = {}
        found = await client.infer(url, asked, model_name="tagger", headers={"x-tenant": "wire"}, response_headers=headers)
        assert found.id == "42" and [output.name for output in found.outputs] == ["total", "tags"]
        assert np.array_equal(found.get_output_by_name("tags").as_numpy(), TEXT.outputs["tags"])
        assert "inference-header-content-length" in {name.lower() for name in headers}

    over_rest(server, work)


def test_rest_infer_of_a_plain_dict(server):
    """infer of a request that is a dict."""

    async def work(client, url):
        image = ONE.inputs["image"]
        data = {"name": "image", "shape": list(image.shape), "datatype": "FP32", "data": image.tolist()}
        check(ONE, await client.infer(url, {"inputs": [data]}, model_name="digits"))

    over_rest(server, work)


def test_rest_half_precision(server):
    """FP16 travels as bytes."""

    async def work(client, url):
        x = InferInput("x", [3], "FP16")
        x.set_data_from_numpy(np.array([0.5, -1.0, 65504.0], np.float16), binary_data=True)
        found = await client.infer(
            url, InferRequest("identity", [x], parameters={"binary_data_output": True}), model_name="identity"
        )
        assert found.outputs[0].datatype == "FP16"
        assert found.outputs[0].as_numpy().tolist() == [0.5, -1.0, 65504.0]

    over_rest(server, work)


def test_rest_readiness(server):
    """is_server_live, is_server_ready and is_model_ready read the JSON of the answers."""

    async def work(client, url):
        assert await client.is_server_live(url) is True
        assert await client.is_server_ready(url) is True
        assert await client.is_model_ready(url, "digits") is True
        assert await client.is_model_ready(url, "nope") is False

    over_rest(server, work)


def test_rest_errors(server):
    """An error's line is in the exception."""

    async def work(client, url):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            await client.infer(url, request(ONE, True), model_name="nope")
        assert caught.value.response.status_code == 404 and "nope" in str(caught.value)

    over_rest(server, work)


@pytest.mark.parametrize("sent", ["lists", "bytes"])
def test_grpc_infer(server, sent):
    """infer over gRPC: typed lists and raw bytes, for every case and version."""

    async def work(client):
        for case in ALL:
            asked = request(case, sent == "bytes", model_version=case.version, request_id=case.id)
            found = await client.infer(asked)
            assert (found.model_version, found.id) == (case.used, case.id)
            check(case, found)

    over_grpc(server, work)


def test_grpc_parameters_and_outputs(server):
    """infer with parameters of the three kinds that this client knows, and with named outputs."""

    async def work(client):
        asked = request(
            TEXT,
            True,
            request_id="42",
            parameters={"priority": 2, "timeout": 60_000_000, "colour": "grey", "on": True},
            request_outputs=[RequestedOutput("total"), RequestedOutput("tags")],
        )
        found = await client.infer(asked, headers=(("x-tenant", "wire"),))
        assert [output.name for output in found.outputs] == ["total", "tags"]
        assert np.array_equal(found.get_output_by_name("tags").as_numpy(), TEXT.outputs["tags"])

    over_grpc(server, work)


def test_grpc_readiness_and_errors(server):
    """is_server_live, is_server_ready, is_model_ready; an unknown model is not ready, and NOT_FOUND to a request."""

    async def work(client):
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("tagger")
        assert await client.is_model_ready("nope") is False
        with pytest.raises(grpc.RpcError) as caught:
            await client.infer(InferRequest("nope", [], request_id="1"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND

    over_grpc(server, work)
