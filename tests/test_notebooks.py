"""Notebooks headless: parameters reach them, failures name notebook and cell."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from helpers.cells import cells_of, run_cells
from helpers.thinkers import save_thinker
from helpers.tiny import save_babbler
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import drolab
from drolab import claims, notebooks
from drolab.__main__ import main
from drolab.errors import DrolabError, ModelError, PromptError, QueryError, StatesError, TooFewError
from drolab.types import HiddenStates

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
MEASURED = re.compile(r"\.\d{2}|(?<![Nn]otebook )\b\d{2,}\b(?! %)")
"""A figure that a run gives: not .5, the AUC of chance, nor 95 % or a notebook's number."""

PARAMETERS = 'OUT = "nowhere"  # folder\nLAYER = -1'


def write(folder: Path, name: str, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    notebook = new_notebook(cells=[new_markdown_cell("# A question?")])
    if parameters is not None:
        notebook.cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells += [new_code_cell(source) for source in cells]
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def outputs(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))


def test_each_runs_in_this_python_with_the_parameters_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "beside.txt").write_text("found")
    code = "import sys\nprint(sys.executable, OUT, LAYER, open('beside.txt').read())"
    paths = [write(tmp_path, "01_a", code), write(tmp_path, "02_b", "print(OUT)", parameters="OUT = ''")]
    written = notebooks.run_notebooks(paths, tmp_path / "out", parameters={"OUT": "a 'b\"", "LAYER": 3})
    assert written == [tmp_path / "out" / "notebooks" / path.name for path in paths]
    assert [outputs(path) for path in written] == [f"{sys.executable} a 'b\" 3 found\n", "a 'b\"\n"]
    assert [outputs(path) for path in paths] == ["", ""]  # the originals are left alone


def test_a_failing_cell_is_named_and_the_copy_kept(tmp_path: Path) -> None:
    paths = [write(tmp_path, "01_bad", "print('before')", "# divide\n1 / 0"), write(tmp_path, "02_next", "1")]
    with pytest.raises(
        notebooks.NotebookError, match=r"01_bad\.ipynb, cell 4 \(# divide\): ZeroDivisionError"
    ) as caught:
        notebooks.run_notebooks(paths, tmp_path / "out")
    copy = tmp_path / "out" / "notebooks" / "01_bad.ipynb"
    assert str(copy) in str(caught.value)
    assert outputs(copy) == "before\n"
    assert not (tmp_path / "out" / "notebooks" / "02_next.ipynb").exists()


