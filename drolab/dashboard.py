"""The dashboard: the panels in a browser, served by Voila, on this machine only."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from drolab import export, notebooks
from drolab.errors import DrolabError, StatesError
from drolab.figures import escape
from drolab.files import write_file

if TYPE_CHECKING:
    from drolab.models import ChatModel
    from drolab.store import Store
    from drolab.types import AnchorSpace, HiddenStates, Probe, SafetyPrompt

PORT = 8866
_HOST = "127.0.0.1"
_MOST_LAYERS = 9
_LEFT_OUT = ["@jupyter-notebook/lab-extension"]
"""JupyterLab extensions that are not made for Voila's pages, and fail there, where Notebook is installed, too."""


class AppError(DrolabError, RuntimeError):
    """The dashboard cannot be served."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """The experiment that the dashboard's panels show."""

    model: ChatModel
    store: Store
    queries: pd.DataFrame
    """The query set of the states, the probes and the training."""
    prompts: dict[str, SafetyPrompt]
    """Those that space and probes are fitted under."""
    states: HiddenStates
    """Of `queries`, under these prompts and the typed ones, at up to nine layers, the last one among them."""
    replies: pd.DataFrame
    """RESPONSE_COLUMNS: to `queries` and to the borderline ones."""
    scores: pd.DataFrame
    """What `judge` says of the replies."""
    groups: pd.Series
    """Query id → harmful, harmless or borderline."""
    space: AnchorSpace
    refusal: Probe | None
    """None where the model refuses everywhere or nowhere: the rest can be looked at all the same."""
    harmfulness: Probe
    problem: str
    """Why there is no refusal probe, or why it cannot be trusted; empty if nothing speaks against it."""
    about: dict[str, Any]
    """For the manifests of exports."""

    def to_train(self) -> dict[str, Any]:
        """`space`, `refusal` and `harmfulness`, as training takes them.

        Raises:
            StatesError: there is no refusal probe.
        """
        if self.refusal is None:
            raise StatesError(f"Nothing can be trained without a refusal probe. {self.problem}")
        return {"space": self.space, "refusal": self.refusal, "harmfulness": self.harmfulness}


