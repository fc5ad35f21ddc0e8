"""`drolab reproduce`: what is planned, what is kept, where it goes on, what it says, and the paper's models."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
from helpers.families import COMMON
from helpers.results import HOSTILE, save_run, verdict_table
from helpers.tiny import byte_tokenizer, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook
from transformers import AutoConfig, AutoModelForCausalLM

import drolab
from drolab import check, published, report, reproduction
from drolab.__main__ import _load_options, _parser, main
from drolab.check import Check, Measured, Speed
from drolab.data import (
    beside_paper,
    find_paper_model,
    load_paper_queries,
    paper_models,
    paper_rates,
    paper_results,
)
from drolab.errors import CloneError, ExportError, ModelError, QueryError, StoreError
from drolab.evidence import claims
from drolab.models import CHAT_FORMATS, memory
from drolab.notebooks import NotebookError, read_notebooks
from drolab.reproduction import NOTEBOOKS, Cut, choose_cut, cuts, left_out, reproduce, sets_of, some_of

SETS = sets_of()
QUICK_SPEED = {"token": 1e-5, "reply": 1e-3, "written": 1e-5, "step": 0.1, "taught": 0.0, "chat_tokens": 30.0}
QUICK_SPEED |= {"slowness": 1.0}


def measured(**changes: Any) -> Measured:
    about = {name: changes.pop(name) for name in ("own_text", "system_as", "trainable") if name in changes}
    speed = Speed(**QUICK_SPEED | changes)
    return Measured(fingerprint="abc", num_hidden_layers=4, speed=speed, load_s=1.0, **about)


# what is planned

SECONDS = st.floats(1e-6, 10.0)


@settings(max_examples=60, deadline=None)
@given(
    token=st.floats(1e-7, 0.1), reply=SECONDS, written=st.floats(1e-6, 1.0), step=st.floats(0.0, 100.0),
    slowness=st.floats(1.0, 20.0), lengths=st.lists(st.integers(1, 64), min_size=1), thought=st.integers(0, 2000),
    quick=st.sampled_from([True, False, None]), trainable=st.booleans(),
)  # fmt: skip
def test_a_quick_plan_fits_an_hour_wherever_the_smallest_does(
    quick: bool | None, trainable: bool, **speed: Any
) -> None:
    model = measured(**speed | {"lengths": tuple(speed["lengths"])}, trainable=trainable)
    totals = [sum(reproduction._seconds(model, SETS, cut).values()) for cut in cuts()]
    assert totals == sorted(totals, reverse=True)
    cut, seconds, why = choose_cut(model, SETS, quick)
    assert ("05_train_dro" in seconds) == trainable
    assert ("10_contenders" in seconds) == (cut == Cut())
    total = sum(seconds.values())
    if quick is False:
        assert cut == Cut()
    elif totals[-1] <= 3240:
        assert total <= 3600
        least = 1 if quick else 0  # a run that is to be quick has no notebook 10
        assert cuts().index(cut) == least or totals[cuts().index(cut) - 1] > 3240  # nothing is left out for nothing
        assert (cut == Cut()) == (quick is None and totals[0] <= 3600)
    elif quick or totals[0] > 3600:
        assert cut == cuts()[-1]
        assert why.startswith("The smallest run in which the claims can still be tested")
        assert "more than an hour" in why


def test_the_smallest_plan_leaves_what_claims_need() -> None:
    smallest = cuts()[-1]
    asked = SETS.cut(smallest, seed=0)
    for name in ("anchors", "heldout"):
        assert asked[name]["harmful"].value_counts().to_dict() == {True: 38, False: 38}
        assert asked[name]["category"].nunique() == 24
    assert SETS.names(smallest) == ["none", "default", "short"]
    assert {name: len(table) for name, table in asked.items()} == SETS.counts(smallest)
    words = " ".join(left_out(smallest, SETS, trainable=False))
    for said in (
        "Notebook 10: DRO beside its rivals",
        "2 replies per",
        "24 tokens",
        "76 of 416 anchors",
        "prompt medium",
        "1 instead of 3",
        "0.09",
        "Notebook 05",
    ):
        assert said in words
    assert left_out(Cut(), SETS, trainable=True) == []
    few = sets_of(demo=True)
    assert not few.is_enough(smallest)
    assert few.counts(cuts()[-2])["heldout"] == 56
    assert choose_cut(measured(reply=20.0), few, quick=True)[0] == cuts()[-2]


def test_what_you_ask_for_is_what_is_cut(tmp_path: Path) -> None:
    SETS.queries["heldout"].head(40).to_csv(tmp_path / "mine.csv", index=False)
    asked = {"N_SAMPLES": 4, "MAX_NEW_TOKENS": 32, "OTHERS": ["lawful"], "HELDOUT": str(tmp_path / "mine.csv")}
    sets = sets_of(asked)
    full, *smaller = cuts(sets.full)
    assert full == Cut(n_samples=4, max_new_tokens=32, others=1)
    assert sets.size(full).heldout == 40
    assert len({full, *smaller}) == 1 + len(smaller)
    assert max(cut.n_samples for cut in smaller) == 4
    assert left_out(full, sets, trainable=True) == []
    assert "3 replies per query and prompt instead of 4." in left_out(full._replace(n_samples=3), sets, trainable=True)


@pytest.mark.parametrize("quick", [True, False, None])
def test_settings_that_were_asked_for_are_not_called_the_notebooks_own(quick: bool | None) -> None:
    why = choose_cut(measured(), sets_of({"N_SAMPLES": 2, "JUDGE": "text judge"}), quick)[2]
    assert "the notebooks' own settings, but for N_SAMPLES, JUDGE" in why


def test_fewer_queries_are_pairs_of_every_category_by_seed() -> None:
    """At the same places of both classes; the built-in sets have there what differs in harm alone."""
    every = drolab.load_queries("heldout")
    some = some_of(every, 0.25, seed=1)
    places = every.groupby(["category", "harmful"]).cumcount()[some.index]
    pairs = pd.DataFrame({"category": some["category"], "place": places, "harmful": some["harmful"]})
    assert (pairs.groupby(["category", "place"])["harmful"].nunique() == 2).all()
    assert list(some.index) == [name for name in every.index if name in set(some.index)]
    assert some_of(every, 0.25, seed=1).equals(some)
    assert not some_of(every, 0.25, seed=2).index.equals(some.index)
    lopsided = pd.concat([every.query("harmful").head(30), every.query("not harmful").head(7)]).assign(category="")
    assert some_of(lopsided, 0.5, seed=0)["harmful"].value_counts().to_dict() == {True: 15, False: 4}


def test_shorter_replies_take_less_as_far_as_they_were_long() -> None:
    speed = Speed(**QUICK_SPEED, lengths=(10, 64))
    assert speed.reply_of(64) == pytest.approx(1e-3)
    assert speed.reply_of(32) == pytest.approx(1e-3 * 42 / 74)
    assert speed.reply_of(128) == pytest.approx(1e-3 * 138 / 74)
    assert Speed(**QUICK_SPEED, thought=936).reply_of(32) == pytest.approx(1e-3 * 968 / 1000)


# a run, on notebooks that only note that they ran

NOTES = """import json, os, pathlib, time
with open(os.path.join(OUT, "ran.txt"), "a") as file:
    file.write(f"{NAME} {MODEL} {N_SAMPLES}\\n")
