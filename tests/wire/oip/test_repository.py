"""The model repository extension: what there is, loading and unloading, and files that come with the request."""

import json
import shutil

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

import rest
from admin import DOORS
from cases import digits
from repositories import DIGITS, SMALL, archive
from rpcs import Calls, Code, arrays, check, of_case, refused, request

# Each door has a model of its own to load and unload.
OWN = {"grpc": "hers", "rest": "his"}
STATES = {"UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"}
CONFIG = json.dumps(
    {
        "platform": "pytorch_libtorch",
        "max_batch_size": 16,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": [1, 8, 8]}],
        "output": [{"name": "probabilities", "data_type": "TYPE_FP32", "dims": [10]}],
    }
)


@pytest.fixture(params=DOORS)
def door(request, closed_server):
    return DOORS[request.param](closed_server)


@pytest.fixture(params=DOORS)
def open_door(request, open_server):
    return DOORS[request.param](open_server)


def times(server, model, version=None):
    """By what the model multiplies: 1 in its version 1, 2 in version 2."""
    response = Calls(server).ModelInfer(request(model, ("x", "FP32", [1]), raw=[np.float32(3).tobytes()]))
    assert version in (None, response.model_version), f"version {response.model_version} answered"
    (array,) = arrays(response).values()
    return array[0] / 3


def row(door, model, ready=False):
    """The model's one row of the index."""
    (found,) = [each for each in door.index(ready) if each["name"] == model]
    return found


@pytest.mark.parametrize("name", DOORS)
def test_the_index_has_every_model_and_version(server, name):
    """The index lists each model with a row for each loaded version, its state in the protocol's words, and no reason where it
    is READY."""
    rows = DOORS[name](server).index()
    assert {(each["name"], each["version"]) for each in rows} >= {("digits", "1"), ("digits", "2"), ("tagger", "1")}
    assert {each["name"] for each in rows} >= {"identity", "echo", "low"}
    assert all(each["state"] in STATES for each in rows), rows
    assert all(each["state"] == "READY" and not each["reason"] for each in rows), rows


def test_unload_and_load(closed_server, door):
    """After an unload a model is UNAVAILABLE with the reason 'unloaded', requests for it too, and the server stays ready; a
    load brings it back."""
    model = OWN[door.name]
    assert times(closed_server, model) == 1
    door.unload(model)
    found = row(door, model)
    assert (found["state"], found["reason"]) == ("UNAVAILABLE", "unloaded"), found
    assert model not in {each["name"] for each in door.index(ready=True)}
    assert not door.is_ready(model)
    refused(lambda: times(closed_server, model), Code.UNAVAILABLE)
    assert door.server_is_ready() and door.is_ready("digits")
    door.load(model)
    found = row(door, model, ready=True)
    assert (found["version"], found["state"], found["reason"]) == ("1", "READY", ""), found
    assert door.is_ready(model) and door.is_ready(model, "1")
    assert times(closed_server, model) == 1


@pytest.mark.parametrize("dependents", [False, True])
def test_the_steps_of_an_ensemble_stay(door, dependents):
    """unload_dependents is taken, and changes nothing: steps of an ensemble are models of their own, which others may ask for."""
    steps = ("digits-decode", "digits", "digits-top")
    door.unload("read-digits", dependents=dependents)
    assert not door.is_ready("read-digits")
    assert all(door.is_ready(step) for step in steps)
    door.load("read-digits")
    assert door.is_ready("read-digits")


@pytest.mark.parametrize("call", ["index", "load", "unload"])
def test_all_repositories_count_as_one(closed_server, call):
    """A call that names a repository is refused (INVALID_ARGUMENT, 400) and changes nothing: there is one, whatever it is made of."""
    calls = Calls(closed_server)
    sends = {
        "index": lambda: calls.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="models")),
        "load": lambda: calls.RepositoryModelLoad(pb.RepositoryModelLoadRequest(repository_name="models", model_name="kept")),
        "unload": lambda: calls.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(repository_name="models", model_name="kept")),
    }
    refused(sends[call], Code.INVALID_ARGUMENT, "repository_name")
    path = "index" if call == "index" else f"models/kept/{call}"
    rest.refused(rest.post(closed_server, f"/v2/repository/models/{path}"), 400, "repository_name")
    assert times(closed_server, "kept", "1") == 1


def test_what_is_not_there_is_not_found(door):
    """Loading or unloading a model that is in no repository is NOT_FOUND (404)."""
    door.finds_nothing(lambda: door.load("nope"))
    door.finds_nothing(lambda: door.unload("nope"))


