"""System shared memory through either door: registering regions, and requests whose tensors lie in them."""

from tritonclient.grpc import service_pb2 as pb

import rest
from cases import ONE
from rpcs import REFUSALS, Calls, Code, put, refused, request

# A region that is not there may also be said not to be found, and one that is there to be there already.
NO = REFUSALS | {Code.ALREADY_EXISTS}
NO_HTTP = {400, 403, 404, 409, 501}
SIZE = 4096


class Grpc:
    def __init__(self, server):
        self.server, self.calls = server, Calls(server)

    def register(self, name, key, size, offset=0):
        asked = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
        self.calls.SystemSharedMemoryRegister(asked)

    def unregister(self, name=""):
        self.calls.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name=name))

    def status(self, name=""):
        """(name, key, offset, byte_size) of each region by its name."""
        found = self.calls.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name=name)).regions
        return {key: (one.name, one.key, one.offset, one.byte_size) for key, one in found.items()}

    def refuses(self, send, *says):
        refused(send, NO, *says)


class Rest:
    def __init__(self, server):
        self.server = server

    def register(self, name, key, size, offset=0):
        body = {"key": key, "offset": offset, "byte_size": size}
        rest.must(rest.post(self.server, f"/v2/systemsharedmemory/region/{name}/register", body))

    def unregister(self, name=""):
        region = f"/region/{name}" if name else ""
        rest.must(rest.post(self.server, f"/v2/systemsharedmemory{region}/unregister"))

    def status(self, name=""):
        region = f"/region/{name}" if name else ""
        found = rest.must(rest.get(self.server, f"/v2/systemsharedmemory{region}/status")).json()
        return {one["name"]: (one["name"], one["key"], one["offset"], one["byte_size"]) for one in found}

    def refuses(self, send, *says):
        rest.must_not(send, NO_HTTP, *says)


DOORS = {"grpc": Grpc, "rest": Rest}


def place(parameters, size, offset=0, name="region"):
    """Parameters of a tensor that lies in a region."""
    put(parameters, "shared_memory_region", string=name)
    if size is not None:
        put(parameters, "shared_memory_byte_size", int64=size)
    if offset is not None:
        put(parameters, "shared_memory_offset", int64=offset)


def digits_in_region(path, size=None, offset=0, name="region"):
    """A request for digits whose image lies in the region."""
    image = ONE.inputs["image"]
    data = bytearray(path.read_bytes())
    data[: image.nbytes] = image.tobytes()
    # In place: the server may have the file open.
    with open(path, "r+b") as out:
        out.write(data)
    asked = request("digits", ("image", "FP32", image.shape))
    place(asked.inputs[0].parameters, image.nbytes if size is None else size, offset, name)
    return asked


def json_in_region(**parameters):
    parameters = {"shared_memory_region": "region", "shared_memory_byte_size": ONE.inputs["image"].nbytes, **parameters}
    return {"inputs": [{"name": "image", "datatype": "FP32", "shape": [2, 1, 8, 8], "parameters": parameters}]}
