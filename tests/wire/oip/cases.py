"""Requests to the sample models, with what PyTorch answered to them (`tests/data/`)."""

import dataclasses
import json

import numpy as np

from server import ROOT

DATA = ROOT / "tests/data"
# Of a probability: the goldens were made on another processor.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """One request: inputs and expected outputs by name, in the model's order."""

    id: str
    model: str
    # As a request names it; empty: the live one.
    version: str
    # The number of the version that must have answered.
    used: str
    inputs: dict
    outputs: dict

    def check(self, found, version=None):
        """`found` gives each output by name as an array. `version`: what the answer says."""
        assert version in (None, self.used), f"{self.id}: version {version} answered instead of {self.used}"
        for name, expected in self.outputs.items():
            array = found(name)
            assert array is not None, f"{self.id}: there is no output '{name}'"
            assert list(array.shape) == list(expected.shape), f"{self.id}, {name}: shape {array.shape}"
            far = np.abs(array.astype(np.float64) - expected.astype(np.float64))
            worst = float(far.max()) if far.size else 0.0
            assert worst <= TOLERANCE, f"{self.id}, {name}: {worst} from the golden output"


def images():
    """The held-out digits: FP32 [360, 1, 8, 8], ink from 0 to 1."""
    data = (DATA / "digits/heldout.bin").read_bytes()
    count = int.from_bytes(data[:4], "little")
    rows = np.frombuffer(data[4:], np.uint8).reshape(count, 65)
    return (rows[:, :64].astype(np.float32) / 16).reshape(count, 1, 8, 8)


def golden_digits(version):
    """What that version answers to them: FP32 [360, 10]."""
    return np.frombuffer((DATA / f"digits/golden-{version}.bin").read_bytes(), "<f4").reshape(-1, 10)


def digits(version, first, count):
    used = {"": "2", "first": "1", "stable": "2"}.get(version, version)
    rows = slice(first, first + count)
    return Case(
        f"digits-{version or 'live'}-rows-{count}",
        "digits",
        version,
        used,
        {"image": np.ascontiguousarray(images()[rows])},
        {"probabilities": golden_digits(used)[rows]},
    )


def tagger():
    """One case for each text of the golden file; the first text is empty, so its tensors have no elements."""
    for at, golden in enumerate(json.loads((DATA / "tagger/golden.json").read_text())):
        length = len(golden["tokens"])
        yield Case(
            f"tagger-text-{at}",
            "tagger",
            "",
            "1",
            {"tokens": np.array(golden["tokens"], np.int64), "weights": np.array(golden["weights"], np.float32)},
            {
                "tags": np.array(golden["tags"], np.int64),
                "scores": np.array(golden["scores"], np.float32).reshape(length, 5),
                "total": np.array(golden["total"], np.float32),
            },
        )


DIGITS = [digits("", 0, 1), digits("", 5, 16), digits("1", 40, 3), digits("2", 40, 3)]
LABELS = [digits("first", 7, 2), digits("stable", 7, 2)]
TAGGER = list(tagger())
ALL = DIGITS + LABELS + TAGGER
# One of each model, for what need not be done with all.
ONE = digits("", 100, 2)
TEXT = TAGGER[4]

# Names of datatypes on the wire, as numpy has them; BF16 is not among numpy's.
DTYPES = {
    "BOOL": np.dtype(bool),
    "UINT8": np.dtype(np.uint8),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
WIRE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def wire_name(array):
    return WIRE_NAMES[array.dtype]
