"""From the hand to the screen: how long a panel takes to answer in a real JupyterLab and a real Chromium.

Printed, never asserted. The clock runs in the browser, from the change of a control to the frame after which the
figure or the table shows it. The points are those of `benchmarks/panels.py`; the prompt lab is on the demo model. The
rendering is in software, as on any machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]

from helpers import harness  # noqa: E402

SETUP = f"""import sys; sys.path.insert(0, {str(HERE)!r})
import pandas as pd, drolab
from drolab import panels
from panels import PROMPTS, made_up"""
SMALL, LARGE = (f"plane = panels.projection(anchors=PROMPTS[:4], **made_up({n}))\nplane" for n in (200, 10_000))
READ = """made = made_up(200)
replies = made["replies"].merge(made["states"].index[["query_id", "prompt", "text", "harmful"]])
read = panels.responses(pd.concat([replies.assign(sample=i) for i in range(20)], ignore_index=True))
read"""
LAB = """model, queries = drolab.load_model("demo"), drolab.load_queries("anchors").head(200)
prompts = drolab.load_prompts()
states = drolab.hidden_states(model, queries, prompts, progress=False)
scores = drolab.judge(drolab.generate(model, queries, prompts, n_samples=2, progress=False))
space = drolab.fit_anchors(states, n_components=4)
refusal = drolab.fit_probe(space, states, scores["refusal_rate"], positive="refuses")
lab = panels.prompt_lab(model, queries, prompts=prompts, space=space, refusal=refusal, scores=scores)
lab"""

# Sets a drop-down as a hand does; resolves with the milliseconds until the answer is shown, or after 20 seconds. A
# figure answers when it has been drawn with other places, colours or background: one change may draw it more than once.
_CHANGE = """(select, [value, what]) => new Promise(resolve => {
  const cell = select.closest('.jp-CodeCell'), figure = cell.querySelector('.js-plotly-plot');
  const sign = () => { const {x, marker} = figure._fullData[0];
    return JSON.stringify([figure._fullLayout.paper_bgcolor, x[0], [marker.color].flat()[0], marker.color.length]); };
  if (what === 'figure' && figure.dataset.drawn === undefined)
    figure.on('plotly_afterplot', () => { figure.dataset.drawn = sign(); });
  if (what === 'figure') figure.dataset.drawn = sign();
  const look = () => what === 'figure' ? figure.dataset.drawn : cell.innerText;
  const before = look(), start = performance.now(), passed = () => performance.now() - start;
  const frame = () => look() !== before || passed() > 20000 ? resolve(passed()) : requestAnimationFrame(frame);
  select.value = value; select.dispatchEvent(new Event('change', {bubbles: true}));
  requestAnimationFrame(frame); })"""


def projection(page: Any, source: str, repeats: int) -> dict[str, float]:
    """Median milliseconds of each control of a projection panel."""
    panel = harness.cell(page, source.splitlines()[0])
    panel.locator(".legend").first.wait_for(timeout=120_000)
    page.wait_for_timeout(8000)  # the figure's own first drawings, which must not be taken for an answer
    found = {}
    for name in ("layer", "colour by", "x", "theme"):
        control = panel.get_by_label(name, exact=True)
        values = control.locator("option").evaluate_all("options => options.slice(0, 2).map(option => option.value)")
        if control.input_value() != values[0]:
            control.evaluate(_CHANGE, [values[0], "figure"])
            page.wait_for_timeout(4000)
        found[name] = median(
            page, lambda i, c=control, v=values: c.evaluate(_CHANGE, [v[(i + 1) % 2], "figure"]), repeats
        )
    return found


def responses(page: Any, repeats: int) -> float:
    panel = harness.cell(page, READ.splitlines()[0])
    rows = panel.locator(".widget-select:not(.widget-select-multiple) select")
    values = rows.locator("option").evaluate_all("options => options.map(option => option.value)")
    return median(page, lambda i: rows.evaluate(_CHANGE, [values[i + 1], "words"]), repeats)


def prompt_lab(page: Any, repeats: int) -> float:
    """From the press of Project to the arrow and its cosine, without sampling; another prompt each time."""
    panel = harness.cell(page, LAB.splitlines()[0])
    panel.get_by_label("measure by sampling").uncheck()

    def press(number: int) -> float:
        panel.get_by_label("safety prompt").fill(f"You are assistant number {number}. Refuse what could do harm.")
        panel.get_by_label("name", exact=True).fill(f"own{number}")
        page.wait_for_timeout(500)
        return float(
            harness.button(panel, "Project").evaluate(
                """(button, name) => new Promise(resolve => {
                const cell = button.closest('.jp-CodeCell'), start = performance.now();
                const shown = () => cell.innerText.includes(`Projected: ${name}`)
                  && [...cell.querySelectorAll('.legendtext')].some(entry => entry.textContent === name);
                const frame = () => shown() ? resolve(performance.now() - start) : requestAnimationFrame(frame);
                button.click(); requestAnimationFrame(frame); })""",
                f"own{number}",
            )
        )

    return median(page, press, repeats)


def median(page: Any, once: Callable[[int], float], repeats: int) -> float:
    values = []
    for number in range(repeats):
        values.append(once(number))
        page.wait_for_timeout(1500)
    return statistics.median(values)


def write(path: Path, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (SETUP, *cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def measure(work: Path, address: str, opened: Any, repeats: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for n_points, source in ((1_000, SMALL), (50_000, LARGE)):
        write(work / f"plane{n_points}.ipynb", source)
        with harness.notebook(opened, address, f"plane{n_points}.ipynb") as watched:
            times = projection(watched.page, source, repeats)
            found |= {f"{n_points:,} points, {name}: ms": value for name, value in times.items()}
    write(work / "read.ipynb", READ, LAB)
    with harness.notebook(opened, address, "read.ipynb") as watched:
        found["a row of 1,000 x 20 replies, to its replies: ms"] = responses(watched.page, repeats)
        found["prompt lab, 200 queries, to the arrow: ms"] = prompt_lab(watched.page, repeats)
        watched.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    saved = nbformat.read(work / "read.ipynb", as_version=4)
    found["saved state of that notebook: bytes"] = len(json.dumps(saved.metadata.get("widgets", {}))) + sum(
        len(json.dumps(cell.outputs)) for cell in saved.cells
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "work"
        work.mkdir()
        with harness.jupyterlab(Path(scratch), work) as address, harness.browser() as opened:
            found = measure(work, address, opened, arguments.repeats)
    print(
        f"\n{platform.machine()}, Chromium in software rendering\n\n{pd.Series(found).round(0).astype(int).to_string()}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
