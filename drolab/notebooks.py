"""The notebooks as one run: each in a kernel of its own, headless and offline, then the report of what they saved."""

from __future__ import annotations

import ast
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drolab import report
from drolab.errors import DrolabError, TooFewError, shown
from drolab.files import expanded, read_text, write_file
from drolab.progress import Bar, Progress, bar, in_words

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager
    from nbformat import NotebookNode


DEMO_NOTEBOOKS = (
    "01_what_the_model_reads",
    "02_hidden_states",
    "03_what_safety_prompts_move",
    "04_refusal_direction",
    "05_train_dro",
    "06_responses",
    "07_beyond_the_paper",
)
_PARAMETERS_TAG = "parameters"
_DEMO_TAG = "demo"
"""Cells that say what the demo model does: another model's notebook is without them."""
_TIMEOUT_S = 900
_DEMO_BEGINS = ("05", "01", "02", "03", "04", "07", "06")
"""The order in which the demo's notebooks begin, two at a time: 05 takes longest to what others wait for."""


class NotebookError(DrolabError, RuntimeError):
    """A notebook cannot be run, or a cell of it failed."""

    ename = ""
    """The name of the exception that a cell raised."""


# ---------------------------------------------------------------- parameters


def parameter_names(notebook: NotebookNode, name: str) -> list[str]:
    """The names that the cell tagged `parameters` assigns.

    Raises:
        NotebookError: there is no such cell, or more than one, or it is no Python.
    """
    cells = [cell for cell in notebook.cells if _PARAMETERS_TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"{name} has {len(cells)} cells tagged 'parameters': tag exactly one.")
    try:
        statements = ast.parse(cells[0].source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotebookError(f"The cell of {name} tagged 'parameters' is no Python ({error}): correct it.") from error
    assigned = [node for node in statements if isinstance(node, ast.Assign)]
    return [target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)]


def inject(notebook: NotebookNode, parameters: Mapping[str, Any], name: str) -> None:
    """Add a cell that sets `parameters`, after the notebook's own.

    Raises:
        NotebookError: a parameter that the notebook does not have, or a value that is no literal.
    """
    import nbformat

    if not parameters:
        return
    known = parameter_names(notebook, name)
    if unknown := sorted(map(str, set(parameters) - set(known))):
        raise NotebookError(f"{name} has no parameters {unknown}: it has {known}.")
    lines = [f"{key} = {_literal(key, value)}" for key, value in parameters.items()]
    cell = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]})
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    place = next(number for number, found in enumerate(tags) if _PARAMETERS_TAG in found)
    notebook.cells.insert(place + 1, cell)


def _literal(key: str, value: Any) -> str:
    try:
        text = repr(str(value) if isinstance(value, Path) else value)
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise NotebookError(f"Parameter {key} must be a number, text, list or the like, got {shown(value)}.") from None
    return text


# ---------------------------------------------------------------- running


