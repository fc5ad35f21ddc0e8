"""How long a first user waits: the notebooks of `make demo` from an empty store and from a full one, on an idle machine
and beside busy processes (docs/performance.md, "First contact").

    python benchmarks/first_contact.py               # a quarter of an hour
    python benchmarks/first_contact.py --beside 0

Seconds per notebook and for all of them; two run at a time, so the whole is less than the sum. Leave OMP_NUM_THREADS
unset.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from threads import beside


def seconds(out: Path, store: Path) -> dict[str, float]:
    """What `python -m drolab demo` prints per notebook, and what it took as a process."""
    command = [sys.executable, "-m", "drolab", "demo", "--out", str(out), "--store", str(store)]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    whole = time.perf_counter() - started
    notebooks = re.findall(r"^(\d\d)_\w+: (\d+) s", done.stdout, re.MULTILINE)
    return {**{number: float(took) for number, took in sorted(notebooks)}, "all": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 1], help="so many processes that never rest")
    options = parser.parse_args()
    rows = []
    for others in options.beside:
        with tempfile.TemporaryDirectory() as folder, beside(others):
            for store in ("empty", "full"):
                took = seconds(Path(folder) / "out", Path(folder) / "store")
                rows.append({"busy processes beside it": others, "store": store, **took})
                print(pd.DataFrame(rows).round().to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