def test_notebooks_run_side_by_side_and_end_together(tmp_path: Path) -> None:
    """Each waits for a file that the other writes."""
    wait = (
        "import pathlib, time\nmine, other = pathlib.Path({!r}), pathlib.Path({!r})\nmine.touch()\n"
        "while not other.exists(): time.sleep(0.01)\nprint('met')"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    paths = [write(tmp_path, "01_a", wait.format(a, b)), write(tmp_path, "02_b", wait.format(b, a))]
    done: list[tuple[int, int]] = []
    written = notebooks.run_notebooks(paths, tmp_path / "out", at_once=2, progress=lambda *counts: done.append(counts))
    assert [outputs(path) for path in written] == ["met\n", "met\n"]
    assert done[0] == (0, 4)
    assert done[-1] == (4, 4)


def test_what_runs_beside_a_failing_notebook_ends(tmp_path: Path) -> None:
    began = tmp_path / "began"
    endless = f"import os, pathlib, time\npathlib.Path({str(began)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    fails = f"import pathlib\nf = pathlib.Path({str(began)!r})\nwhile not (f.exists() and f.read_text()): pass\n1 / 0"
    cells = {"01_endless": endless, "02_fails": fails, "03_next": "1"}
    paths, counts = [write(tmp_path, name, cell) for name, cell in cells.items()], [0]
    with pytest.raises(notebooks.NotebookError, match=r"02_fails\.ipynb, cell 3 \(import pathlib\): ZeroDivisionError"):
        notebooks.run_notebooks(paths, tmp_path / "out", at_once=2, progress=lambda done, total: counts.append(done))
    assert counts[-1] <= 3  # both cells of parameters and the one that failed; the endless one was never done
    copies = {path.stem for path in (tmp_path / "out" / "notebooks").iterdir()}
    assert copies == {"01_endless", "02_fails"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(began.read_text()), 0)


def test_ctrl_c_ends_the_run_and_leaves_no_kernel(tmp_path: Path) -> None:
    """A terminal interrupts the whole group."""
    began = [tmp_path / f"{name}.pid" for name in "ab"]
    cell = "import os, pathlib, time\npathlib.Path({!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    paths = [str(write(tmp_path, file.stem, cell.format(str(file)))) for file in began]
    paths.append(str(write(tmp_path, "c", "1")))
    code = "import signal\nfrom drolab import notebooks\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"notebooks.run_notebooks({paths}, {str(tmp_path / 'out')!r}, at_once=2)"
    run = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not all(file.exists() and file.read_text() for file in began):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "Exception" not in said
    for file in began:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
    assert {path.stem for path in (tmp_path / "out" / "notebooks").iterdir()} == {"a", "b"}


def test_a_notebook_ends_where_nothing_is_left_to_measure_and_the_next_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = "from drolab.errors import TooFewError\nprint('before')\nraise TooFewError('Nobody refuses: ask others.')"
    paths = [write(tmp_path, "01_few", few, "print('after')"), write(tmp_path, "02_next", "print('next')")]
    first, second = notebooks.run_notebooks(paths, tmp_path / "out")
    assert (outputs(first), outputs(second)) == ("before\n", "next\n")
    assert "up to cell 3. What follows cannot be tested here: Nobody refuses: ask others." in capsys.readouterr().out
    cells = nbformat.read(first, as_version=4).cells
    (error,) = (out for cell in cells for out in cell.get("outputs", []) if out.output_type == "error")
    assert error.traceback == ["Cannot be tested here: Nobody refuses: ask others."]


def test_a_demo_that_ends_early_writes_its_report_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saves = """import json, pathlib
file = pathlib.Path(OUT, "numbers", f"{NAME}.json")
file.parent.mkdir(parents=True, exist_ok=True)
file.write_text(json.dumps({"title": "A question?", "figures": [], "tables": [], "numbers": {"n": 1}}))"""
    few = "from drolab.errors import TooFewError\nraise TooFewError('Nobody refuses.')"
    for name in notebooks.DEMO_NOTEBOOKS:
        parameters = f"NAME = {name[:2]!r}\nOUT = ''\nSTORE = None"
        write(tmp_path, name, saves, *([few] if name.startswith("04") else []), parameters=parameters)
    (tmp_path / "out" / "numbers").mkdir(parents=True)
    (tmp_path / "out" / "numbers" / "08.json").write_text("{}")  # of an earlier run
    with pytest.raises(notebooks.NotebookError, match=r"04_refusal_direction\.ipynb ended at cell 5, .*see .*out"):
        notebooks.demo(tmp_path / "out", notebooks=tmp_path)
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "out" / "numbers" / "08.json").exists()
    assert "Report: " in capsys.readouterr().out


def test_a_cell_that_takes_too_long_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "01_slow", "import time\ntime.sleep(600)", parameters=None)  # no other cell is too slow
    with pytest.raises(notebooks.NotebookError, match=r"01_slow\.ipynb, cell 2 .*timed out"):
        notebooks.run_notebooks([path], tmp_path / "out", timeout=1)


