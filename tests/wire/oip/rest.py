"""Requests over HTTP, as bytes: what a client library would hide is what is tested here."""

import contextlib
import dataclasses
import http.client
import json

import pytest

from server import PATIENCE

HEADER_LENGTH = "inference-header-content-length"


def not_json(name):
    raise AssertionError(f"{name} is not JSON")


def strict(text):
    """JSON as its standard has it: without NaN and Infinity."""
    return json.loads(text, parse_constant=not_json)


@dataclasses.dataclass
class Answer:
    status: int
    # Names in lower case.
    headers: dict
    body: bytes

    def json(self):
        return strict(self.body)

    def ok(self):
        """The JSON of an answer that went well."""
        assert self.status == 200, f"status {self.status}: {self.body[:500]!r}"
        return self.json()

    def outputs(self):
        """The outputs of an inference by name: their JSON, with the bytes of a binary one as `raw`."""
        assert self.status == 200, f"status {self.status}: {self.body[:500]!r}"
        length = self.headers.get(HEADER_LENGTH.lower())
        head, tail = (self.body, b"") if length is None else (self.body[: int(length)], self.body[int(length) :])
        found = {}
        for output in strict(head)["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if size is not None:
                assert "data" not in output, f"{output['name']} came twice, as JSON and in the tail"
                output["raw"], tail = tail[:size], tail[size:]
                assert len(output["raw"]) == size, f"the tail ends within {output['name']}"
            found[output["name"]] = output
        assert not tail, f"{len(tail)} bytes behind the last output"
        return found


def call(server, method, path, body=None, headers=None):
    """One request on a connection of its own. `body`: bytes, or something that becomes JSON."""
    headers = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers.setdefault("Content-Type", "application/json")
    if body is not None:
        headers.setdefault("Content-Length", str(len(body)))
    connection = http.client.HTTPConnection(server.http, timeout=PATIENCE)
    try:
        # As told, and nothing else: by itself it would say that it wants nothing compressed.
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # Whoever is refused before all is said finds the answer there.
            connection.endheaders(body)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())
    finally:
        connection.close()


def get(server, path, **headers):
    return call(server, "GET", path, headers=headers)


def post(server, path, body=b"", headers=None):
    return call(server, "POST", path, body, headers)


def infer(server, model, body, headers=None):
    return post(server, f"/v2/models/{model}/infer", body, headers)


def tensor(name, datatype, array, **parameters):
    """An input as JSON, its data flat and row-major."""
    made = {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}
    return {**made, "parameters": parameters} if parameters else made


def binary_tensor(name, datatype, shape, raw, **parameters):
    """An input whose bytes follow the JSON."""
    parameters["binary_data_size"] = len(raw)
    return {"name": name, "datatype": datatype, "shape": list(shape), "parameters": parameters}


def with_tail(head, *tails, length=None):
    """Body and headers of a request with binary tensors. `length`: another one than the JSON's."""
    text = json.dumps(head).encode()
    length = str(len(text) if length is None else length)
    return text + b"".join(tails), {HEADER_LENGTH: length, "Content-Type": "application/octet-stream"}


def refused(answer, status, *says):
    """The answer is an error: that status, and `{"error": "one short line"}`. Returns the line."""
    allowed = status if isinstance(status, (tuple, set)) else {status}
    assert answer.status in allowed, f"status {answer.status} instead of {status}: {answer.body[:500]!r}"
    assert answer.headers.get("content-type", "").startswith("application/json"), answer.headers
    error = answer.json()
    assert isinstance(error, dict) and isinstance(error.get("error"), str), f'no {{"error": ...}}: {error}'
    one_line(error["error"])
    for words in says:
        assert words in error["error"], f"no '{words}' in: {error['error']}"
    return error["error"]


class Refusal(Exception):
    """An answer other than 200, where only that would do."""

    def __init__(self, answer):
        super().__init__(f"{answer.status}: {answer.body[:500]!r}")
        self.answer = answer


def must(answer):
    if answer.status != 200:
        raise Refusal(answer)
    return answer


def must_not(send, status, *says):
    """`send()` comes to a refusal; see `refused`."""
    with pytest.raises(Refusal) as caught:
        send()
    return refused(caught.value.answer, status, *says)


def one_line(message):
    assert message and len(message.encode()) <= 1024, f"an error is short, not {len(message)} characters"
    assert "\n" not in message and "\r" not in message, f"an error is one line: {message!r}"
