"""System shared memory: what may be registered, and what is told of it."""

import os

import pytest
from tritonclient.grpc import service_pb2 as pb

import rest
from regions import FOLDER, fresh_name, shared
from rpcs import Calls, Code, refused
from shared_memory import NO, NO_HTTP, SIZE, Grpc, Rest, digits_in_region, json_in_region


def test_off_by_default(server):
    """Unless oip.shared_memory is on, nothing can be registered or used, and the message names the setting."""
    with shared(SIZE) as path:
        for door in (Grpc(server), Rest(server)):
            door.refuses(lambda: door.register("region", f"/{path.name}", SIZE), "oip.shared_memory")
        asked = digits_in_region(path)
        refused(lambda: Calls(server).ModelInfer(asked), NO)
        rest.refused(rest.infer(server, "digits", json_in_region()), NO_HTTP)


@pytest.mark.parametrize("slash", ["/", ""])
def test_register_status_unregister(shm, slash):
    """A region is registered by the name of shm_open, with or without its slash; status tells all of them or one;
    unregistering ends it."""
    with shared(SIZE) as one, shared(SIZE) as two:
        shm.register("first", slash + one.name, SIZE)
        shm.register("second", slash + two.name, 100, offset=96)
        told = {"first": ("first", slash + one.name, 0, SIZE), "second": ("second", slash + two.name, 96, 100)}
        assert shm.status() == told
        assert shm.status("second") == {"second": told["second"]}
        shm.unregister("first")
        assert set(shm.status()) == {"second"}
        shm.unregister()
        assert shm.status() == {}


def test_a_name_is_taken_once(shm, region):
    """A name that is registered cannot be registered for something else: the first one stays."""
    with shared(SIZE) as other:
        shm.refuses(lambda: shm.register("region", f"/{other.name}", SIZE))
    assert shm.status()["region"][1] == f"/{region.name}"


def test_a_taken_name_is_a_conflict(open_server):
    """A name that is registered already is ALREADY_EXISTS (409)."""
    by_grpc, by_http = Grpc(open_server), Rest(open_server)
    with shared(SIZE) as path:
        by_grpc.register("taken", f"/{path.name}", SIZE)
        try:
            refused(lambda: by_grpc.register("taken", f"/{path.name}", SIZE), Code.ALREADY_EXISTS, "taken")
            rest.must_not(lambda: by_http.register("taken", f"/{path.name}", SIZE), 409, "taken")
        finally:
            by_grpc.unregister("taken")


# {0} is the name of a region that is there.
TRICKS = ["", "/", ".", "..", "/..", "../etc/hostname", "/../etc/hostname", "/etc/hostname", "/dev/shm/{0}", "../shm/{0}"]
TRICKS += ["sub/{0}", "/./{0}", "{0}/", "{0}\0", "/" + "x" * 300]


@pytest.mark.parametrize("key", TRICKS)
def test_a_key_is_a_name_in_dev_shm(shm, key):
    """A key is one name below /dev/shm: paths, dots and long names are refused, also where they lead to the region."""
    with shared(SIZE) as path:
        shm.refuses(lambda: shm.register("region", key.format(path.name), SIZE))
    assert shm.status() == {}


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "nothing"])
def test_a_region_is_a_regular_file(shm, kind):
    """A symbolic link, a folder or a pipe is refused at once, even where a link leads to a region; so is what is not there."""
    path = FOLDER / fresh_name()
    with shared(SIZE) as target:
        try:
            match kind:
                case "link":
                    path.symlink_to(target)
                case "folder":
                    path.mkdir()
                case "pipe":
                    os.mkfifo(path)
            shm.refuses(lambda: shm.register("region", f"/{path.name}", SIZE))
        finally:
            if kind == "folder":
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
    assert shm.status() == {}


OUTSIDE = [(0, SIZE + 1), (1, SIZE), (SIZE, 1), (SIZE + 1, 0), (2**64 - 1, 2), (2**64 - 1, 1), (0, 2**64 - 1), (2**63, 2**63)]


@pytest.mark.parametrize("offset,size", OUTSIDE)
def test_a_region_lies_within_its_file(shm, offset, size):
    """Offset and size together end within the file, and their sum does not overflow."""
    with shared(SIZE) as path:
        shm.refuses(lambda: shm.register("region", f"/{path.name}", size, offset))
    assert shm.status() == {}


MALFORMED = [{"offset": -1}, {"byte_size": -1}, {"offset": 0.5}, {"byte_size": "4096"}, {"key": 7}, {"key": None}]


@pytest.mark.parametrize("body", MALFORMED)
def test_a_registration_is_well_formed(open_server, body):
    """Negative or fractional numbers and values of other kinds in the JSON of a registration are refused."""
    with shared(SIZE) as path:
        whole = {"key": f"/{path.name}", "offset": 0, "byte_size": SIZE, **body}
        rest.refused(rest.post(open_server, "/v2/systemsharedmemory/region/region/register", whole), 400)


def test_status_of_an_unknown_region_is_refused(shm):
    """A region that nobody registered has no status."""
    shm.refuses(lambda: shm.status("nope"))


def test_cuda_regions_are_refused(open_server):
    """Without a GPU nothing of CUDA can be registered (UNIMPLEMENTED, 501); asking what is and ending it is fine."""
    calls = Calls(open_server)
    asked = pb.CudaSharedMemoryRegisterRequest(name="gpu", raw_handle=bytes(64), device_id=0, byte_size=64)
    refused(lambda: calls.CudaSharedMemoryRegister(asked), Code.UNIMPLEMENTED)
    assert not calls.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()).regions
    calls.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
    body = {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 3}
    rest.refused(rest.post(open_server, "/v2/cudasharedmemory/region/gpu/register", body), 501)
    assert rest.get(open_server, "/v2/cudasharedmemory/status").ok() == []
    assert rest.post(open_server, "/v2/cudasharedmemory/unregister").status == 200