def test_bad_parameters_are_found_before_anything_runs(tmp_path: Path) -> None:
    paths = [write(tmp_path, "01_good", "1"), write(tmp_path, "02_other", "1", parameters="OUT = ''")]
    with pytest.raises(
        notebooks.NotebookError, match=r"No notebook here has the parameters \['LAIR'\]: they have \['LAYER'"
    ):
        notebooks.run_notebooks(paths, tmp_path / "out", parameters={"LAIR": 1, "LAYER": 1})
    assert not (tmp_path / "out").exists()
    with pytest.raises(notebooks.NotebookError, match="0 cells tagged 'parameters'"):
        notebooks.run_notebooks([write(tmp_path, "03", "1", parameters=None)], tmp_path, parameters={"OUT": "x"})
    with pytest.raises(notebooks.NotebookError, match="Parameter OUT must be a number, text"):
        notebooks.run_notebooks(paths, tmp_path, parameters={"OUT": object()})
    with pytest.raises(notebooks.NotebookError, match="No notebook at"):
        notebooks.run_notebooks([tmp_path / "none.ipynb"], tmp_path)
    with pytest.raises(notebooks.NotebookError, match="at_once must be at least 1, got 0"):
        notebooks.run_notebooks(paths, tmp_path, at_once=0)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["store", "check", "--store", str(tmp_path / "store")]) == 0
    assert "0 files, 0 damaged" in capsys.readouterr().out

    def fail(out: str, *, store: str | None) -> None:
        raise notebooks.NotebookError(f"no {out} {store}: try again.")

    monkeypatch.setattr(notebooks, "demo", fail)
    assert main(["demo", "--out", "here"]) == 1
    assert capsys.readouterr().err == "drolab: no here None: try again.\n"


