"""Files that are written whole or not at all, and the temporary ones that a killed writer leaves behind.

A writer holds a shared lock on the folder while its temporary file exists. The system releases it when a process ends,
however it ends: who gets the exclusive lock knows that no temporary file there is in use, whatever the clock says.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drolab.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows: no folder can be locked or flushed, and a file in use cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]


PARTIAL = ".partial"


def write(path: Path, content: bytes) -> None:
    """All of the file under its name, durable, or none of it.

    Raises:
        StoreError: the system refused; what was there before is untouched.
    """
    partial = path.with_name(f".{path.stem[:16]}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path.parent) as folder:
            if folder is not None:
                with suppress(OSError):  # some network folders lock nothing: then `idle` says no
                    fcntl.flock(folder, fcntl.LOCK_SH)
            try:
                with open(partial, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            if folder is not None:
                os.fsync(folder)  # makes the rename itself durable
    except OSError as error:
        raise StoreError(
            f"Cannot write to the store at {path.parent}: {error.strerror or error}. Everything stored before is safe. "
            "Free some space or set DROLAB_CACHE to a folder that can be written, and run the same call again: "
            "it goes on from there."
        ) from error


@contextmanager
def idle(folder: Path) -> Iterator[bool]:
    """Whether nobody writes in `folder`; if so, nobody starts to until the block ends."""
    with _opened(folder) as descriptor:
        if descriptor is None:
            yield True
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of the folder; None where the platform has none."""
    if fcntl is None:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
