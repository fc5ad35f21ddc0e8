"""The command line: `drolab demo`, `check`, `reproduce`, `notebooks`, `app`, `store …`. It only calls the library."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from drolab import __version__
from drolab.errors import DrolabError, ModelError

if TYPE_CHECKING:
    import pandas as pd

    from drolab.store import Store


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="drolab", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=f"drolab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="run the notebooks on the demo model and write a report")
    demo.add_argument("--out", default="out/demo", help="folder for the results (default: %(default)s)")
    demo.add_argument("--store", help="folder of the store (default: $DROLAB_CACHE or the platform's cache folder)")
    check = commands.add_parser("check", help="say whether a model works here, and how long the notebooks will take")
    check.add_argument("model", help="demo, a hub id, a folder or a .gguf file")
    check.add_argument("--samples", type=int, default=10, help="replies per query and prompt (default: %(default)s)")
    _add_loading(check)
    again = commands.add_parser("reproduce", help="the whole experiment on your model: check, notebooks, report")
    again.add_argument("models", nargs="+", metavar="MODEL", help="demo, a hub id, a folder or a .gguf file")
    size = again.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="what fits an hour here, without notebook 10; it says what it leaves out"
    )
    size.add_argument(
        "--full", action="store_true", help="all, with the notebooks' own settings (without either: if that fits)"
    )
    again.add_argument("--out", help="folder for the results (default: out/ and the model's name, or out/all)")
    again.add_argument("--store", help="folder of the store (default: $DROLAB_CACHE or the platform's cache folder)")
    again.add_argument("--seed", type=int, default=0, help="of sampling and training (default: %(default)s)")
    again.add_argument("--paper-model", metavar="ID", help="which of the paper's models a folder is")
    again.add_argument("--paper-code", metavar="FOLDER", help="a clone of the paper's code: its prompts and queries")
    _add_loading(again)
    copies = commands.add_parser("notebooks", help="copy the notebooks to a folder of yours")
    copies.add_argument("folder", help="made if it is not there; notebooks that you changed are never overwritten")
    app = commands.add_parser("app", help="serve the panels as a dashboard, on this machine only")
    app.add_argument("--model", default="demo", help="demo, a hub id, or a folder (default: %(default)s)")
    app.add_argument("--queries", default="anchors", help="a built-in query set, or a file (default: %(default)s)")
    app.add_argument("--prompts", default="safety", help="a built-in prompt set, or a file (default: %(default)s)")
    app.add_argument("--store", help="folder of the store, for example that of an earlier run")
    app.add_argument("--samples", type=int, default=10, help="replies per query and prompt (default: %(default)s)")
    app.add_argument("--port", type=int, default=8866, help="on 127.0.0.1 (default: %(default)s)")
    _add_loading(app)
    _add_store(commands.add_parser("store", help="look after the store of computed states and responses"))
    return parser


_LOADING = {
    "dtype": "bfloat16, float32 or float16",
    "device_map": "cpu, cuda, or auto for all GPUs",
    "revision": "a commit",
    "chat_template": "the name of a known format, or Jinja text",
    "template_kwargs": "JSON, such as '{\"enable_thinking\": false}'",
    "system_as": "first_user",
}
"""Options of `load_model` that the command line has."""


def _add_loading(parser: argparse.ArgumentParser) -> None:
    for option, text in _LOADING.items():
        names = [f"--{option.replace('_', '-')}", *(["--device"] if option == "device_map" else [])]
        parser.add_argument(*names, help=f"of load_model: {text}")


def _load_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `load_model` is told.

    Raises:
        ModelError: --template-kwargs is no JSON.
    """
    load = {name: value for name in _LOADING if (value := getattr(options, name)) is not None}
    if "template_kwargs" in load:
        try:
            load["template_kwargs"] = json.loads(load["template_kwargs"])
        except ValueError as error:
            raise ModelError(
                f'--template-kwargs is no JSON ({error}): give for example {{"enable_thinking": false}}.'
            ) from None
    return load