def run_notebooks(
    notebooks: Sequence[str | Path],
    out: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    at_once: int = 1,
    timeout: int | None = _TIMEOUT_S,
    expected: Mapping[str, float] | None = None,
    progress: Progress = False,
) -> list[Path]:
    """Run notebooks, each in a fresh kernel of this Python, and keep the executed copies.

    They begin in the order given. The kernel starts in the notebook's own folder and talks over local sockets only. A
    failing notebook is never tried again, and ends the run; but one that finds nothing to measure (a TooFewError) just
    ends there.

    Args:
        out: the copies go to `out/notebooks`, without widget state.
        parameters: values for the cells tagged `parameters`; each notebook gets those of the names that it has. With a
            MODEL that is not the demo model, the copies are without the cells tagged `demo`, which are about that one.
        at_once: how many run at the same time.
        timeout: seconds for one cell; None sets no limit.
        expected: seconds by a notebook's name, as `check_model(model).seconds` has them: said when it begins.
        progress: show a bar of cells; or a callable, see `drolab.progress`, which is called in another thread.

    Raises:
        NotebookError: a notebook is missing, none has such a parameter, or none may run (before anything runs), or a
            cell failed, timed out or lost its kernel. The partly executed copy is written, and the message says where.
    """
    if at_once < 1:
        raise NotebookError(f"at_once must be at least 1, got {at_once}: leave it out to run one after the other.")
    opened = read_notebooks([Path(path) for path in notebooks], parameters or {})
    copies = [Path(out) / "notebooks" / path.name for path, _ in opened]
    cells = [cell for _, notebook in opened for cell in notebook.cells]
    n_cells = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells)
    todo = zip(opened, copies, strict=True)

    async def run_in_turn() -> None:
        for (path, notebook), copy in todo:  # each takes the next that nobody has begun
            started = time.perf_counter()
            if expected and path.stem in expected:
                counted.say(f"{path.stem} begins: expected to take {in_words(expected[path.stem])}")
            ending = await _run(path, notebook, copy, timeout, counted)
            counted.say(f"{path.stem}: {time.perf_counter() - started:.0f} s{ending}")

    async def run_side_by_side() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(run_in_turn())
        except BaseExceptionGroup as failed:  # the others were ended after the first
            raise failed.exceptions[0] from None

    stop: Future[None] = Future()

    async def run_until_stopped() -> None:
        work = asyncio.create_task(run_side_by_side())
        await asyncio.wait([work, asyncio.wrap_future(stop)], return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        await work

    counting = bar(progress, total=n_cells, desc="notebooks", unit="cell")
    # In a thread, since in the main one nbclient takes Ctrl-C for itself, and ends one kernel only.
    with counting as counted, ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(asyncio.run, run_until_stopped()).result()
        except KeyboardInterrupt:
            stop.set_result(None)
            raise
    return copies


def read_notebooks(paths: Sequence[Path], parameters: Mapping[str, Any]) -> list[tuple[Path, NotebookNode]]:
    """Each path with its notebook, parameters set.

    Raises:
        NotebookError: a notebook is missing or none at all, or none of them has such a parameter.
    """
    if missing := [path for path in paths if not path.is_file()]:
        raise NotebookError(f"No notebook at {missing[0]}: run this from a clone of the repository, or give its path.")
    opened = [(path, _read(path)) for path in paths]
    known = {path: set(parameter_names(notebook, path.name)) for path, notebook in opened} if parameters else {}
    everywhere = set().union(*known.values())
    if unknown := sorted(map(str, set(parameters) - everywhere)):
        raise NotebookError(f"No notebook here has the parameters {unknown}: they have {sorted(everywhere)}.")
    for path, notebook in opened:
        own = {key: value for key, value in parameters.items() if key in known[path]}
        inject(notebook, own, path.name)
        if str(parameters.get("MODEL", "demo")) != "demo":
            notebook.cells = [cell for cell in notebook.cells if _DEMO_TAG not in cell.metadata.get("tags", [])]
    return opened


def _read(path: Path) -> NotebookNode:
    import nbformat

    text = read_text(path, NotebookError)
    try:
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat upgrades what looks like an older format, and trips over it in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NotebookError(f"{path} is no notebook ({shown(reason)}): get it again, or save it in Jupyter.") from error
    return notebook


async def _run(path: Path, notebook: NotebookNode, copy: Path, timeout: int | None, counted: Bar) -> str:
    """Where it ended, in words, if it was not at its end, since nothing was left to measure."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    def began(cell: NotebookNode, cell_index: int) -> None:
        counted.note(f"{path.stem}, cell {cell_index + 1}")

    def executed(cell: NotebookNode, cell_index: int, execute_reply: Mapping[str, Any]) -> None:
        counted.update()

    options = {"timeout": timeout, "startup_timeout": _TIMEOUT_S, "store_widget_state": False}
    with _kernel_manager() as manager:
        client = NotebookClient(notebook, km=manager, on_cell_start=began, on_cell_executed=executed, **options)
        quiet = ["--HistoryManager.hist_file=:memory:"]
        try:
            without_bars = {**os.environ, "TQDM_DISABLE": "1"}
            await manager.start_kernel(cwd=str(path.parent.resolve()), extra_arguments=quiet, env=without_bars)
            await client.async_execute()
        except (CellControlSignal, DeadKernelError) as error:
            if getattr(error, "ename", "") == TooFewError.__name__:
                reason = getattr(error, "evalue", "")
                return f", up to cell {_failed_cell(notebook)[0]}. What follows cannot be tested here: {reason}"
            failed = NotebookError(_failure(path, notebook, copy, error))
            failed.ename = getattr(error, "ename", "")
            raise failed from None
        finally:  # a client leaves a kernel that it was given running
            if client.kc is not None:
                client.kc.stop_channels()
            if manager.has_kernel:
                await manager.shutdown_kernel(now=True)
            notebook.metadata.pop("widgets", None)
            write_file(copy, nbformat.writes(notebook))
    return ""


@contextmanager
def _kernel_manager() -> Iterator[AsyncKernelManager]:
    """A kernel of this very Python, whatever kernels Jupyter knows; local sockets instead of TCP where there are."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name=kernel_name, language="python")

    with tempfile.TemporaryDirectory(prefix="drolab-") as folder:  # a short path: sockets allow about 100 characters
        yield AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=ThisPython(),
            transport="tcp" if os.name == "nt" else "ipc",
            connection_file=os.path.join(folder, "kernel.json"),
        )


