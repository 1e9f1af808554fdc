"""Compressed bodies and answers over REST, and bodies that are too long once they are inflated."""

import gzip
import json
import pathlib
import resource
import zlib

import numpy as np
import pytest
import zstandard

import rest
from cases import DTYPES, ONE, TEXT, wire_name
from server import MAX_MESSAGE_BYTES

# `deflate` of HTTP is zlib's format.
PACK = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.ZstdCompressor().compress}
UNPACK = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


def json_body():
    return json.dumps({"inputs": [rest.tensor("image", "FP32", ONE.inputs["image"])]}).encode()


def probabilities(answer):
    output = answer.outputs()["probabilities"]
    raw = output.get("raw")
    data = output["data"] if raw is None else np.frombuffer(raw, DTYPES["FP32"])
    return {"probabilities": np.array(data, np.float32).reshape(output["shape"])}.get


def unpacked(answer, coding):
    """The answer as it was before it was compressed."""
    assert answer.headers.get("content-encoding") == coding, f"not in {coding}: {answer.headers}"
    return rest.Answer(answer.status, answer.headers, UNPACK[coding](answer.body))


@pytest.mark.parametrize("coding", PACK)
def test_compressed_json(server, coding):
    """Content-Encoding gzip, deflate and zstd of a JSON body."""
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    ONE.check(probabilities(rest.infer(server, "digits", PACK[coding](json_body()), headers)))


@pytest.mark.parametrize("coding", PACK)
def test_compressed_binary(server, coding):
    """JSON and bytes are compressed as a whole; Inference-Header-Content-Length counts what is inflated."""
    inputs, tails = [], []
    for name, array in TEXT.inputs.items():
        inputs.append(rest.binary_tensor(name, wire_name(array), array.shape, array.tobytes()))
        tails.append(array.tobytes())
    body, headers = rest.with_tail({"inputs": inputs, "parameters": {"binary_data_output": True}}, *tails)
    found = rest.infer(server, "tagger", PACK[coding](body), {**headers, "Content-Encoding": coding}).outputs()
    TEXT.check(lambda name: np.frombuffer(found[name]["raw"], TEXT.outputs[name].dtype).reshape(found[name]["shape"]))


@pytest.mark.parametrize("coding", PACK)
def test_compressed_raw_binary_request(server, coding):
    """A raw binary request may be compressed as well."""
    image = ONE.inputs["image"][:1]
    headers = {rest.HEADER_LENGTH: "0", "Content-Encoding": coding, "Content-Type": "application/octet-stream"}
    found = rest.infer(server, "digits", PACK[coding](image.tobytes()), headers).outputs()["probabilities"]
    assert found["shape"] == [1, 10] and len(found["raw"]) == 40


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("coding", PACK)
def test_compressed_answers(server, coding, binary):
    """Accept-Encoding is obeyed for an answer that is worth it; the header's length counts what is inflated."""
    x = np.zeros(5000, np.float32)
    tensor = rest.binary_tensor("x", "FP32", x.shape, x.tobytes())
    body, headers = rest.with_tail({"inputs": [tensor], "parameters": {"binary_data_output": binary}}, x.tobytes())
    answer = rest.infer(server, "identity", body, {**headers, "Accept-Encoding": coding})
    assert len(answer.body) < 5000, "not smaller"
    found = unpacked(answer, coding).outputs()["output_0"]
    assert found["raw"] == x.tobytes() if binary else np.ravel(found["data"]).tolist() == x.tolist()
    assert "accept-encoding" in answer.headers.get("vary", "").lower(), "caches must know that the answer depends on it"


@pytest.mark.parametrize("accept", [None, "identity", "gzip;q=0", "br", "gzip;q=0, identity;q=1"])
def test_nobody_gets_what_they_did_not_ask_for(server, accept):
    """Without Accept-Encoding, or with one that allows nothing that is offered, the answer is plain."""
    x = np.zeros(5000, np.float32)
    body, headers = rest.with_tail({"inputs": [rest.binary_tensor("x", "FP32", x.shape, x.tobytes())]}, x.tobytes())
    if accept:
        headers["Accept-Encoding"] = accept
    answer = rest.infer(server, "identity", body, headers)
    assert "content-encoding" not in answer.headers, answer.headers
    answer.outputs()