"""
SAVES = """file = pathlib.Path(OUT, "numbers", f"{NAME}.json")
file.parent.mkdir(parents=True, exist_ok=True)
numbers = {"about": {"model": MODEL, "fingerprint": "abc", "seed": SEED}, "n": N_SAMPLES}
file.write_text(json.dumps({"title": "A question?", "figures": [], "tables": [], "numbers": numbers}))
"""


def write_notebooks(folder: Path, **more: str) -> Path:
    """All eight; `n04="…"` is a cell that notebook 04 has before its last."""
    folder.mkdir()
    for name in NOTEBOOKS:
        own = f"NAME = {name[:2]!r}\nMODEL = OUT = ''\nLOAD = {{}}\nDTYPE = STORE = None\nN_SAMPLES = 10\nSEED = 0"
        own += "\nPRESET = 'default'" if name[:2] == "04" else ""
        own += "\nN_SAMPLES = 5\nGROUPS = ('text', 'dro')\nSUFFIXES = TEXTS = ''" if name[:2] == "10" else ""
        own += "\nQUERIES = 'anchors'" if name[:2] == "02" else "\nBASELINE = 'none'" if name[:2] == "03" else ""
        cells = [new_code_cell(own, metadata={"tags": ["parameters"]}), new_code_cell(NOTES)]
        cells += [new_code_cell(text) for number, text in more.items() if number == f"n{name[:2]}"]
        nbformat.write(new_notebook(cells=[*cells, new_code_cell(SAVES)]), folder / f"{name}.ipynb")
    return folder


def found(name: str, *, load: Any = None, **about: Any) -> Check:
    """What a check would say."""
    rows, nothing = pd.DataFrame(columns=["asked", "status", "found", "do"]), pd.DataFrame()
    return Check(name=name, rows=rows, times=nothing, replies=nothing, measured=measured(**about))


def run_here(paths: list[Path], out: Path, *, parameters: dict[str, Any], **_: Any) -> None:
    """As `run_notebooks`, without kernels."""
    for path, notebook in read_notebooks(paths, parameters):
        names: dict[str, Any] = {}
        (out / "notebooks").mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, out / "notebooks" / path.name)
        try:
            for cell in notebook.cells:
                exec(cell.source, names)
        except Exception as error:
            raise NotebookError(f"{path.name}: {type(error).__name__}: {error}") from error


THREE = tuple(name for name in NOTEBOOKS if name[:2] in ("01", "03", "04"))
Checked = Callable[..., list[str]]


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduction, "run_notebooks", run_here)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take a second each."""
    monkeypatch.setattr(reproduction, "NOTEBOOKS", THREE)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Checked:
    """No check and no loading: `checked(reply=9.0)` says what is found, and returns the names that were checked."""

    def find(fingerprint: str = "abc", **about: Any) -> list[str]:
        names: list[str] = []

        def check(name: str, **_: Any) -> Check:
            names.append(name)
            return found(name, **about)

        monkeypatch.setattr(reproduction, "check_model", check)
        monkeypatch.setattr(reproduction, "_fingerprint", lambda *_: fingerprint)
        return names

    return find


