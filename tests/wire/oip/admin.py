"""Loading, unloading and listing models, through either door. Both say the same."""

import base64

from tritonclient.grpc import service_pb2 as pb

import rest
import rpcs

NO_CHANGE = {rpcs.Code.INVALID_ARGUMENT, rpcs.Code.FAILED_PRECONDITION, rpcs.Code.UNIMPLEMENTED, rpcs.Code.PERMISSION_DENIED}


class Grpc:
    name = "grpc"

    def __init__(self, server):
        self.calls = rpcs.Calls(server)

    def index(self, ready=False):
        rows = self.calls.RepositoryIndex(pb.RepositoryIndexRequest(ready=ready)).models
        return [{"name": row.name, "version": row.version, "state": row.state, "reason": row.reason} for row in rows]

    def load(self, model, config=None, files=None, **parameters):
        request = pb.RepositoryModelLoadRequest(model_name=model)
        if config is not None:
            request.parameters["config"].string_param = config
        for path, data in (files or {}).items():
            request.parameters[path].bytes_param = data
        for key, value in parameters.items():
            request.parameters[key].string_param = value
        self.calls.RepositoryModelLoad(request)

    def unload(self, model, dependents=False):
        request = pb.RepositoryModelUnloadRequest(model_name=model)
        request.parameters["unload_dependents"].bool_param = dependents
        self.calls.RepositoryModelUnload(request)

    def is_ready(self, model, version=""):
        return self.calls.ModelReady(pb.ModelReadyRequest(name=model, version=version)).ready

    def server_is_ready(self):
        return self.calls.ServerReady(pb.ServerReadyRequest()).ready

    def refuses(self, send, *says):
        """A change that is not allowed, or cannot be."""
        return rpcs.refused(send, NO_CHANGE, *says)

    def finds_nothing(self, send):
        return rpcs.refused(send, rpcs.Code.NOT_FOUND)


class Rest:
    name = "rest"

    def __init__(self, server):
        self.server = server

    def _post(self, path, body):
        return rest.must(rest.post(self.server, path, body))

    def index(self, ready=False):
        rows = self._post("/v2/repository/index", {"ready": True} if ready else b"").json()
        # Triton leaves out what is empty.
        return [{key: row.get(key, "") for key in ("name", "version", "state", "reason")} for row in rows]

    def load(self, model, config=None, files=None, **parameters):
        if config is not None:
            parameters["config"] = config
        for path, data in (files or {}).items():
            parameters[path] = base64.b64encode(data).decode()
        self._post(f"/v2/repository/models/{model}/load", {"parameters": parameters} if parameters else b"")

    def unload(self, model, dependents=False):
        self._post(f"/v2/repository/models/{model}/unload", {"parameters": {"unload_dependents": dependents}})

    def is_ready(self, model, version=""):
        version = f"/versions/{version}" if version else ""
        return rest.get(self.server, f"/v2/models/{model}{version}/ready").status == 200

    def server_is_ready(self):
        return rest.get(self.server, "/v2/health/ready").status == 200

    def refuses(self, send, *says):
        return rest.must_not(send, {400, 403, 501}, *says)

    def finds_nothing(self, send):
        return rest.must_not(send, 404)


DOORS = {"grpc": Grpc, "rest": Rest}