def _failure(path: Path, notebook: NotebookNode, copy: Path, error: Exception) -> str:
    number, cell = _failed_cell(notebook)
    first = cell.source.strip().splitlines()[0] if cell.source.strip() else "(empty)"
    words = getattr(error, "ename", "") and f"{error.ename}: {error.evalue}"  # type: ignore[attr-defined]
    reason = words or " ".join(str(error).split()) or type(error).__name__
    return (
        f"{path.name}, cell {number} ({first}): {reason}\nThe copy up to there is {copy}: open it, or run the notebook."
    )


def _failed_cell(notebook: NotebookNode) -> tuple[int, NotebookNode]:
    """Number (from 1) and cell: the one with an error, or the last that was started."""
    code = [(number, cell) for number, cell in enumerate(notebook.cells, 1) if cell.cell_type == "code"]
    failed = [item for item in code if any(out.output_type == "error" for out in item[1].outputs)]
    started = [item for item in code if item[1].execution_count or "execution" in item[1].metadata]
    return (failed or started or code)[-1]


# ---------------------------------------------------------------- the demo


def demo(
    out: str | Path = "out/demo",
    *,
    store: str | Path | None = None,
    notebooks: str | Path | None = None,
) -> Path:
    """Run notebooks 01 to 07 on the demo model; write a report, a manifest and the key numbers, and print the answer.

    Args:
        store: the store's folder; None is drolab's usual one.
        notebooks: the folder they are in; None takes those that came with drolab.

    Returns:
        The path of `report.html`.

    Raises:
        NotebookError: there are no notebooks, or one failed; or, when all is written, one ended before its end.
    """
    started = time.perf_counter()
    root = Path(out).resolve()
    folder = Path(notebooks) if notebooks else notebooks_folder()
    parameters = {"OUT": str(root), "STORE": None if store is None else str(Path(store).resolve())}
    in_turn = sorted(DEMO_NOTEBOOKS, key=lambda name: _DEMO_BEGINS.index(name[:2]))
    paths = [folder / f"{name}.ipynb" for name in in_turn]
    for path in (root / "numbers").glob("*.json"):  # of an earlier run: the report shall not take them for this one's
        path.unlink()
    at_once = min(2, os.cpu_count() or 1)
    run_notebooks(paths, root, parameters=parameters, at_once=at_once, progress=True)
    listings = report.collect(root)
    page = report.write_report(root, listings)
    print("", *report.answer(report.decisions(root, listings)), sep="\n")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Report: {page}")
    print(f"Open the notebooks yourself: make lab, or {Path(sys.executable).parent / 'jupyter'} lab {folder}")
    for copy, number, _ in report.ended_early(root):
        raise NotebookError(
            f"{copy.name} ended at cell {number}, for want of something to measure, which the demo model has: see "
            f"{copy}. The report has what was found before."
        )
    return page


def notebooks_folder() -> Path:
    """The folder of drolab's own notebooks: of the repository, or of what was installed from a wheel.

    Raises:
        NotebookError: this installation has none.
    """
    first = f"{DEMO_NOTEBOOKS[0]}.ipynb"
    listed = metadata.files("drolab") or ()
    installed = [Path(str(file.locate())) for file in listed if file.name == first]
    for path in (Path(__file__).parents[1] / "notebooks" / first, *installed):
        if path.is_file():
            return path.parent.resolve()
    raise NotebookError("This installation of drolab has no notebooks: install it again, from a clone or a wheel.")


def copy_notebooks(folder: str | Path) -> list[Path]:
    """Copy drolab's notebooks to a folder, to work on them there.

    Raises:
        NotebookError: one of them is in the folder already, as something else. Nothing is copied then.
    """
    target = expanded(folder, NotebookError)
    contents = {target / path.name: path.read_bytes() for path in sorted(notebooks_folder().glob("[0-9]*.ipynb"))}
    try:
        changed = [path for path, content in contents.items() if path.exists() and path.read_bytes() != content]
    except OSError as error:
        raise NotebookError(f"{target} cannot take the notebooks ({error}): choose another folder.") from error
    if changed:
        raise NotebookError(f"{changed[0]} is there already, and another one: choose another folder, or move it away.")
    return [write_file(path, content) for path, content in contents.items()]