def test_a_failed_load_keeps_what_serves(closed_server, door):
    """A load takes the newest version; where that fails, the old one serves on without a gap, and the answer says why."""
    model = f"{door.name}-kept"
    archive(closed_server.repository, model, 1, SMALL / "two_versions/1/model.pt")
    door.load(model)
    assert times(closed_server, model, "1") == 1
    archive(closed_server.repository, model, 2, SMALL / "truncated.pt")
    door.refuses(lambda: door.load(model), "truncated")
    assert times(closed_server, model, "1") == 1
    states = {each["version"]: each["state"] for each in door.index() if each["name"] == model}
    assert states.pop("1") == "READY" and set(states.values()) <= {"UNAVAILABLE"}, states
    archive(closed_server.repository, model, 3, SMALL / "two_versions/2/model.pt")
    door.load(model)
    assert times(closed_server, model, "3") == 2


def test_a_load_of_what_is_loaded_reloads_it(closed_server, door):
    """A load of a model that serves loads it anew and serves all the time."""
    model = OWN[door.name]
    door.load(model)
    assert times(closed_server, model, "1") == 1


def test_a_model_that_never_loaded(closed_server, door):
    """A model that could not be loaded is in the index with its reason, and requests for it are UNAVAILABLE."""
    model = f"{door.name}-broken"
    archive(closed_server.repository, model, 1, SMALL / "not_a_zip.pt")
    door.refuses(lambda: door.load(model))
    found = row(door, model)
    assert found["state"] == "UNAVAILABLE" and found["reason"] not in ("", "unloaded"), found
    assert "\n" not in found["reason"]
    refused(lambda: times(closed_server, model), Code.UNAVAILABLE)


@pytest.mark.parametrize("how", ["config", "file", "both"])
def test_uploads_are_off_by_default(closed_server, door, how):
    """Parameters config and file:... are refused unless oip.uploads is on; the message names it, and nothing changes."""
    config = CONFIG if how != "file" else None
    files = {"file:1/model.pt": (SMALL / "two_versions/2/model.pt").read_bytes()} if how != "config" else None
    door.refuses(lambda: door.load("kept", config=config, files=files), "oip.uploads")
    assert times(closed_server, "kept", "1") == 1
    door.refuses(lambda: door.load("made-up", config=config, files=files))
    assert "made-up" not in {each["name"] for each in door.index()}


def test_a_model_may_be_uploaded(open_server, open_door):
    """With oip.uploads a load brings a configuration and files, as bytes (gRPC) or base64 (REST), and serves them."""
    model = f"{open_door.name}-uploaded"
    open_door.load(model, config=CONFIG, files={"file:1/model.pt": (DIGITS / "1/model.pt").read_bytes()})
    assert open_door.is_ready(model)
    case = digits("1", 11, 2)
    asked = of_case(case)
    asked.model_name, asked.model_version = model, ""
    check(case, Calls(open_server).ModelInfer(asked))


def test_a_file_needs_a_config(open_door):
    """A file:... parameter without config is refused."""
    data = (DIGITS / "1/model.pt").read_bytes()
    open_door.refuses(lambda: open_door.load("half-uploaded", files={"file:1/model.pt": data}), "config")
    assert "half-uploaded" not in {each["name"] for each in open_door.index()}


@pytest.mark.parametrize(
    "path",
    ["file:../out/1/model.pt", "file:1/../../out.pt", "file:/tmp/model.pt", "file:", "file:1/", "file:1//model.pt", "file:.."],
)
def test_an_upload_stays_in_its_place(open_server, open_door, path):
    """A path that leads out of the model's own directory is refused, and nothing is written."""
    data = (DIGITS / "1/model.pt").read_bytes()
    before = sorted(open_server.repository.parent.rglob("*"))
    open_door.refuses(lambda: open_door.load("escaping", config=CONFIG, files={path: data}))
    assert sorted(open_server.repository.parent.rglob("*")) == before
    assert "escaping" not in {each["name"] for each in open_door.index()}


@pytest.mark.parametrize("config", ["", "{", "[]", '{"max_batch_size": "many"}', '{"platform": "tensorrt_plan"}'])
def test_a_config_that_is_none_is_refused(open_server, open_door, config):
    """A config that is no model configuration, or one of another kind of model, is refused; what serves stays."""
    data = (SMALL / "two_versions/2/model.pt").read_bytes()
    open_door.refuses(lambda: open_door.load("kept", config=config, files={"file:1/model.pt": data}))
    assert times(open_server, "kept", "1") == 1


def test_an_upload_that_does_not_load_changes_nothing(open_server, open_door):
    """An uploaded archive is held to what any archive is held to: a broken one, or one that reads files, is refused."""
    for source in ("truncated.pt", "reads_file.pt"):
        config = json.dumps({"platform": "pytorch_libtorch", "max_batch_size": 0})
        data = (SMALL / source).read_bytes()
        open_door.refuses(lambda: open_door.load("kept", config=config, files={"file:2/model.pt": data}))
        assert times(open_server, "kept", "1") == 1


def test_a_new_model_on_disk_can_be_loaded(closed_server, door):
    """A load finds a model that was put into the repository after the start."""
    model = f"{door.name}-fresh"
    shutil.copytree(SMALL / "two_versions", closed_server.repository / model)
    door.load(model)
    assert times(closed_server, model, "2") == 2