def test_metadata_is_plain_for_clients_that_do_not_inflate_it(server):
    """Triton's asyncio client always sends Accept-Encoding and inflates answers of inference only."""
    headers = {"Accept-Encoding": "gzip, deflate"}
    for path in ("/v2", "/v2/models/tagger", "/v2/models/tagger/config", "/v2/models/stats", "/v2/logging", "/v2/models/nope"):
        answer = rest.call(server, "GET", path, headers=headers)
        assert "content-encoding" not in answer.headers, f"{path}: {answer.headers}"
        answer.json()
    answer = rest.call(server, "POST", "/v2/repository/index", headers=headers)
    assert "content-encoding" not in answer.headers
    rest.refused(rest.infer(server, "nope", json_body(), headers), 404)


@pytest.mark.parametrize("coding", ["br", "compress", "x", "gzip, gzip"])
def test_other_codings_are_refused(server, coding):
    """A Content-Encoding that is not offered is refused, 415, before anything is made of the body."""
    rest.refused(rest.infer(server, "digits", json_body(), {"Content-Encoding": coding}), {400, 415})


@pytest.mark.parametrize("how", ["not at all", "half", "tail"])
@pytest.mark.parametrize("coding", PACK)
def test_what_does_not_inflate_is_400(server, coding, how):
    """A body that is not in the coding it names, or is cut off, is refused as the caller's fault."""
    whole = PACK[coding](json_body())
    body = {"not at all": json_body(), "half": whole[: len(whole) // 2], "tail": whole[:-1]}[how]
    rest.refused(rest.infer(server, "digits", body, {"Content-Encoding": coding}), 400)


def test_a_body_that_is_too_long_is_413(server):
    """A body over server.max_message_bytes is refused with 413, whether its length is told or not."""
    long = b" " * (MAX_MESSAGE_BYTES + 1)
    rest.refused(rest.infer(server, "digits", long), 413)
    told = rest.call(server, "POST", "/v2/models/digits/infer", b"", {"Content-Length": str(2**40)})
    rest.refused(told, 413)


@pytest.mark.parametrize("coding", PACK)
def test_bombs_are_413(server, coding):
    """A small body that inflates beyond server.max_message_bytes is refused with 413 as soon as it does."""
    bomb = PACK[coding](b" " * (MAX_MESSAGE_BYTES + 1))
    assert len(bomb) < 64 * 1024
    rest.refused(rest.infer(server, "digits", bomb, {"Content-Encoding": coding}), 413)
    ONE.check(probabilities(rest.infer(server, "digits", json_body())))


def test_a_bomb_does_not_fill_the_memory(server):
    """What a bomb would inflate to is never held: a GiB in a MiB leaves the server's memory as it was."""

    def resident():
        return int(pathlib.Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    mib = bytes(1024 * 1024)
    bomb = packer.compress(mib) + packer.flush(zlib.Z_FULL_FLUSH)
    # The same compressed MiB over and over: the stream has no end, but nobody should get that far.
    bomb += (packer.compress(mib) + packer.flush(zlib.Z_FULL_FLUSH)) * 1023
    assert len(bomb) < MAX_MESSAGE_BYTES / 4, "it is small as it comes"
    before = resident()
    rest.refused(rest.infer(server, "digits", bomb, {"Content-Encoding": "gzip"}), 413)
    grown = resident() - before
    assert grown < 16 * MAX_MESSAGE_BYTES, f"{grown >> 20} MiB more"


def test_a_body_at_the_limit_is_read(server):
    """Up to the limit a body is read: only its content is wrong."""
    for body, headers in (
        (b" " * MAX_MESSAGE_BYTES, {}),
        (gzip.compress(b" " * MAX_MESSAGE_BYTES), {"Content-Encoding": "gzip"}),
    ):
        rest.refused(rest.infer(server, "digits", body, headers), 400)
