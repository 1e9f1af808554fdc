"""Shared memory with Triton's own client library, through either door."""

import contextlib

import pytest
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm

from cases import ONE, TEXT, digits, wire_name
from regions import fresh_name
from server import PATIENCE

LIBRARIES = {"grpc": tritonclient.grpc, "http": tritonclient.http}


@pytest.fixture(params=LIBRARIES)
def library(request):
    return LIBRARIES[request.param]


@pytest.fixture
def client(library, open_server):
    address = open_server.grpc if library is tritonclient.grpc else open_server.http
    with library.InferenceServerClient(address) as made:
        # As Triton's own examples begin.
        made.unregister_system_shared_memory()
        made.unregister_cuda_shared_memory()
        yield made
        made.unregister_system_shared_memory()


@contextlib.contextmanager
def region(client, name, size):
    """A region that is there and registered."""
    key = fresh_name()
    handle = shm.create_shared_memory_region(name, key, size, create_only=True)
    try:
        client.register_system_shared_memory(name, f"/{key}", size)
        yield handle
    finally:
        client.unregister_system_shared_memory(name)
        shm.destroy_shared_memory_region(handle)


def size(arrays):
    return sum(array.nbytes for array in arrays.values())


def inputs_in(library, case, handle, name):
    """The case's inputs, one behind the other in the region."""
    shm.set_shared_memory_region(handle, list(case.inputs.values()))
    made, offset = [], 0
    for input_name, array in case.inputs.items():
        made.append(library.InferInput(input_name, list(array.shape), wire_name(array)))
        made[-1].set_shared_memory(name, array.nbytes, offset)
        offset += array.nbytes
    return made


def outputs_in(library, case, name):
    made, offset = [], 0
    for output_name, array in case.outputs.items():
        made.append(library.InferRequestedOutput(output_name))
        made[-1].set_shared_memory(name, array.nbytes, offset)
        offset += array.nbytes
    return made


def contents(case, handle):
    """The case's outputs as they stand in the region."""
    found, offset = {}, 0
    for name, array in case.outputs.items():
        # A copy: a region with a view of it cannot be closed.
        found[name] = shm.get_contents_as_numpy(handle, array.dtype, list(array.shape), offset).copy()
        offset += array.nbytes
    return found


@pytest.mark.parametrize("case", [ONE, TEXT, digits("1", 3, 16)], ids=lambda case: case.id)
def test_inputs_and_outputs(client, library, case):
    """Inputs and outputs in shared memory, each in a region of its own."""
    with region(client, "in", size(case.inputs)) as given, region(client, "out", size(case.outputs)) as taken:
        made = inputs_in(library, case, given, "in")
        asked = outputs_in(library, case, "out")
        client.infer(case.model, made, model_version=case.version, outputs=asked)
        case.check(contents(case, taken).get)


def test_inputs_alone(client, library):
    """Inputs in shared memory, outputs in the answer."""
    with region(client, "in", size(TEXT.inputs)) as given:
        result = client.infer("tagger", inputs_in(library, TEXT, given, "in"))
        TEXT.check(result.as_numpy)


def test_outputs_alone(client, library):
    """Inputs in the request; one output in shared memory, the others in the answer."""
    scores = TEXT.outputs["scores"]
    made = []
    for name, array in TEXT.inputs.items():
        made.append(library.InferInput(name, list(array.shape), wire_name(array)))
        made[-1].set_data_from_numpy(array)
    asked = [library.InferRequestedOutput(name) for name in TEXT.outputs]
    asked[1].set_shared_memory("out", scores.nbytes)
    with region(client, "out", scores.nbytes) as taken:
        result = client.infer("tagger", made, outputs=asked)
        found = shm.get_contents_as_numpy(taken, scores.dtype, list(scores.shape)).copy()
        answered = {"tags": result.as_numpy("tags"), "total": result.as_numpy("total"), "scores": found}
        TEXT.check(answered.get)


def test_status(client, library):
    """get_system_shared_memory_status, of all regions and of one."""
    with region(client, "in", 64), region(client, "out", 128):
        if library is tritonclient.grpc:
            found = client.get_system_shared_memory_status(client_timeout=PATIENCE).regions
            sizes = {name: one.byte_size for name, one in found.items()}
            (one,) = client.get_system_shared_memory_status("out").regions.values()
            assert one.byte_size == 128
            assert not client.get_cuda_shared_memory_status().regions
        else:
            sizes = {one["name"]: one["byte_size"] for one in client.get_system_shared_memory_status()}
            (one,) = client.get_system_shared_memory_status("out")
            assert one["byte_size"] == 128
            assert client.get_cuda_shared_memory_status() == []
        assert sizes == {"in": 64, "out": 128}
