"""A repository for the fake backend with a model in each state that a page must be able to show."""

import pathlib

# As long as a name may reasonably be.
LONG = "segmentation-of-the-left-ventricle-in-cardiac-magnetic-resonance-cine-series_v2.experimental"

TENSORS = """
[[inputs]]
name = "in"
dtype = "FP32"
shape = [-1, 2]
[[outputs]]
name = "out"
"""

STEPS = """
[[steps]]
model = "double"
inputs = { x = "in" }
outputs = { output_0 = "twice" }
[[steps]]
model = "add"
inputs = { x = "twice" }
outputs = { output_0 = "out" }
"""

ROLLOUT = """
[rollout]
strategy = "canary"
steps = [10, 50]
promote_after = "1h"
"""


def version(repository: pathlib.Path, model: str, number: int, archive: str) -> None:
    """Puts a version there, whole from its first moment on."""
    (repository / model).mkdir(exist_ok=True)
    unfinished = repository / model / f".{number}"
    unfinished.mkdir()
    (unfinished / "model.pt").write_text(archive)
    unfinished.rename(repository / model / str(number))


def build(repository: pathlib.Path, fleet: int) -> None:
    """The models, and `fleet` more that wait for their first request."""
    repository.mkdir()
    version(repository, "add", 1, "offset = 1.0")
    version(repository, "double", 1, "scale = 2.0")
    version(repository, "broken", 1, "load_error = 'an operator is not known: aten::not_there(Tensor, Tensor, Tensor)'")
    version(repository, "canary", 1, "memory_bytes = 40960")
    (repository / "canary/model.toml").write_text(ROLLOUT)
    version(repository, LONG, 20261122013000, "")
    (repository / LONG / "model.toml").write_text("[versions]\nlabels = { release-candidate = 20261122013000 }\n")
    (repository / "pair").mkdir()
    (repository / "pair/model.toml").write_text(f'description = "Twice, plus one."\n{TENSORS}{STEPS}')
    for number in range(fleet):
        name = f"fleet-{number:03}"
        version(repository, name, 1, "")
        (repository / name / "model.toml").write_text('load = "lazy"\n')