def ran(out: Path) -> list[str]:
    return [line.split()[0] for line in (out / "ran.txt").read_text().splitlines()]


@pytest.mark.usefixtures("three")
def test_a_run_is_checked_planned_run_and_reported_once(tmp_path: Path, checked: Checked, capsys: Any) -> None:
    names, folder, out = checked(), write_notebooks(tmp_path / "notebooks"), tmp_path / "out"
    page = reproduce("demo", out=out, notebooks=folder, seed=3, progress=False)
    assert page == out / "report.html"
    assert ran(out) == ["01", "03", "04"]
    said = capsys.readouterr().out
    assert "A full run, with the notebooks' own settings (it fits an hour)." in said
    assert "all, one after the other" in said
    assert f"Report: {page}" in said
    assert "04_refusal_direction begins: expected to take" in said

    again = reproduce("demo", out=out, notebooks=folder, seed=3, progress=False)
    assert again == page
    assert len(ran(out)) == 3
    assert names == ["demo"]  # the plan is kept
    assert "04_refusal_direction: finished before" in capsys.readouterr().out

    plan = json.loads((out / "plan.json").read_text())
    assert plan["parameters"] == {
        "MODEL": "demo",
        "LOAD": {},
        "DTYPE": None,
        "N_SAMPLES": 10,
        "SEED": 3,
        "OUT": str(out),
        "STORE": None,
        "PRESET": "default",
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["reproduce"]["command"] == shlex.join(
        ["drolab", "reproduce", "demo", "--out", str(out), "--seed", "3"]
    )
    assert "plan.json" in manifest["files"]
    assert "To repeat it" in page.read_text()


@pytest.mark.usefixtures("quickly")
def test_a_quick_run_says_what_it_leaves_out_and_asks_its_own_queries(
    tmp_path: Path, checked: Checked, capsys: Any
) -> None:
    checked(reply=4.0, own_text="You are Rosa.")
    folder, out = write_notebooks(tmp_path / "notebooks"), tmp_path / "out"
    page = reproduce("demo", out=out, notebooks=folder, progress=False)
    said = capsys.readouterr().out
    assert "A quick run, planned for an hour; a full one is expected to take" in said
    assert "Left out: " in said
    plan = json.loads((out / "plan.json").read_text())
    assert sum(plan["expected"].values()) <= 3600
    asked = drolab.load_queries(plan["parameters"]["QUERIES"])
    assert 56 <= len(asked) < 224
    assert set(asked.index) < set(drolab.load_queries("anchors").index)
    assert plan["parameters"]["BASELINE"] == "empty"
    text = page.read_text()
    for sentence in plan["left_out"]:
        assert sentence in text
    assert "Shifts start from an empty system message" in text
    assert json.loads((out / "manifest.json").read_text())["settings"]["reproduce"]["left_out"] == plan["left_out"]


@pytest.mark.usefixtures("quickly")
def test_what_changes_is_run_again_and_what_does_not_is_not(tmp_path: Path, checked: Checked, capsys: Any) -> None:
    names, folder, out = checked(), write_notebooks(tmp_path / "notebooks"), tmp_path / "out"
    given = {"out": out, "notebooks": folder, "progress": False}
    reproduce("demo", **given)
    path = folder / "03_what_safety_prompts_move.ipynb"
    path.write_text(path.read_text().replace("A question?", "Another?"))
    beside = folder / "02_hidden_states.ipynb"
    beside.write_text(beside.read_text().replace('"metadata": {}', '"metadata": {"a": 1}'))  # as Jupyter saves it
    reproduce("demo", **given)
    assert ran(out)[8:] == ["03"]
    (out / "numbers" / "05.json").unlink()
    reproduce("demo", **given)
    assert ran(out)[9:] == ["05"]
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    (moved / "numbers" / "07.json").unlink()
    reproduce("demo", **given | {"out": moved})
    assert ran(moved)[10:] == ["07"]
    assert len(ran(out)) == 10
    assert json.loads((moved / "plan.json").read_text())["parameters"]["OUT"] == str(moved)
    (out / "figures").mkdir()
    (out / "figures" / "05_of_before.html").touch()
    with pytest.raises(ExportError, match="has the report of another run: choose another folder"):
        reproduce("demo", **given, seed=1)
    assert len(ran(out)) == 10
    assert (out / "figures").exists()
    (out / "report.html").unlink()  # it was interrupted
    reproduce("demo", **given, seed=1)
    assert len(ran(out)) == 10 + 8
    assert not (out / "figures").exists()
    assert "has a run of this model with other settings" in capsys.readouterr().out
    (out / "report.html").unlink()
    names = checked(fingerprint="another")
    reproduce("demo", **given, seed=1)
    assert names == ["demo"]
    assert "The model has changed since" in capsys.readouterr().out
    with pytest.raises(ModelError, match="has the run of demo: choose another folder"):
        reproduce("org/other", **given)
    with pytest.raises(ModelError, match="The model has no name: give a hub id"):
        reproduce(" ", **given)
    assert names == ["demo"]


@pytest.mark.usefixtures("quickly")
def test_a_notebook_that_fails_does_not_stop_the_others(tmp_path: Path, checked: Checked) -> None:
    checked()
    folder, out = write_notebooks(tmp_path / "notebooks", n04="raise ValueError('<b>lost</b>')"), tmp_path / "out"
    with pytest.raises(NotebookError, match=r"04_refusal_direction failed \(1 of 8 did\); the report has the rest"):
        reproduce("demo", out=out, notebooks=folder, progress=False)
    assert ran(out) == [name[:2] for name in NOTEBOOKS]
    text = (out / "report.html").read_text()
    assert "Notebook 04_refusal_direction failed: " in text
    assert "<b>lost</b>" not in text
    write_notebooks(tmp_path / "mended")
    reproduce("demo", out=out, notebooks=tmp_path / "mended", progress=False)
    assert ran(out)[8:] == ["04"]
    assert "failed: " not in (out / "report.html").read_text()


@pytest.mark.usefixtures("three")
def test_a_full_store_ends_the_run_and_it_goes_on_from_there(tmp_path: Path, checked: Checked) -> None:
    checked()
    full = tmp_path / "full"
    full.touch()
    cell = (
        f"class StoreError(OSError): pass\nif pathlib.Path({str(full)!r}).exists(): raise StoreError('No space left.')"
    )
    folder, out = write_notebooks(tmp_path / "notebooks", n03=cell), tmp_path / "out"
    with pytest.raises(StoreError, match=r"(?s)StoreError: No space left.*What was done before is kept"):
        reproduce("demo", out=out, notebooks=folder, progress=False)
    assert ran(out) == ["01", "03"]
    full.unlink()
    reproduce("demo", out=out, notebooks=folder, progress=False)
    assert ran(out) == ["01", "03", "03", "04"]


@pytest.mark.usefixtures("three")
def test_a_run_that_was_killed_goes_on(tmp_path: Path, checked: Checked) -> None:
    out, began, go = tmp_path / "out", tmp_path / "began", tmp_path / "go"
    wait = f"pathlib.Path({str(began)!r}).touch()\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.05)"
    folder = write_notebooks(tmp_path / "notebooks", n03=wait)
    code = "import test_reproduce\nfrom drolab import reproduction\nreproduction.check_model = test_reproduce.found\n"
    code += f"reproduction.NOTEBOOKS = {THREE}\n"
    code += f"reproduction.reproduce('demo', out={str(out)!r}, notebooks={str(folder)!r}, progress=False)"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    run = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 300
    while not began.exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    go.touch()
    names = checked()
    reproduce("demo", out=out, notebooks=folder, progress=False)
    assert ran(out) == ["01", "03", "03", "04"]
    assert names == []


@pytest.mark.usefixtures("quickly")
def test_a_model_that_cannot_be_trained_does_the_rest(tmp_path: Path, checked: Checked) -> None:
    checked(trainable=False, step=0.0)
    out = tmp_path / "out"
    page = reproduce("demo", out=out, notebooks=write_notebooks(tmp_path / "notebooks"), progress=False)
    assert ran(out) == ["01", "02", "03", "04", "06", "07", "10"]
    assert json.loads((out / "plan.json").read_text())["parameters"]["GROUPS"] == ["text", "steering"]
    assert "no prompt can be trained for this model" in page.read_text()


@pytest.mark.usefixtures("quickly")
def test_the_board_is_in_a_full_run_with_its_own_samples_unless_others_are_asked_for(
    tmp_path: Path, checked: Checked
) -> None:
    checked()
    given = {"notebooks": write_notebooks(tmp_path / "notebooks"), "progress": False}
    for number, (options, samples) in enumerate(
        (({"quick": False}, "5"), ({"quick": False, "parameters": {"N_SAMPLES": 8}}, "8"), ({"quick": True}, None))
    ):
        out = tmp_path / f"out {number}"
        text = reproduce("demo", out=out, **given, **options).read_text()
        lines = [line.split() for line in (out / "ran.txt").read_text().splitlines()]
        assert [line[2] for line in lines if line[0] == "10"] == ([samples] if samples else [])
        assert ("Left out of a full run: Notebook 10: DRO beside its rivals" in text) == (samples is None)
        assert (out / "numbers" / "10.json").exists() == (samples is not None)
    few, many = (sets_of(asked).size(Cut(n_samples=8)) for asked in ({}, {"N_SAMPLES": 8}))
    assert (few.board_samples, many.board_samples, few.n_samples) == (5, 8, 8)


@pytest.mark.usefixtures("quickly")
def test_what_only_the_board_is_asked_for_ends_no_quick_run(tmp_path: Path, checked: Checked) -> None:
    checked()
    own = {"GROUPS": ["text"], "TEXTS": ["One.", "Two."]}
    given = {"notebooks": write_notebooks(tmp_path / "notebooks"), "progress": False, "parameters": own}
    reproduce("demo", out=tmp_path / "quick", quick=True, **given)
    assert "GROUPS" not in json.loads((tmp_path / "quick" / "plan.json").read_text())["parameters"]
    reproduce("demo", out=tmp_path / "full", quick=False, **given)
    assert "GROUPS = ['text']" in (tmp_path / "full" / "notebooks" / "10_contenders.ipynb").read_text()


# what is refused before anything begins


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    random_llama().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    arguments = ["reproduce", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--chat-template", "chatml"]
    assert main(arguments) == 1
    assert "load it with dtype='bfloat16'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_is_refused_before_a_model_is_checked(tmp_path: Path, checked: Checked) -> None:
    names, folder, file = checked(), write_notebooks(tmp_path / "notebooks"), tmp_path / "file"
    file.write_text("mine")
    for error, wrong in (
        (NotebookError, {"seed": -1}),
        (NotebookError, {"seed": 2**32}),
        (ExportError, {"out": file}),
        (ExportError, {"out": file / "below"}),
        (StoreError, {"store": file}),
    ):
        for models in ("demo", ["demo", "org/other"]):
            with pytest.raises(error, match=r"The seed must be|is a file"):
                reproduce(models, notebooks=folder, progress=False, **{"out": tmp_path / "out", **wrong})
    assert names == []
    assert file.read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_a_wrong_parameter_is_refused_before_anything_runs(tmp_path: Path, checked: Checked) -> None:
    names = checked()
    given = {"out": tmp_path / "out", "notebooks": write_notebooks(tmp_path / "notebooks"), "progress": False}
    with pytest.raises(NotebookError, match="No notebook here has the parameters"):
        reproduce("demo", **given, parameters={"LAIR": 3})
    with pytest.raises(ExportError, match="cannot be kept in a plan"):
        reproduce("demo", **given, parameters={"SEED": object()})
    with pytest.raises(ModelError, match="is none of the paper's models: name one of"):
        reproduce("demo", **given, paper_model="gpt-9")
    with pytest.raises(CloneError, match=r"has no data/custom\.txt, so it is no whole clone"):
        reproduce("demo", **given, paper_code=tmp_path)
    for name, argument in (("OUT", "out"), ("MODEL", "model"), ("DTYPE", "load")):
        with pytest.raises(NotebookError, match=f"{name} is no parameter here: say {argument}=… instead"):
            reproduce("demo", **given, parameters={name: "elsewhere"})
    with pytest.raises(QueryError, match="neither a built-in query set"):
        reproduce("demo", **given, parameters={"QUERIES": "nowhere.csv"})
    with pytest.raises(QueryError, match=r"There is no file nowhere\.json: check the path"):
        reproduce("demo", **given, parameters={"SUFFIXES": "nowhere.json"})
    assert names == []
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quickly")
def test_the_command_that_repeats_a_run_asks_for_the_same(tmp_path: Path, checked: Checked) -> None:
    checked()
    load = {"dtype": torch.float32, "device_map": "cpu", "template_kwargs": {"a b": 1}, "system_as": "first_user"}
    given = {"notebooks": write_notebooks(tmp_path / "notebooks"), "progress": False, "store": tmp_path / "a 'b"}
    reproduce("demo", out=tmp_path / "out", load=load, quick=False, paper_model="Orca-2-7b", seed=5, **given)
    kept = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["reproduce"]
    options = _parser().parse_args(shlex.split(kept["command"])[1:])
    assert _load_options(options) == kept["asked"]["load"] == load | {"dtype": "float32"}
    asked = {name: getattr(options, name) for name in ("paper_model", "store", "seed")}
    assert asked == {name: kept["asked"][name] for name in asked}
    assert (options.models, options.full, options.quick, options.out) == (["demo"], True, False, str(tmp_path / "out"))
    reproduce("demo", out=tmp_path / "out2", parameters={"N_SAMPLES": 2}, **given)
    kept = json.loads((tmp_path / "out2" / "manifest.json").read_text())["settings"]["reproduce"]
    assert kept["command"].startswith("drolab.reproduce('demo', out=")
    assert "parameters={'N_SAMPLES': 2}" in kept["command"]


# several models


@pytest.mark.usefixtures("quickly")
def test_several_models_are_compared_and_one_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = write_notebooks(tmp_path / "notebooks"), tmp_path / "out"

    def some(name: str, **load: Any) -> Check:
        if name == "org/broken":
            raise ModelError("Its weights are cut off: download it again.")
        return found(name)

    monkeypatch.setattr(reproduction, "check_model", some)
    with pytest.raises(NotebookError, match="1 of 3 models did not run to the end"):
        reproduce(["demo", "org/broken", "org/whole"], out=out, notebooks=folder, progress=False)
    text = (out / "compare.html").read_text()
    assert "Its weights are cut off: download it again." in text
    assert text.count("report.html") == 2
    assert len(list(out.glob("*/report.html"))) == 2
    with pytest.raises(ModelError, match="name each once"):
        reproduce(["demo", "demo"], out=out, notebooks=folder)


@pytest.mark.usefixtures("quickly", "three")
def test_a_run_that_was_in_the_folder_is_not_shown_as_another_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = write_notebooks(tmp_path / "notebooks"), tmp_path / "out"
    monkeypatch.setattr(reproduction, "check_model", lambda name, **_: found(name))
    monkeypatch.setattr(reproduction, "_fingerprint", lambda *_: "abc")
    for name in ("a", "b"):
        (tmp_path / name / "same").mkdir(parents=True)
    reproduce([tmp_path / "a" / "same", "demo"], out=out, notebooks=folder, progress=False)
    with pytest.raises(NotebookError, match="1 of 2 models did not run to the end"):
        reproduce([tmp_path / "b" / "same", "demo"], out=out, notebooks=folder, progress=False)
    text = (out / "compare.html").read_text()
    assert "choose another folder" in text
    assert text.count("report.html") == 1  # that of a/same is there, and not linked or shown as that of b/same


def test_shifts_of_models_with_other_baselines_stand_beside_each_other(tmp_path: Path) -> None:
    for name, baselines in (("a", ["none"]), ("b", ["none", "empty"])):
        save_run(tmp_path / name, verdict_table())
        rows = [{"measure": "alike", "baseline": one, "value": 0.5, "low": 0.25, "high": 0.75} for one in baselines]
        listing = {"title": "", "figures": [], "tables": [], "numbers": {"similarity": rows}}
        (tmp_path / name / "numbers" / "03.json").write_text(json.dumps(listing))
    report.write_comparison(tmp_path, [report.Compared(name=name, out=tmp_path / name) for name in "ab"])
    shifts = pd.read_csv(tmp_path / "tables" / "compare_shifts.csv", index_col=0)
    assert shifts.loc["alike (from none)"].tolist() == ["0.500 [0.250, 0.750]"] * 2
    assert shifts.loc["alike (from empty)"].tolist() == ["not measured", "0.500 [0.250, 0.750]"]


def test_the_page_of_several_models_says_what_each_run_says(tmp_path: Path) -> None:
    save_run(tmp_path / "a", verdict_table())
    save_run(tmp_path / "b", verdict_table(claims.CANNOT))
    listing = tmp_path / "a" / "numbers" / "03.json"
    similar = [{"measure": "alike", "value": 0.5, "low": 0.25, "high": 0.75}]
    listing.write_text(json.dumps({"title": "", "figures": [], "tables": [], "numbers": {"similarity": similar}}))
    (tmp_path / "a" / "report.html").write_text("")
    trade = {"decision": "a trade", "gains": "harmful", "losses": "harmless, ability", "harmful": 0.9, "harmless": 0.2}
    listing = {"title": "", "figures": [], "tables": [], "numbers": {"board": [{"prompt": "dro-default"} | trade]}}
    (tmp_path / "a" / "numbers" / "10.json").write_text(json.dumps(listing))
    for name in "ab":
        listing = tmp_path / name / "numbers" / "06.json"
        content = json.loads(listing.read_text())
        content["numbers"]["refusal rates, held-out"] = content["numbers"]["refusal rates"]
        listing.write_text(json.dumps(content))
    models = [
        report.Compared(name=HOSTILE, out=tmp_path / "a"),
        report.Compared(name="b_low", out=tmp_path / "b", error=f"It ended. {HOSTILE}"),
        report.Compared(name="c", error="No weights."),
    ]
    text = report.write_comparison(tmp_path, models).read_text()
    assert "<script>window" not in text
    assert "\u202e" not in text
    assert '<a href="a/report.html">' in text
    table = pd.read_csv(tmp_path / "tables" / "compare_claims.csv", index_col=0)
    assert table.columns[1] == "b_low"
    row = table.loc["safety prompts shift alike, cosine"]
    assert row.tolist() == ["supported: 0.750 [0.625, 0.875]", "cannot be tested here"]
    shifts = pd.read_csv(tmp_path / "tables" / "compare_shifts.csv", index_col=0)
    assert shifts.loc["alike"].tolist() == ["0.500 [0.250, 0.750]", "not measured"]
    board = pd.read_csv(tmp_path / "tables" / "compare_boards.csv", index_col=0)
    assert board.loc["dro-default"].tolist() == [
        "a trade (harmful for harmless, ability): refuses 0.900 of harmful, 0.200 of harmless",
        "not run",
    ]
    prices = pd.read_csv(tmp_path / "tables" / "compare_prices.csv", index_col=0)
    assert prices.loc["default: harmful"].tolist() == ["0.500 [0.400, 0.600]"] * 2
    assert "In sentences" in text
    assert "<h3>b_low</h3>" in text


# the paper's models and numbers


def test_the_papers_numbers_are_the_released_ones(reference: Path) -> None:
    from recipes.paper_results.make import released

    pd.testing.assert_frame_equal(paper_results(), released(reference / "published"), check_dtype=False)
    counts = published.load(reference / "published").counts.query("dataset == 'malicious' and prompt == 'default'")
    ours = paper_rates().query("group == 'harmful'").set_index("prompt")["any"]
    assert ours["default"] == pytest.approx(counts["count"].sum() / counts["n_queries"].sum(), abs=1e-3)


def test_the_papers_models_have_formats_and_results() -> None:
    assert {model.name for model in paper_models()} == set(paper_results()["model"])
    assert {model.chat_template for model in paper_models()} <= set(CHAT_FORMATS)
    with pytest.raises(Exception, match="The paper released nothing of 'demo'"):
        paper_rates("demo")


def test_their_formats_are_those_of_the_reference(reference: Path) -> None:
    golden = json.loads((reference / "templates" / "golden_renderings.json").read_text())
    formats = {name: kind for kind, content in golden.items() for name in content["models"]}
    assert {model.name: model.chat_template for model in paper_models()} == formats


def test_a_model_of_the_paper_is_known_by_its_name(tmp_path: Path) -> None:
    named = find_paper_model("OpenChat/openchat_3.5")
    assert named is not None
    assert named.name == "openchat-3.5"
    assert find_paper_model("someone/Llama-2-7b-chat-hf") is None
    assert find_paper_model(str(tmp_path)) is None
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "lmsys/vicuna-7b-v1.5"}))
    assert find_paper_model(str(tmp_path)).chat_template == "vicuna"  # type: ignore[union-attr]
    assert find_paper_model(str(tmp_path), "Orca-2-7b").chat_template == "chatml"  # type: ignore[union-attr]


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
)