def study(
    model: str = "demo",
    *,
    queries: str = "anchors",
    prompts: str = "safety",
    typed: str | Path | None = None,
    store: str | Path | None = None,
    load: Mapping[str, Any] | None = None,
    n_samples: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Study:
    """The whole experiment on one model. Only what the store lacks is computed.

    Args:
        model, queries, prompts: as `load_model`, `load_queries` and `load_prompts` take them.
        typed: a file of further prompts, if it is there: shown like the others, but nothing is fitted under them.
        load: more for `load_model`, such as `{"dtype": "bfloat16"}`.
        n_samples: replies per query and prompt.
    """
    # Here, since the server needs none of these, and what it has to say comes seconds sooner.
    from drolab.data import load_prompts, load_queries
    from drolab.evidence import comparison
    from drolab.inference import generate, hidden_states
    from drolab.judges import judge
    from drolab.models import load_model
    from drolab.probing import fit_anchors, fit_probe, try_probe
    from drolab.store import Store

    chat, kept = load_model(model, **(load or {})), Store(store)
    asked, named = load_queries(queries, demo=chat.is_demo), load_prompts(prompts)
    more = load_prompts(typed) if typed is not None and Path(typed).exists() else {}
    shown = {**named, **{name: prompt for name, prompt in more.items() if name not in named}}
    everything = pd.concat([asked, load_queries("borderline", demo=chat.is_demo)]).drop_duplicates("query_id")
    layers = _spread(chat.num_hidden_layers)
    states = hidden_states(chat, asked, shown, layers=layers, store=kept, progress=progress)
    replies = generate(chat, everything, shown, n_samples=n_samples, seed=seed, store=kept, progress=progress)
    scores, fitted = judge(replies), states.select(prompt=list(named))
    space = fit_anchors(fitted, n_components=4)
    refusal, problem = try_probe(space, fitted, scores["refusal_rate"], positive="refuses")
    settings = {"n_samples": n_samples, "layer": space.layer}
    return Study(
        model=chat,
        store=kept,
        queries=asked,
        prompts=named,
        states=states,
        replies=replies,
        scores=scores,
        groups=comparison.query_groups(everything),
        space=space,
        refusal=refusal,
        harmfulness=fit_probe(space, fitted, asked["harmful"], positive="harmful"),
        problem=problem,
        about=export.about(chat, shown, asked, settings, seed),
    )


_HELP = {
    "Projection": "every query under every prompt as a point: hover it to read it, click it to see it under every "
    "prompt, draw a lasso around some, or ask which queries a prompt makes refused.",
    "Prompt lab": "type or paste a safety prompt and press Project: an arrow shows where it moves the queries.",
    "Train": "let DRO train a prompt from one of these; pause, stop, and replay how the queries move.",
    "Read": "the replies side by side, with the words that made a judge call them refusals.",
    "Compare": "which prompt is worth its price: refusals of harmful against those of harmless queries.",
}


def heading(found: Study) -> str:
    """What the page is about and what its tabs are for, as HTML."""
    checked = "" if found.refusal is None or found.refusal.check is None else f"{found.refusal.check.auc:.2f}"
    probe = f"a refusal probe with a cross-validated AUC of {checked}" if checked else "no refusal probe"
    more, each = len(found.groups) - len(found.queries), found.replies.groupby(["query_id", "prompt"]).size().max()
    asked = f"{len(found.queries)} queries{f' and {more} borderline ones' * bool(more)}"
    replies = f"{each} repl{'y' if each == 1 else 'ies'} to each under each"
    counts = f"{asked}, {found.states.index['prompt'].nunique()} prompts, {replies}, {probe}"
    tabs = "".join(f"<li><b>{name}</b>: {what}</li>" for name, what in _HELP.items())
    return (
        f'<h1 style="margin:8px 0 0">drolab: {escape(found.model.name)}</h1><p style="margin:4px 0">{counts}.</p>'
        f"<details><summary>What can I do here?</summary><ul>{tabs}</ul><p>Every tab exports its "
        "figures and tables. Prompts that you type in the lab stay as long as the server runs; after a reload of the "
        "page the other tabs show them, too.</p></details>"
    )


def _spread(last: int) -> list[int]:
    """Layers from the embeddings (0) to the last, all of them or as many as a drop-down can take."""
    steps = min(last, _MOST_LAYERS - 1)
    return sorted({round(last * step / steps) for step in range(steps + 1)})


def serve(
    model: str = "demo",
    *,
    queries: str = "anchors",
    prompts: str = "safety",
    store: str | Path | None = None,
    load: Mapping[str, Any] | None = None,
    n_samples: int = 10,
    port: int = PORT,
) -> None:
    """Fill the store, then serve the dashboard until Ctrl-C. Exports go to folders below the present one.

    The server listens on 127.0.0.1 only and wants a token ($JUPYTER_TOKEN, or a new one that is printed), since
    every view starts a kernel, which loads the model.

    Args:
        model: a hub id or a folder, or `demo`.
        queries, prompts: a built-in set, or a file.
        load: more for `load_model`, such as `{"dtype": "bfloat16"}`.
        n_samples: replies per query and prompt.

    Raises:
        AppError: Voila is not installed, the port is taken, or the model's process was killed.
    """
    if importlib.util.find_spec("voila") is None:
        raise AppError("The dashboard needs Voila: pip install 'drolab[app]' (make app does it).")
    _check_port(port)
    folder = None if store is None else str(Path(store).resolve())
    print(f"Preparing {model!r}: what the store lacks is computed, once.", flush=True)
    chosen = {
        "MODEL": model,
        "LOAD": dict(load or {}),
        "QUERIES": queries,
        "PROMPTS": prompts,
        "STORE": folder,
        "N_SAMPLES": n_samples,
    }
    _in_a_process(_fill_store, chosen)
    with tempfile.TemporaryDirectory(prefix="drolab-app-") as scratch:
        kept = str(Path(scratch) / "prompts.yaml")  # typed prompts are there again after a reload
        notebook = _write_notebook(Path(scratch), {**chosen, "FOLDER": os.getcwd(), "KEEP": kept})
        token = os.environ.get("JUPYTER_TOKEN") or secrets.token_urlsafe(24)
        print(
            f"Dashboard: http://{_HOST}:{port}/?token={token}\nEach view starts a kernel. Ctrl-C ends it.", flush=True
        )
        _run_voila(notebook, port, token)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            raise AppError(f"Port {port} cannot be used ({error}): choose another with --port.") from None


def _in_a_process(work: Any, *arguments: Any) -> None:
    """In a process that ends before the views' kernels start: they need its memory for the model, on a GPU as well."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            raise AppError("The process with the model was killed, most often for memory: try a smaller one.") from None


def _fill_store(chosen: Mapping[str, Any]) -> None:
    study(**{name.lower(): value for name, value in chosen.items()})


def _write_notebook(folder: Path, parameters: Mapping[str, Any]) -> Path:
    import nbformat

    source = resources.files("drolab") / "assets" / "app" / "dashboard.ipynb"
    notebook = nbformat.reads(source.read_text(encoding="utf-8"), as_version=4)
    notebooks.inject(notebook, parameters, "dashboard.ipynb")
    notebook.metadata["title"] = f"drolab: {parameters['MODEL']}"  # of the browser's tab
    return write_file(folder / "dashboard.ipynb", nbformat.writes(notebook))


def _run_voila(notebook: Path, port: int, token: str) -> None:
    """In this process, so that a signal that ends it ends the server and its kernels."""
    from traitlets.config import Config
    from voila.app import Voila

    # As arguments, so that no configuration file of the user's opens the server to others.
    settings = {
        "Voila.ip": _HOST,
        "Voila.port": port,
        "Voila.port_retries": 0,
        "Voila.token": token,
        "Voila.open_browser": False,
        "Voila.log_level": "ERROR",
        "VoilaConfiguration.template": "drolab",
        "VoilaConfiguration.allow_template_override": "NO",
        "KernelManager.transport": "tcp" if os.name == "nt" else "ipc",
        "MappingKernelManager.cull_idle_timeout": 600,  # of views that were closed without a word
        "MappingKernelManager.cull_interval": 60,
    }
    with resources.as_file(resources.files("drolab") / "assets" / "app") as templates:
        # Jupyter finds templates by this only; the kernels inherit it, and have no use for it.
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(templates), os.environ.get("JUPYTER_PATH")]))
        arguments = [str(notebook), *(f"--{name}={value}" for name, value in settings.items())]
        more = {"prelaunch_hook": _give_cookie, "extension_denylist": _LEFT_OUT}  # no texts
        Voila.launch_instance(arguments, config=Config(VoilaConfiguration=more))


def _give_cookie(request: Any, **_: Any) -> None:
    """Give the page the cookie without which the server refuses its request to end the kernel when it is closed. With
    a token Voila itself does not; reading the property sets the cookie."""
    _ = request.xsrf_token
