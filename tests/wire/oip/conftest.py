"""Servers for the tests. Each is started once, by the first test that asks for it."""

import os
import subprocess

import pytest

import repositories
from server import ROOT, Server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure says which rule is broken."""
    report = yield
    rule = getattr(getattr(item, "function", None), "__doc__", None)
    if report.failed and rule:
        report.sections.append(("the rule that is broken", " ".join(rule.split())))
    return report


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts a server on a repository that `fill` makes, and ends it with the tests."""
    servers = []

    def begin(name, fill, *settings, ready=True):
        folder = tmp_path_factory.mktemp(name)
        repository = folder / "models"
        repository.mkdir()
        fill(repository)
        # Settings may name the repository, which lies elsewhere each time.
        named = [setting.replace("REPOSITORY", str(repository)) for setting in settings]
        server = Server(folder, repository, *named, ready=ready)
        server.repository = repository
        servers.append(server)
        return server

    yield begin
    failed = []
    for server in servers:
        try:
            server.stop()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed.append(error)
    assert not failed, failed


@pytest.fixture(scope="session")
def server(start):
    """All sample models, the settings as they are by default. Tests that use it change nothing."""
    return start("doors", repositories.doors)


@pytest.fixture(scope="session")
def open_server(start):
    """Shared memory and uploads are on, and models come and go."""
    return start("open", repositories.changing, "oip.shared_memory=true", "oip.uploads=REPOSITORY")


@pytest.fixture(scope="session")
def closed_server(start):
    """Models come and go, but neither shared memory nor uploads are on: the default."""
    return start("closed", repositories.changing)


@pytest.fixture(params=["grpc", "rest"])
def shm(request, open_server):
    """Registers regions of shared memory through one of the doors."""
    # Not above: it brings Triton's definitions, beside which a process can have no other client's.
    from shared_memory import DOORS

    door = DOORS[request.param](open_server)
    yield door
    door.unregister()


@pytest.fixture
def region(shm):
    """A registered region of SIZE bytes; its path."""
    from regions import shared
    from shared_memory import SIZE

    with shared(SIZE) as path:
        shm.register("region", f"/{path.name}", SIZE)
        yield path


@pytest.fixture(scope="session")
def messages(tmp_path_factory):
    """Message classes of a .proto file, in a pool of their own: `messages("proto", "a/b.proto")("package.Message")`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    made = {}

    def load(folder, file):
        if (folder, file) in made:
            return made[folder, file]
        out = tmp_path_factory.mktemp("protos") / "set"
        # The other Python's: of this one no compiler is asked for that suits its clients' protobuf.
        command = [os.environ["WIRE_PYTHON"], "-m", "grpc_tools.protoc", f"-I{ROOT / folder}", "--include_imports"]
        subprocess.run([*command, f"--descriptor_set_out={out}", file], check=True)
        pool = descriptor_pool.DescriptorPool()
        for each in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file:
            pool.AddSerializedFile(each.SerializeToString())
        made[folder, file] = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        return made[folder, file]

    return load
