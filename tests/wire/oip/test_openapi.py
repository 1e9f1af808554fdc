"""The OpenAPI document of the REST door, and requests made up from it: none may be the server's fault."""

import re

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings

import repositories
import rest
from server import PATIENCE

# The routes that have to be described at least; names of parameters are the document's own.
ROUTES = {
    ("get", "/v2"),
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    ("get", "/v2/models/{model}"),
    ("get", "/v2/models/{model}/ready"),
    ("post", "/v2/models/{model}/infer"),
    ("get", "/v2/models/{model}/versions/{version}"),
    ("get", "/v2/models/{model}/versions/{version}/ready"),
    ("post", "/v2/models/{model}/versions/{version}/infer"),
    ("get", "/v2/models/{model}/config"),
    ("get", "/v2/models/{model}/stats"),
    ("get", "/v2/models/stats"),
    ("post", "/v2/repository/index"),
    ("post", "/v2/repository/models/{model}/load"),
    ("post", "/v2/repository/models/{model}/unload"),
    ("get", "/v2/logging"),
    ("get", "/v2/trace/setting"),
}


@pytest.fixture(scope="module")
def described(start):
    """A server of its own: what is made up may load and reload its models."""
    return start("openapi", lambda folder: repositories.fake(folder, digits="", m=""), "backend=fake")


@pytest.fixture(scope="module")
def document(described):
    answer = rest.get(described, "/v2/openapi.json")
    assert answer.headers["content-type"].startswith("application/json")
    return answer.ok()


@pytest.fixture(scope="module")
def api(described, document):
    made = schemathesis.openapi.from_dict(document, config=schemathesis.Config(seed=1))
    made.config.update(base_url=f"http://{described.http}")
    made.config.phases.update(phases=["examples", "fuzzing"])
    return made


def test_it_is_openapi_3_1(document):
    """GET v2/openapi.json is an OpenAPI 3.1 document with the server's name and version."""
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["title"] == "torchlane" and document["info"]["version"]


def test_it_has_every_route(document):
    """Every route of the protocol is described."""

    def anonymous(path):
        return re.sub(r"\{[^}]*\}", "{}", path)

    named = {(method, anonymous(path)) for path, methods in document["paths"].items() for method in methods}
    missing = {(method, path) for method, path in ROUTES if (method, anonymous(path)) not in named}
    assert not missing, f"not described: {sorted(missing)}"


def test_it_says_how_errors_look(document):
    """Every operation has a description of its errors beside that of its success."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "post"):
                codes = set(operation["responses"])
                assert "200" in codes, f"{method} {path}: {codes}"
                assert "default" in codes or any(code[0] in "45" for code in codes), f"{method} {path} never fails?"


# A model that a made-up request unloads is UNAVAILABLE afterwards, as it should be.
SPARED = re.compile("/unload$")


def test_no_request_is_the_servers_fault(api):
    """Whatever a request is made of, the answer is no 5xx, but for 501 of what this server does not offer."""
    asked = 0
    for operation in api.get_all_operations():
        operation = operation.ok()
        if SPARED.search(operation.path):
            continue

        @seed(1)
        @settings(
            max_examples=20,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy())
        def ask(case):
            nonlocal asked
            asked += 1
            response = case.call(timeout=PATIENCE)
            where = f"{case.method} {case.formatted_path}"
            is_offered = not (response.status_code == 501 and "UNIMPLEMENTED" in response.headers["torchlane-reason"])
            assert response.status_code < 500 or not is_offered, f"{where}: {response.status_code} {response.text[:500]}"

        ask()
    assert asked > 300, f"only {asked} requests"


def test_it_serves_on_after_all_that(described):
    """The server that was asked all that is alive and ready."""
    assert described.is_alive()
    assert rest.get(described, "/v2/health/ready").status == 200
