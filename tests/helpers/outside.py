"""Other programs, each in an environment of its own under DROLAB_INTEROP, which `make interop` builds."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

PLACES = os.environ.get("DROLAB_INTEROP", "")
SCRIPTS = Path(__file__).parents[1] / "interop" / "outside"
_ALONE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}


def python(place: str) -> str:
    return str(Path(PLACES) / place / "bin" / "python")


def surroundings() -> dict[str, str]:
    """Without what belongs to this process's own environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, **_ALONE, **_VLLM}


def outside(place: str, script: str, *arguments: object, timeout: float = 900) -> Any:
    """What a script in another environment prints as its last line, as JSON."""
    command = [python(place), str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=surroundings())
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def versions(place: str, *names: str) -> dict[str, str]:
    """Of packages in another environment."""
    code = f"import json, importlib.metadata as m; print(json.dumps({{name: m.version(name) for name in {names!r}}}))"
    done = subprocess.run([python(place), "-c", code], capture_output=True, text=True, check=True, env=surroundings())
    return dict(json.loads(done.stdout))