def _add_store(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)

    def action(name: str, text: str, **choices: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.add_argument(
            "--store", help="folder of the store (default: $DROLAB_CACHE or the platform's cache folder)"
        )
        if choices:
            added.add_argument("--kind", choices=("tensors", "texts", "runs"), help=f"{choices['verb']} only this kind")
            added.add_argument("--note", help=f"{choices['verb']} only those whose note fits, for example '*llama*'")
        return added

    action("check", "read every file of the store and say what is damaged (then the exit status is 1)")
    listing = action("list", "what is in the store, by kind and note")
    listing.add_argument("--files", action="store_true", help="every file in a line of its own")
    action("size", "how much room the store takes, by kind")
    prune = action(
        "prune", "remove damaged and unfinished files; sound ones only as chosen", verb="remove sound files, and"
    )
    prune.add_argument("--older-than", type=float, metavar="DAYS", help="remove sound files, and only older ones")
    prune.add_argument(
        "--max-size", type=_n_bytes, metavar="SIZE", help="remove the oldest until so much is left: 20GB"
    )
    prune.add_argument("--yes", action="store_true", help="do it; without, only say what would be done")
    export = action("export", "copy what is sound into a new store", verb="copy")
    export.add_argument("target", help="folder of the new store")


def _n_bytes(text: str) -> float:
    found = re.fullmatch(r"([0-9.]+) *([kMGT]?)B?", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give for example 500MB or 20GB")
    return float(found[1]) * 1000 ** " kMGT".index(found[2] or " ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it worked, 1 if not (with the reason on stderr)."""
    options = _parser().parse_args(arguments)
    try:
        commands = {"demo": _demo, "check": _check_model, "reproduce": _reproduce, "notebooks": _notebooks}
        return (commands | {"app": _app, "store": _store})[options.command](options)
    except DrolabError as error:
        print(f"drolab: {error}", file=sys.stderr)
        return 1


def _demo(options: argparse.Namespace) -> int:
    from drolab import notebooks

    notebooks.demo(options.out, store=options.store)
    return 0


def _check_model(options: argparse.Namespace) -> int:
    from drolab.check import check_model

    found = check_model(options.model, load=_load_options(options), n_samples=options.samples)
    print(found)
    return int(bool(found.refused))


def _reproduce(options: argparse.Namespace) -> int:
    from drolab.reproduction import reproduce

    chosen = {name: getattr(options, name) for name in ("out", "store", "seed", "paper_model", "paper_code")}
    quick = True if options.quick else False if options.full else None
    models = options.models if len(options.models) > 1 else options.models[0]
    try:
        reproduce(models, quick=quick, load=_load_options(options), **chosen)
    except KeyboardInterrupt:  # it has said how to go on
        return 130
    return 0


def _notebooks(options: argparse.Namespace) -> int:
    from drolab import notebooks

    copies = notebooks.copy_notebooks(options.folder)
    print(f"{len(copies)} notebooks in {options.folder}: open {copies[0]} in Jupyter.")
    return 0


def _app(options: argparse.Namespace) -> int:
    from drolab import dashboard as app

    chosen = {"queries": options.queries, "prompts": options.prompts, "store": options.store}
    app.serve(options.model, **chosen, load=_load_options(options), n_samples=options.samples, port=options.port)
    return 0


def _store(options: argparse.Namespace) -> int:
    from drolab.store import Store

    actions = {"check": _check, "list": _list, "size": _size, "prune": _prune, "export": _export}
    return actions[options.action](Store(options.store), options)


def _check(store: Store, _: argparse.Namespace) -> int:
    table = store.check()
    n_damaged = table["state"].isin(["damaged", "unreadable"]).sum()
    print(f"{store.folder}: {len(table)} files, {n_damaged} damaged")
    _show(table.loc[table["state"] != "ok", ["file", "kind", "entries", "bytes", "status"]])
    if n_damaged:
        print("Nothing else is lost. What is damaged is computed again; `drolab store prune` clears it away.")
    return int(n_damaged > 0)


def _list(store: Store, options: argparse.Namespace) -> int:
    files = store.files()
    print(f"{store.folder}: {len(files)} files")
    columns = ["kind", "note", "state", "entries", "bytes", "written"]
    if options.files:
        _show(files[["file", *columns]])
    else:
        groups = files.assign(files=1).groupby(["kind", "note", "state"], sort=False)
        _show(groups.agg({"files": "sum", "entries": "sum", "bytes": "sum", "written": "max"}).reset_index())
    return 0


def _size(store: Store, _: argparse.Namespace) -> int:
    files = store.files()
    print(f"{store.folder}: {_human(files['bytes'].sum())} in {len(files)} files")
    groups = files.assign(files=1).groupby("kind", sort=False)
    _show(groups[["files", "entries", "bytes"]].sum().reset_index())
    return 0


def _prune(store: Store, options: argparse.Namespace) -> int:
    from drolab.store import upkeep

    wanted = {"kind": options.kind, "note": options.note, "days": options.older_than}
    choice = upkeep.Choice(**wanted) if any(value is not None for value in wanted.values()) else None
    plan = upkeep.plan_prune(store, choice, max_bytes=options.max_size)
    print(f"{store.folder}: {len(plan)} files to remove, {_human(plan['bytes'].sum())}")
    columns = ["file", "kind", "note", "bytes", "written", "status", "action"]
    if not options.yes:
        _show(plan[columns])
        if len(plan):
            print("Nothing was removed. Add --yes to do it.")
        return 0
    done = upkeep.prune(store, plan)
    _show(done[[*columns[:-1], "done"]])
    return int(any(what.startswith("left") for what in done["done"]))


def _export(store: Store, options: argparse.Namespace) -> int:
    from drolab.store import upkeep

    copied = upkeep.export(store, options.target, upkeep.Choice(kind=options.kind, note=options.note))
    print(f"{options.target}: {copied['entries'].sum()} sound entries of {len(copied)} files copied")
    _show(copied.loc[copied["state"] != "ok", ["file", "kind", "entries", "status"]])
    return 0


def _show(table: pd.DataFrame) -> None:
    """The rows of a table, whole; nothing where there are none."""
    if len(table):
        shown = table.assign(**{name: table[name].dt.strftime("%Y-%m-%d %H:%M") for name in table if name == "written"})
        print(
            shown.to_string(
                index=False, formatters={"bytes": _human, "note": lambda note: note or "(none)"}, max_colwidth=None
            )
        )


def _human(n_bytes: float) -> str:
    power = 0
    while n_bytes >= 1000 and power < 4:
        n_bytes, power = n_bytes / 1000, power + 1
    return f"{n_bytes:.1f} {'kMGT'[power - 1]}B" if power else f"{n_bytes:.0f} B"


if __name__ == "__main__":
    sys.exit(main())