@pytest.mark.usefixtures("quickly", "three")
@pytest.mark.parametrize(
    ("model_type", "id_", "needed", "begins"),
    [
        ("llama", "meta-llama/Llama-2-7b-chat-hf", {"chat_template": "llama-2-chat"}, "<s>[INST] <<SYS>>"),
        ("mistral", "mistralai/Mistral-7B-Instruct-v0.1", {"chat_template": "mistral-instruct"}, "<s>[INST] Be"),
        ("qwen2", "", {"system_as": "first_user"}, "<user>Be"),
    ],
)
def test_a_tiny_model_is_run_as_the_paper_or_its_check_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, id_: str, needed: dict[str, str], begins: str
) -> None:
    monkeypatch.setattr(check, "TRIED_S", 0.0)
    folder, out = tmp_path / "model", tmp_path / "out"
    config = AutoConfig.for_model(model_type, **{**COMMON, "num_key_value_heads": 2, "max_position_embeddings": 2048})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = NO_SYSTEM  # the paper's formats take its place
    tokenizer.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text()) | {"_name_or_path": id_}
    (folder / "config.json").write_text(json.dumps(content))
    given = {"out": out, "notebooks": write_notebooks(tmp_path / "notebooks"), "progress": False}
    text = reproduce(folder, **given, quick=False).read_text()
    plan = json.loads((out / "plan.json").read_text())
    assert plan["load"] == needed
    assert plan["parameters"]["LOAD"] == needed
    assert plan["parameters"]["PRESET"] == ("paper" if id_ else "default")
    model = drolab.load_model(folder, **plan["load"])
    assert model.fingerprint == plan["fingerprint"]
    careful = drolab.SafetyPrompt(name="careful", text="Be careful.")
    assert drolab.chat.render(model, "Why?", careful).text.startswith(begins)
    assert ("is one of the paper" in text) == bool(id_)
    reproduce(folder, **given, quick=False)
    assert ran(out) == ["01", "03", "04"]