@pytest.mark.parametrize("name", notebooks.DEMO_NOTEBOOKS)
def test_only_cells_about_the_demo_model_have_its_numbers(name: str) -> None:
    """All other text stands in another model's notebook, too; a run's own numbers are printed by cells. (Those of
    notebook 08 are the release's, and a number may stand beside a link to the page that says where it is from.)"""
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    own = [cell for cell in cells if {"demo", "published"} & {*cell.metadata.get("tags", [])}]
    assert {cell.cell_type for cell in own} <= {"markdown"}
    assert all(cell.source.startswith(("**Answer for the demo model.**", "**Answer for the published")) for cell in own)
    others = [cell for cell in cells if cell not in own]
    said = [line for cell in others if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    said += [text for cell in others if cell.cell_type == "code" for text in sentences(cell.source)]
    found = [line for line in said if MEASURED.search(line) or "demo model" in line]
    assert [line for line in found if "](../docs/" not in line] == []


def sentences(source: str) -> list[str]:
    """The texts in code that are words for people, such as captions."""
    constants = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [node.value for node in constants if isinstance(node.value, str) and len(node.value.split()) > 3]


def test_another_models_notebook_is_without_what_is_said_of_the_demo_model(tmp_path: Path) -> None:
    path = write(tmp_path, "01_a", "print(MODEL)", parameters="MODEL = 'demo'\nOUT = ''")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(1, new_markdown_cell("**Answer for the demo model.** 155.", metadata={"tags": ["demo"]}))
    nbformat.write(notebook, path)

    def said(**parameters: Any) -> list[str]:
        ((_, read),) = notebooks.read_notebooks([path], parameters)
        return [cell.source for cell in read.cells if cell.cell_type == "markdown"]

    assert said(MODEL="org/model") == ["# A question?"]
    for own in ({}, {"MODEL": "demo"}, {"OUT": "out"}):
        assert said(**own) == ["# A question?", "**Answer for the demo model.** 155."]


def test_an_unlabelled_number_is_found() -> None:
    assert MEASURED.search("in the chat shown below, 155 tokens, of which 125 are the prompt")
    assert MEASURED.search("with shuffled labels it falls to .48")
    assert not MEASURED.search("bars are 95 % intervals, notebook 04 asks, layer 0 is at chance: AUC .5")


# a model that never refuses


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Parameters: a model that never refuses, with its folder, a few prompts, and what is kept from one notebook to the
    next."""
    folder = tmp_path_factory.mktemp("babbler")
    (folder / "prompts.yaml").write_text("none: ''\ndefault: Refuse what could do harm.\nmild: Be careful.")
    files = {"MODEL": save_babbler(folder / "model"), "PROMPTS": str(folder / "prompts.yaml")}
    return {**files, "STORE": str(folder / "store"), "OUT": str(folder / "out"), "N_SAMPLES": 1}


def in_turn(
    name: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, n: int = 4, **more: Any
) -> dict[str, Any]:
    """The names that a notebook leaves behind, with n queries of each class and set; `error` is what ended it."""
    every = drolab.load_queries
    monkeypatch.setattr(drolab, "load_queries", lambda name, **_: every(name).groupby("harmful").head(n))
    names: dict[str, Any] = {"error": None}
    try:
        run_cells(cells_of(NOTEBOOKS / f"{name}.ipynb", **asked, **more), names)
    except TooFewError as error:
        names["error"] = error
    return names


def saved(asked: dict[str, Any], name: str) -> dict[str, Any]:
    return json.loads((Path(asked["OUT"]) / "numbers" / f"{name}.json").read_text())


def test_where_none_is_a_system_text_both_baselines_are_shown(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(save_babbler(tmp_path / "model"))
    own = "{% if messages[0].role != 'system' %}You are <b>Rosa</b>, made by Botanics.\n{% endif %}"
    (model / "chat_template.jinja").write_text(own + "{% for m in messages %}{{ m.content }}\n{% endfor %}>")
    given = {name: asked[name] for name in ("PROMPTS",)} | {"MODEL": str(model), "OUT": str(tmp_path)}
    names = in_turn("01_what_the_model_reads", given, monkeypatch)
    assert list(names["batches"]) == ["none", "empty", "default", "mild"]
    found = saved(given, "01")["numbers"]
    assert found["about"]["none"].startswith("`none` is the model's own system text, “You are <b>Rosa</b>")
    assert [row["status"] for row in found["audit"] if row["check"] == "own system text"] == ["note"]


def test_without_refusals_layers_are_swept_and_the_notes_say_why_nothing_turns(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*states: HiddenStates, **settings: Any) -> pd.DataFrame:
        raise StatesError("No map today.")  # a map takes long, and what comes after one that fails is to be seen

    monkeypatch.setattr("drolab.probing.umap_view", broken)
    names = in_turn("03_what_safety_prompts_move", asked, monkeypatch, n=10, NEUTRAL="brief", POSITIONS=(-1,))
    assert names["layers"] == (1, 2)
    found = saved(asked, "03")
    assert found["not_run"] == {"4. Another view: UMAP, for looking only": "No map today."}
    assert set(found["figures"]) == {"03_projection", "03_cosines", "03_harm_by_layer", "03_turn_by_layer"}
    assert "safety prompts turn the states towards refusal cannot be tested here (Only 0 of 20" in found["findings"][-1]


def test_one_safety_prompt_and_few_queries_are_no_end(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing to compare a prompt with, too few queries for folds, for UMAP and for the sweep: the rest is shown."""
    (tmp_path / "one.yaml").write_text("careful: Be careful.")
    few = asked | {"PROMPTS": str(tmp_path / "one.yaml"), "OUT": str(tmp_path)}
    n_samples = few.pop("N_SAMPLES")
    names = in_turn("02_hidden_states", few, monkeypatch, n=3)
    assert names["prompt"].name == "careful"
    second = saved(few, "02")
    assert [heading[:2] for heading in second["not_run"]] == ["3.", "4."]
    assert second["figures"] == ["02_projection"]
    assert second["findings"][0].startswith("Whether harmful and harmless queries can be told apart cannot be tested")
    few["N_SAMPLES"] = n_samples
    in_turn("03_what_safety_prompts_move", few, monkeypatch, n=3, NEUTRAL="brief", POSITIONS=(-1,))
    third = saved(few, "03")
    assert {"2.", "4."} <= {heading[:2] for heading in third["not_run"]}
    assert {"03_projection", "03_cosines"} <= set(third["figures"])
    assert third["findings"][0].startswith("Whether safety prompts move the queries in similar directions cannot be")
    del few["N_SAMPLES"]
    assert in_turn("02_hidden_states", few, monkeypatch, n=1)["panel"] is None
    assert [heading[:2] for heading in saved(few, "02")["not_run"]] == ["2.", "3.", "4."]


def test_without_a_chat_the_audit_says_why(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(save_babbler(tmp_path / "model"))
    refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (model / "chat_template.jinja").write_text(refuses + "{{ m.content }}\n{% endfor %}>")
    given = {"PROMPTS": asked["PROMPTS"], "MODEL": str(model), "OUT": str(tmp_path)}
    names = in_turn("01_what_the_model_reads", given, monkeypatch)
    found = saved(given, "01")
    assert names["panel"] is None
    assert [heading[:2] for heading in found["not_run"]] == ["1.", "2.", "3.", "4."]
    assert found["numbers"]["problems of the template"] > 0
    assert found["findings"][0].startswith("What the model reads cannot be tested here: ")


def test_without_refusals_shifts_are_shown_and_no_direction_is_tried(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = in_turn("04_refusal_direction", asked, monkeypatch, n=10, UNSEEN="cautious", NEUTRAL="brief")
    assert names["error"] is None
    assert "'refuses' is 0 for all 60 states" in capsys.readouterr().out
    assert "difference" not in names
    found = saved(asked, "04")
    assert list(found["not_run"]) == ["5. Does the direction cause refusals?"]
    assert "'refuses' is 0 for all 60 states" in found["not_run"]["5. Does the direction cause refusals?"]
    assert {"04_rates", "04_projection", "04_cosines"} == set(found["figures"])
    assert [row["probe"] for row in found["numbers"]["probes"]] == ["harmfulness"]
    assert found["numbers"]["is it a safety shift?"] == found["numbers"]["cosine with the refusal direction"] == []
    assert {row["prompt"] for row in found["numbers"]["better at telling harm?"]} == {"default"}
    assert [" cannot be tested here: " in sentence for sentence in found["findings"]] == [True, False, True]


def test_without_refusals_nothing_is_trained_and_the_rates_are_kept(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = in_turn("05_train_dro", asked, monkeypatch)
    assert names["error"] is names["panel"] is None
    found = saved(asked, "05")
    assert {row["value"] for row in found["numbers"]["refusal rates"]} == {0.0}
    assert (found["tables"], found["figures"]) == (["05_rates"], [])
    why = "The target of the probe 'refuses' is 0 for all 24 states, so there is nothing to tell apart"
    assert len(found["not_run"]) == 3
    assert all(reason.startswith(why) for reason in found["not_run"].values())
    assert found["findings"][0].startswith(f"Cannot be tested here: {why}")


def test_without_a_gradient_nothing_is_trained_and_the_panel_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*given: Any, **settings: Any) -> None:
        raise ModelError("No gradient comes back through these weights.")

    monkeypatch.setattr(drolab, "train_dro", lost)
    given = {"STORE": str(tmp_path / "store"), "OUT": str(tmp_path), "N_SAMPLES": 2, "MAX_NEW_TOKENS": 8}
    names = in_turn("05_train_dro", given, monkeypatch)
    assert names["error"] is None
    assert set(names["probes"]) == {"space", "refusal", "harmfulness"}
    assert names["panel"] is not None
    assert list(saved(given, "05")["not_run"].values()) == ["No gradient comes back through these weights."] * 3
    in_turn("06_responses", given, monkeypatch)
    assert saved(given, "06")["not_run"] == {"The trained prompt": "No gradient comes back through these weights."}
    assert saved(given, "06")["findings"][0].endswith(
        "no trained prompt. No gradient comes back through these weights."
    )


def test_held_out_queries_that_were_trained_on_are_refused_before_anything_runs(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("06_responses", "07_beyond_the_paper"):
        with pytest.raises(QueryError, match="8 of the queries to test on were used to fit or to train"):
            in_turn(name, asked, monkeypatch, HELDOUT="anchors")


def test_without_refusals_replies_under_the_human_prompts_are_compared(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = in_turn("06_responses", asked, monkeypatch)
    assert names["error"] is None
    assert "'refuses' is 0 for all 24 states" in capsys.readouterr().out
    rates = saved(asked, "06")["numbers"]["refusal rates, held-out"]
    assert {row["prompt"] for row in rates} == {"none", "default"}
    assert {row["group"] for row in rates} == {"harmful", "harmless", "borderline"}
    assert list(saved(asked, "06")["not_run"]) == ["The trained prompt"]
    assert saved(asked, "06")["findings"][0].startswith("Cannot be tested here: there is no trained prompt. The target")


def test_without_refusals_the_verdict_is_reached_and_kept(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = in_turn("07_beyond_the_paper", asked, monkeypatch, OTHERS=(), NEUTRAL="brief")
    assert names["error"] is None
    assert "methods" not in names
    found = saved(asked, "07")
    trained, *directions = found["not_run"]
    assert trained == "The trained prompt"
    assert all(section.startswith("5. ") for section in directions)
    assert found["findings"][0].startswith("It cannot be told: no prompt differs from another in ")
    assert "There is no trained prompt among these: The target of the probe 'refuses' is 0" in found["findings"][2]
    assert {"07_rates", "07_tradeoff", "07_forest"} == set(found["figures"])
    verdicts = pd.DataFrame(found["numbers"]["verdict"]).set_index("claim")
    along, alike = verdicts.loc[claims.ALONG.text], verdicts.loc[claims.ALIKE.text]
    assert along["verdict"] == claims.CANNOT
    assert "There is no refusal probe here. The target of the probe 'refuses' is 0" in along["reason"]
    assert alike["verdict"] in (claims.SUPPORTED, claims.NOT_SUPPORTED, claims.TOO_LITTLE)


def test_models_stand_side_by_side_also_one_that_never_refuses(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notebook 09, with other models than those that must be fetched."""
    models = {"a babbler": asked["MODEL"], "an organism": "demo"}
    given = {name: value for name, value in asked.items() if name != "MODEL"} | {
        "MODELS": models,
        "N_SAMPLES": 2,
        "EPOCHS": 1,
    }
    assert in_turn("09_a_real_model", given, monkeypatch, n=24, NEUTRAL="brief", MAX_NEW_TOKENS=16)["error"] is None
    found = saved(asked, "09")
    assert not found["not_run"]
    babbler, organism, trained = found["findings"]
    assert babbler.startswith("'a babbler' refuses 0.00 [0.00, ")
    assert "Whether they lie along its refusal direction cannot be tested here: The target of the probe" in babbler
    assert "Its refusal logit, fitted without any prompt, rises in both classes of 2 safety prompts under " in organism
    assert trained.startswith("On held-out queries 'an organism' refuses ")
    assert {row["model"] for row in found["numbers"]["similarity"]} == {*models}
    assert {row["model"] for row in found["numbers"]["is it a safety shift?"]} == {"an organism"}


FEW = {"ATTACKS": ("role_play", "small_talk"), "EPOCHS": 1, "N_FORENSICS": 1, "MAX_NEW_TOKENS": 8}


def test_contenders_that_cannot_be_fitted_are_named_and_the_others_compared(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = in_turn("10_contenders", asked, monkeypatch, n=6, GROUPS=("text", "dro", "prompt tuning"), **FEW)
    assert names["error"] is None
    assert list(names["field"]) == ["none", "default", "mild", "vpt-default"]  # there are answers to learn from
    assert list(names["field"].left_out) == ["dro-default"]
    found = saved(asked, "10")
    assert next(iter(found["not_run"])) == "4. Where an attack moves the state"
    standing, undone, cost = found["findings"]
    assert standing == "Against 'default', no difference shows for 'none', 'mild' and 'vpt-default'."
    assert undone.startswith("Of attacks on harmful queries, 'role_play' undoes none of 4 surely; 'small_talk', which")
    assert "'dro-default' could not be fitted: " in cost
    assert {row["decision"] for row in found["numbers"]["board"]} == {"baseline", "no difference shown"}


def test_contenders_of_a_model_that_refuses_are_attacked_and_opened(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**asked, "MODEL": "demo", "N_SAMPLES": 2}
    names = in_turn("10_contenders", given, monkeypatch, n=12, GROUPS=("text", "dro"), **FEW)
    assert names["error"] is None
    found = saved(asked, "10")
    assert not found["not_run"]
    assert {"10_rates", "10_margins", "10_tradeoff"} <= set(found["figures"])
    assert {"10_board", "10_broken", "10_shifts", "10_ability", "10_text", "10_tokens"} <= set(found["tables"])
    assert [row["prompt"] for row in found["numbers"]["board"]] == ["none", "default", "mild", "dro-default"]
    assert "The model's ability is kept under 'none', " in found["findings"][2]


def test_what_a_file_calls_neutral_is_no_safety_prompt_and_any_name_will_do(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names that the notebooks use themselves, as a name or as a part of one, and a start that is a prompt."""
    text = (
        "none: ''\nstern: Do no harm.\nmine: Be careful.\nmy words: Be kind.\noffice: {text: Be brief., kind: neutral}"
    )
    (tmp_path / "mine.yaml").write_text(text)
    own = asked | {"PROMPTS": str(tmp_path / "mine.yaml"), "OUT": str(tmp_path), "NEUTRAL": "brief"}
    monkeypatch.setattr("drolab.probing.umap_view", lambda *_, **__: (_ for _ in ()).throw(StatesError("No map.")))
    names = in_turn("03_what_safety_prompts_move", own, monkeypatch, n=10, POSITIONS=(-1,))
    assert names["safety"] == ["stern", "mine", "my words"]
    assert "office" in names["told"]["controls"]
    among = names["cosines"][~names["control"]]
    assert {name.rsplit(" ", 1)[0] for name in (*among["a"], *among["b"])} == {"stern", "mine", "my words"}
    assert "3 safety prompts are no sample" in saved(own, "03")["findings"][-1]

    names = in_turn("03_what_safety_prompts_move", own, monkeypatch, n=10, POSITIONS=(-1,), BASELINE="stern")
    assert names["safety"] == ["mine", "my words"]
    assert len(saved(own, "03")["findings"]) == 3

    names = in_turn("07_beyond_the_paper", own, monkeypatch, OTHERS=("lawful",))
    assert names["safety"] == ["stern", "mine", "my words", "lawful"]


def test_a_prompt_is_not_compared_with_itself(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of a prompt is asked of another one than the start; layers come in order, whatever the order."""
    few = {name: value for name, value in asked.items() if name != "N_SAMPLES"}
    with pytest.raises(PromptError, match=r"No prompt here is called 'none': there are \['default', 'mild'\]"):
        in_turn("02_hidden_states", few, monkeypatch, PROMPT="none")
    assert in_turn("02_hidden_states", few, monkeypatch, LAYERS=(2, 0.5, 0))["layers"] == (0, 1, 2)
    with pytest.raises(PromptError, match=r"No prompt here is called 'mild': there are \['none', 'default'\]"):
        in_turn("04_refusal_direction", asked, monkeypatch, BASELINE="mild", PROMPT="mild")
    names = in_turn("04_refusal_direction", asked, monkeypatch, UNSEEN="cautious", NEUTRAL="brief", BASELINE="default")
    assert names["prompt"].name == "mild"
    assert len(saved(asked, "04")["findings"]) == 3


# a model that thinks before it answers


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Parameters, as in `asked`."""
    folder = tmp_path_factory.mktemp("thinker")
    (folder / "prompts.yaml").write_text("none: ''\ndefault: Refuse what could do harm.\nmild: Be careful.")
    files = {"MODEL": save_thinker(folder / "model"), "PROMPTS": str(folder / "prompts.yaml")}
    return {**files, "STORE": str(folder / "store"), "OUT": str(folder / "out"), "N_SAMPLES": 1}


def test_the_places_of_a_model_that_thinks_are_shown(thinking: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: thinking[name] for name in ("MODEL", "PROMPTS", "OUT")}
    places = in_turn("01_what_the_model_reads", given, monkeypatch)["places"].set_index("read_at")
    assert places.loc["answer", "adds"] == "\n</think>\n\n"
    assert places.loc["after_thinking", "adds"].endswith("</think>\n")
    assert (Path(given["OUT"]) / "tables" / "01_places.csv").is_file()


def test_directions_at_the_places_are_compared(
    thinking: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = cells_of(NOTEBOOKS / "04_refusal_direction.ipynb", **thinking, READ_AT="after_thinking", PLACES=("reply",))
    last = next(number for number, source in enumerate(cells) if "compare_places" in source)
    every = drolab.load_queries
    monkeypatch.setattr(drolab, "load_queries", lambda name, **_: every(name).groupby("harmful").head(15))
    names: dict[str, Any] = {}
    with pytest.warns(UserWarning, match="end in their reasoning"):
        run_cells(cells[: last + 1], names)
    found = names["compared"]["places"]
    assert len(found) == 4
    own = found[found["fitted_at"] == found["read_at"]]
    assert own["cosine"].round(6).tolist() == [1.0] * 2
    assert names["states"].read_at == "after_thinking"
    assert names["states"].missing
    said = capsys.readouterr().out
    assert "whose thoughts did not end" in said
    assert "ended in their thoughts" in said


# ---------------------------------------------------------------- away from the repository


def drolab_at(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line of the drolab that is installed in a folder, run in there."""
    (site,) = folder.rglob("site-packages")
    command = [sys.executable, "-m", "drolab", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_wheel_brings_the_notebooks_and_never_overwrites_changed_ones(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"  # a build leaves its traces there
    ignored = shutil.ignore_patterns(".*", "out", "build", "*.egg-info", "tests")
    shutil.copytree(NOTEBOOKS.parent, source, ignore=ignored)
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    away = tmp_path / "away"
    subprocess.run([*pip, "install", *offline, "--ignore-installed", "--prefix", str(away), str(wheel)], check=True)
    shutil.rmtree(source)

    copied = drolab_at(away, "notebooks", "mine")
    assert copied.returncode == 0, copied.stderr
    names = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
    assert sorted(path.name for path in (away / "mine").iterdir()) == names
    assert drolab_at(away, "notebooks", "mine").returncode == 0
    (away / "mine" / names[3]).write_text("{}")
    refused = drolab_at(away, "notebooks", "mine")
    assert refused.returncode == 1
    assert f"{names[3]} is there already, and another one: choose another folder" in refused.stderr
    assert (away / "mine" / names[3]).read_text() == "{}"


def test_a_folder_that_cannot_take_the_notebooks_is_told(tmp_path: Path) -> None:
    (tmp_path / "01_what_the_model_reads.ipynb").mkdir()
    for folder in (tmp_path, tmp_path / ("long" * 100)):
        with pytest.raises(notebooks.NotebookError, match=r"cannot take the notebooks .*: choose another folder"):
            notebooks.copy_notebooks(folder)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DrolabError, match="file"):
        notebooks.copy_notebooks(file)
