"""The README's picture, from what `make demo` saved: .venv/bin/python benchmarks/readme_picture.py [out/demo]"""

from __future__ import annotations

import sys
from pathlib import Path

import plotly.io as pio

from drolab import export


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo")
    figure = pio.read_json(out / "figures" / "03_projection.json")
    figure.update_layout(height=520)
    for path in export.save_figure(figure, Path(__file__).parents[1] / "docs", "shift", formats=("png",)):
        print(path)


if __name__ == "__main__":
    main()