def test_the_paper_stands_beside_a_run(tmp_path: Path) -> None:
    rates = [
        {"prompt": prompt, "group": group, "measure": measure, "n_queries": 9, "value": 0.25, "low": 0.125, "high": 0.5}
        for prompt in ("none", "medium", "dro-default", "guardian")
        for group in ("harmful", "harmless", "borderline")
        for measure in ("refusal", "compliance")
    ]
    table = report.beside_paper({"07": {"numbers": {"refusal rates": rates}}}, "vicuna-7b-v1.5")
    assert list(table["prompt"]) == ["none", "medium (released: mistral)", "dro-default", "none", "dro-default"]
    assert list(table["queries"]) == ["harmful"] * 3 + ["harmless"] * 2  # of the test set the subset lacks some
    assert table["here"].tolist()[0] == "0.750 [0.500, 0.875]"
    assert table["here"].tolist()[-1] == "0.250 [0.125, 0.500]"
    vicuna = paper_results().query("model == 'vicuna-7b-v1.5' and dataset == 'malicious'").set_index("prompt")
    assert table["released, in any of 20 replies"].tolist()[1] == vicuna.loc["mistral", "any"]
    assert report.beside_paper({"06": {"numbers": {}}}).empty


def test_contenders_stand_in_the_papers_rows_and_what_was_not_released_stays_empty() -> None:
    fitted = ("none", "default", "medium", "mine", "dro-default", "vpt-default", "vpt-short", "dro-mine")
    fitted += ("dro-default without residual", "dro-default without harmless", "dro-default 10 anchors", "steered")
    groups = ("harmful", "jailbroken", "harmless", "borderline")
    rates = pd.DataFrame([(name, group) for name in fitted for group in groups], columns=["prompt", "group"])
    found = beside_paper(rates.assign(value=0.25, low=0.125, high=0.5)).set_index(["prompt", "group"])
    assert set(found["row"]) == {
        *("no prompt", "human prompt, default", "human prompt, mistral", "DRO, from default", "DRO, from mine"),
        *("vanilla prompt tuning, from default", "vanilla prompt tuning, from short"),
        "DRO, from default, without its residual",
    }
    assert set(found.index.get_level_values("group")) == {"harmful", "jailbroken", "harmless"}
    known = found["any"].notna()
    assert (found["released_as"] != "").equals(known)
    assert not known["dro-default without residual"].any()
    assert not known["dro-mine"].any()
    assert known["vpt-default"].all()
    assert known["vpt-short"].to_dict() == {"harmful": True, "jailbroken": False, "harmless": False}
    gcg = paper_results().query("dataset == 'gcg' and prompt == 'vpt-default'")["any"]
    row = found.loc[("vpt-default", "jailbroken")]
    assert (row["any"], row["any_least"], row["any_most"]) == pytest.approx((gcg.mean(), gcg.min(), gcg.max()))
    assert (row["counted"], row["value"], row["low"], row["high"]) == ("compliance", 0.75, 0.5, 0.875)
    row = found.loc[("none", "harmless")]
    assert (row["counted"], row["value"], row["low"], row["high"]) == ("refusal", 0.25, 0.125, 0.5)
    assert beside_paper(rates.assign(value=0.25, low=0.125, high=0.5, measure="compliance")).empty


