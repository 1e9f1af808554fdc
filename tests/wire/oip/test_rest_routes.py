"""The routes of the REST door, with and without a version, and what it says to what is no route."""

import http.client
import json

import pytest

import rest
from cases import LABELS, ONE
from server import PATIENCE

WRONG = {400, 404, 405}
VERSIONS = {"": "2", "/versions/1": "1", "/versions/2": "2", "/versions/first": "1", "/versions/stable": "2"}
NO_ROUTES = ["/v2/nope", "/v3", "/v2/models/digits/nope", "/v2/health/nope", "/v2/models/digits/versions", "/v2//health/live"]
WRONG_METHODS = [
    ("GET", "/v2/models/digits/infer"),
    ("PUT", "/v2/models/digits/infer"),
    ("DELETE", "/v2/models/digits"),
    ("POST", "/v2/health/live"),
    ("GET", "/v2/repository/index"),
    ("GET", "/v2/repository/models/digits/load"),
]
UNKNOWN = ["/v2/models/nope/infer", "/v2/models/digits/versions/9/infer", "/v2/models/digits/versions/canary/infer"]


def body(case=ONE):
    return {"inputs": [rest.tensor("image", "FP32", case.inputs["image"])]}


def test_live(server):
    """GET v2/health/live is 200 and {"live": true}."""
    assert rest.get(server, "/v2/health/live").ok()["live"] is True


def test_ready(server):
    """GET v2/health/ready is 200 and {"ready": true}, which KServe's client reads; `live`, where it is there, is true."""
    found = rest.get(server, "/v2/health/ready").ok()
    assert found["ready"] is True and found.get("live", True) is True, found


@pytest.mark.parametrize("version,used", VERSIONS.items())
def test_a_version_in_the_url_is_a_number_or_a_label(server, version, used):
    """Every route of a model takes versions/V, and V may be a label."""
    path = f"/v2/models/digits{version}"
    assert rest.post(server, f"{path}/infer", body()).ok()["model_version"] == used
    assert rest.get(server, f"{path}/ready").ok()["ready"] is True
    assert rest.get(server, path).ok()["name"] == "digits"
    assert rest.get(server, f"{path}/config").ok()["name"] == "digits"
    stats = rest.get(server, f"{path}/stats").ok()["model_stats"]
    assert {each["version"] for each in stats} == ({used} if version else {"1", "2"})


@pytest.mark.parametrize("case", LABELS, ids=lambda case: case.id)
def test_labels_choose_the_version(server, case):
    """A label in the URL is answered by its version."""
    answer = rest.post(server, f"/v2/models/digits/versions/{case.version}/infer", body(case)).ok()
    assert (answer["model_name"], answer["model_version"]) == ("digits", case.used)


def test_names_in_urls_are_decoded(server):
    """A name may be percent-encoded, as clients do."""
    assert rest.post(server, "/v2/models/%64igits/versions/%31/infer", body()).ok()["model_version"] == "1"


@pytest.mark.parametrize("path", UNKNOWN)
def test_unknown_models_and_versions_are_404(server, path):
    """An unknown model, version or label is 404 with {"error": ...}."""
    rest.refused(rest.post(server, path, body()), 404)


@pytest.mark.parametrize("version", ["-1", "01", "1.0", "Stable", "%20", "1%2F2", "..%2F"])
def test_a_version_that_is_none_is_refused(server, version):
    """What is neither a number nor a label is refused, not looked up."""
    rest.refused(rest.post(server, f"/v2/models/digits/versions/{version}/infer", body()), WRONG)


@pytest.mark.parametrize("path", NO_ROUTES)
def test_what_is_no_route_is_404_with_an_error(server, path):
    """An unknown path is 404, in the same form as every other error."""
    rest.refused(rest.get(server, path), 404)


@pytest.mark.parametrize("method,path", WRONG_METHODS)
def test_the_wrong_method_is_405(server, method, path):
    """A route that takes another method is 405, says which in Allow, and in the same form as every other error."""
    answer = rest.call(server, method, path)
    rest.refused(answer, 405)
    assert answer.headers.get("allow"), "405 comes with Allow"


@pytest.mark.parametrize("path", ["generate", "generate_stream", "infer_stream"])
def test_text_generation_is_refused_in_the_same_form(server, path):
    """Routes of other servers' extensions that are not offered are refused with an error, and not by a failure."""
    rest.refused(rest.post(server, f"/v2/models/digits/{path}", {"text_input": "hello"}), {400, 404, 501})


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/"])
def test_what_was_on_the_port_before_is_still_there(server, path):
    """Probes, metrics and the front page share the port with /v2."""
    assert rest.get(server, path).status == 200


def test_head_of_health(server):
    """A probe may ask with HEAD."""
    answer = rest.call(server, "HEAD", "/v2/health/ready")
    assert (answer.status, answer.body) == (200, b"")


def test_connections_are_kept(server):
    """HTTP/1.1: several requests on one connection, also after an error."""
    connection = http.client.HTTPConnection(server.http, timeout=PATIENCE)
    try:
        connection.connect()
        first = connection.sock
        for path, status in (("digits", 200), ("nope", 404), ("digits", 200)):
            connection.request("POST", f"/v2/models/{path}/infer", json.dumps(body()))
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
            assert connection.sock is first, "the connection was closed"
    finally:
        connection.close()


def test_chunked_bodies_are_read(server):
    """A body in chunks, without Content-Length, is a body."""
    text = json.dumps(body()).encode()
    connection = http.client.HTTPConnection(server.http, timeout=PATIENCE)
    try:
        pieces = (text[at : at + 100] for at in range(0, len(text), 100))
        chunked = {"Transfer-Encoding": "chunked"}
        connection.request("POST", "/v2/models/digits/infer", pieces, chunked, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
    finally:
        connection.close()
