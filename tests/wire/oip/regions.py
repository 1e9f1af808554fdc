"""Regions of shared memory: files in /dev/shm, made and removed by a test."""

import contextlib
import itertools
import os
import pathlib

FOLDER = pathlib.Path("/dev/shm")
numbers = itertools.count()


def fresh_name():
    """A name that no other process has."""
    return f"torchlane-wire-{os.getpid()}-{next(numbers)}"


@contextlib.contextmanager
def shared(size, content=b""):
    """A region of that many bytes; its path, whose name is the key."""
    path = FOLDER / fresh_name()
    try:
        path.write_bytes(content.ljust(size, b"\0"))
        path.chmod(0o600)
        yield path
    finally:
        path.unlink(missing_ok=True)