def test_the_report_says_what_can_be_compared() -> None:
    run = report.Run(command="drolab", said=[], paper_model="vicuna-7b-v1.5", paper_sets=True)
    assert "vicuna-7b-v1.5" in report.about_beside(run)
    assert "the same queries and prompts" in report.about_beside(run)


def small_clone(folder: Path) -> Path:
    files = {"data/custom.txt": "a", "data/MaliciousInstruct.txt": "b", "data_harmless/custom.txt": "c"}
    for place, letter in {**files, "data_harmless/testset.txt": "d"}.items():
        (folder / "code" / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / "code" / place).write_text("".join(f"How to {letter}{number}?\n" for number in range(20)))
    (folder / "code" / "utils.py").write_text(
        "DEFAULT_SYSTEM_PROMPT = 'Be careful, kind and honest.'\nSHORT_SYSTEM_PROMPT = 'Be careful.'\n"
        "MISTRAL_SYSTEM_PROMPT = 'Be careful and kind.'\n"
    )
    return folder


@pytest.mark.filterwarnings("ignore:.*MaliciousInstruct")
@pytest.mark.usefixtures("quickly")
def test_the_papers_own_queries_and_prompts_come_from_its_code(tmp_path: Path, checked: Checked) -> None:
    checked(reply=20.0)
    clone, folder = small_clone(tmp_path / "clone"), write_notebooks(tmp_path / "notebooks")
    sets = load_paper_queries(clone)
    assert {name: table["harmful"].sum() for name, table in sets.items()} == {"anchors": 20, "heldout": 20}
    out = tmp_path / "out"
    text = reproduce(
        "demo", out=out, notebooks=folder, paper_code=clone, paper_model="Orca-2-7b", progress=False
    ).read_text()
    plan = json.loads((out / "plan.json").read_text())
    assert plan["paper_sets"]
    assert plan["load"] == {"chat_template": "chatml"}
    asked = drolab.load_queries(plan["parameters"]["QUERIES"])
    assert set(asked["text"]) <= set(sets["anchors"]["text"])
    assert "queries and prompts, from the clone of its code" in text
