"""Whether what leaves drolab is the same in other programs: `make interop` builds their environments and runs this.

    DROLAB_INTEROP=.interop .venv/bin/python benchmarks/interop.py [--write]

It runs `tests/interop` and prints what was compared; `--write` puts the table into docs/interop.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "interop.md"
HEAD = """\
# Interop

What leaves drolab ([how](howto/other_programs.md)), compared with what the released programs make of it, each installed
from PyPI into an environment of its own and run without drolab in it (lm-eval and inspect_ai run drolab's model class).
Every row is a test with a control that must differ, in `tests/interop`. This page is written by `make interop`, which
is no part of `make test`; there, the formats alone are tested, with their own readers (`tests/export`).
"""


def run(results: Path) -> list[dict[str, Any]]:
    """The records of tests/interop; those of a failed run end the program."""
    surroundings = os.environ | {"DROLAB_INTEROP_RESULTS": str(results), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interop"]
    if subprocess.run(command, cwd=ROOT, env=surroundings).returncode:
        sys.exit("Something is not the same: nothing is written.")
    found: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
    return found


def page(found: list[dict[str, Any]]) -> str:
    rows = [
        [one["program"], one["what"], one["agreement"], _listed(one["versions"]), f"{one['seconds']:.0f} s"]
        for one in found
    ]
    heads = ["program", "what was compared", "agreement", "versions there", "time"]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    ours = _listed({name: version(name) for name in ("drolab", "torch", "transformers", "peft")})
    made = f"Here: {ours}, Python {platform.python_version()}, {platform.machine()}; one thread, float32."
    spent = sum(one["seconds"] for one in found)
    table = "\n".join(lines)
    return f"{HEAD}\n{table}\n\n{made} All comparisons took {spent:.0f} s, after the environments were built.\n"


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/interop.md")
    arguments = parser.parse_args()
    if not os.environ.get("DROLAB_INTEROP"):
        sys.exit("No environments: run make interop, or set DROLAB_INTEROP to the folder that has them.")
    with TemporaryDirectory() as folder:
        text = page(run(Path(folder) / "results.json"))
    print(text)
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
