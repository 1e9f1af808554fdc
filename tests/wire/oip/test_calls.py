"""CALLS.md, which says what is held by which test."""

import pathlib
import re

HERE = pathlib.Path(__file__).parent


def test_every_test_that_is_named_is_there():
    """Each `FILE::TEST` of CALLS.md is a test of that file, and each file of tests that it names is there."""
    text = (HERE / "CALLS.md").read_text()
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", text))
    assert len(named) > 50, named
    assert len(named) == len(set(re.findall(r"`([^`]*::[^`]*)`", text))), "some are written otherwise"
    for file in {*(file for file, _ in named), *re.findall(r"`(test_\w+\.py)`", text)}:
        there = set(re.findall(r"^def (test_\w+)\(", (HERE / file).read_text(), re.MULTILINE))
        missing = {test for of, test in named if of == file} - there
        assert there and not missing, f"{file} has no {missing}"
