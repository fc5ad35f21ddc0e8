"""What leaves drolab, in the released programs that it leaves for. `make interop` runs this; without their environments
nothing here is collected.

What a program computes is written by a script in `outside/`, which knows nothing of drolab, and compared here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.outside import PLACES

RESULTS = os.environ.get("DROLAB_INTEROP_RESULTS", "")
collect_ignore_glob = [] if PLACES else ["test_*.py"]
found: list[dict[str, Any]] = []


@pytest.fixture
def record() -> Iterator[Any]:
    """Note what was compared, how well it agreed, and with which versions; the time is the test's."""
    begun, own = time.perf_counter(), []

    def note(program: str, what: str, agreement: str, versions: dict[str, str]) -> None:
        own.append({"program": program, "what": what, "agreement": agreement, "versions": versions})

    yield note
    found.extend({**one, "seconds": (time.perf_counter() - begun) / len(own)} for one in own)


def pytest_sessionfinish() -> None:
    if RESULTS and found:
        Path(RESULTS).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
