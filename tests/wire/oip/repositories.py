"""Model repositories for the tests, made of the sample models and of the small archives in `tests/data/models`."""

import json
import shutil

from server import ROOT

SMALL = ROOT / "tests/data/models"
DIGITS = ROOT / "models/digits"

# Both versions answer; 2 is live, and 1 also goes by a label.
TWO_VERSIONS = """
[versions]
all = true
labels = { first = 1 }
"""

# What `identity.pt` takes here: any number of rows of any length.
ECHO = """
[batching]
max_batch = 16

[[inputs]]
name = "x"
dtype = "FP32"
shape = [-1, -1]

[[outputs]]
name = "y"
dtype = "FP32"
shape = [-1, -1]
"""

BATCHED_ROWS = """
[batching]
max_batch = 16

[[inputs]]
name = "x"
dtype = "FP32"
shape = [-1, 4]

[[outputs]]
name = "y"
dtype = "FP32"
shape = [-1, 4]

[warmup]
shapes = [{ x = [1, 4] }]
"""

LOW_BY_DEFAULT = """
[scheduling]
default_lane = "LOW"
"""


def archive(repository, model, number, source, manifest=None):
    """A version from an archive of `tests/data/models`."""
    folder = repository / model / str(number)
    folder.mkdir(parents=True)
    shutil.copy(source, folder / "model.pt")
    if manifest is not None:
        (repository / model / "model.toml").write_text(manifest)


def samples(repository):
    """digits with both versions loaded, the other steps of read-digits and itself, and tagger."""
    shutil.copytree(DIGITS, repository / "digits")
    with open(repository / "digits/model.toml", "a") as manifest:
        manifest.write(TWO_VERSIONS)
    for model in ("digits-decode", "digits-top", "read-digits", "tagger"):
        shutil.copytree(ROOT / "models" / model, repository / model)


def doors(repository):
    """For tests that change nothing: all samples, and a model for each thing that a door must carry."""
    samples(repository)
    for name in ("identity", "dtype_out", "throws", "half", "bf16", "add_two"):
        shutil.copy(SMALL / f"{name}.pt", repository)
    archive(repository, "echo", 1, SMALL / "identity.pt", ECHO)
    archive(repository, "low", 1, SMALL / "identity.pt", LOW_BY_DEFAULT)


def changing(repository):
    """For tests that load and unload: each has models of its own."""
    samples(repository)
    for model in ("kept", "hers", "his"):
        archive(repository, model, 1, SMALL / "two_versions/1/model.pt")
    archive(repository, "counted", 1, SMALL / "two_versions/2/model.pt", BATCHED_ROWS)
    archive(repository, "failing", 1, SMALL / "throws.pt")
    shutil.copy(SMALL / "add_two.pt", repository)


def fake(repository, **models):
    """Archives of the backend `fake`: model name -> the text of its archive."""
    for model, text in models.items():
        folder = repository / model / "1"
        folder.mkdir(parents=True)
        (folder / "model.pt").write_text(text)


# An archive of the backend `fake` that runs a pass before it is live.
WARM = """
[[inputs]]
name = "x"
dtype = "FP32"
shape = [-1]

[warmup]
shapes = [{ x = [1] }]
"""


def held_load(repository, model, number, gate):
    """A version whose load does not end as long as the file `gate` is there: its warm-up waits for that."""
    folder = repository / model / str(number)
    folder.mkdir(parents=True)
    (folder / "model.pt").write_text(f"scale = {number}.0\nhang_while = {json.dumps(str(gate))}")
    (repository / model / "model.toml").write_text(WARM)
