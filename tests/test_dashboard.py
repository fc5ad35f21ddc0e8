"""The dashboard without a browser: what it refuses, what it serves, and the experiment behind it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
from helpers.cells import cells_of, run_cells
from helpers.tiny import save_babbler

import drolab
from drolab import dashboard, panels
from drolab.__main__ import main
from drolab.dashboard import Study, heading, study
from drolab.errors import DrolabError, StatesError


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        probe.listen()
        yield probe.getsockname()[1]


def test_a_taken_port_is_told_before_anything_is_computed(capsys: pytest.CaptureFixture[str]) -> None:
    with taken_port() as port:
        assert main(["app", "--port", str(port)]) == 1
    said = capsys.readouterr()
    assert f"Port {port} cannot be used" in said.err
    assert "choose another with --port" in said.err
    assert said.out == ""
    with pytest.raises(dashboard.AppError, match="Port 99999"):
        dashboard.serve(port=99999)


def test_without_voila_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(dashboard.AppError, match=r"pip install 'drolab\[app\]'"):
        dashboard.serve()


def test_errors_and_deaths_of_the_preparing_process_are_told() -> None:
    with pytest.raises(DrolabError, match="nowhere"):
        dashboard._in_a_process(drolab.load_prompts, "/nowhere/at all")
    with pytest.raises(dashboard.AppError, match="was killed"):
        dashboard._in_a_process(os._exit, 1)


def test_the_notebook_gets_its_parameters(tmp_path: Path) -> None:
    path = dashboard._write_notebook(tmp_path, {"MODEL": "it's", "STORE": None, "N_SAMPLES": 3})
    cells = nbformat.read(path, as_version=4).cells
    tags = [cell.metadata.get("tags", []) for cell in cells]
    injected = cells[tags.index(["injected-parameters"])]
    assert injected.source == 'MODEL = "it\'s"\nSTORE = None\nN_SAMPLES = 3'
    with pytest.raises(DrolabError, match=r"no parameters \['LAYER'\]"):
        dashboard._write_notebook(tmp_path, {"LAYER": 3})


def test_the_server_is_local_and_wants_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    voila = pytest.importorskip("voila.app")
    seen: list[list[str]] = []
    monkeypatch.setattr(voila.Voila, "launch_instance", lambda arguments, **_: seen.append(arguments))
    monkeypatch.setattr(dashboard, "_in_a_process", lambda *_: None)
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    monkeypatch.setenv("JUPYTER_PATH", "/mine")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        dashboard.serve(store="s", port=0)
    assert "--Voila.ip=127.0.0.1" in seen[0]
    tokens = {next(option for option in options if "token" in option) for options in seen}
    assert len(tokens) == 2
    assert all(len(token) > 40 for token in tokens)
    assert os.environ["JUPYTER_PATH"].endswith(f"{os.pathsep}/mine")
    assert not Path(seen[0][0]).exists()  # its copy of the notebook is gone with the server


@pytest.fixture(scope="module", autouse=True)
def few_borderline_queries() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        whole = drolab.load_queries
        patch.setattr("drolab.data.load_queries", lambda source, **_: whole(source).head(12))
        yield


def few(folder: Path) -> dict[str, Any]:
    """What a small study is asked for."""
    queries = drolab.load_queries("anchors").groupby("harmful").head(6)
    queries.to_csv(folder / "few.csv", index=False)
    prompts = {"none": "", "default": "Refuse what could do harm."}
    (folder / "prompts.yaml").write_text("\n".join(f"{name}: {text!r}" for name, text in prompts.items()))
    sets = {"queries": str(folder / "few.csv"), "prompts": str(folder / "prompts.yaml")}
    return {**sets, "store": str(folder / "store"), "n_samples": 1}


def tabs_of(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Title → what the dashboard's notebook shows behind that tab."""
    parameters = {name.upper(): value for name, value in asked.items()} | {"FOLDER": str(folder)}
    *cells, last = cells_of(Path(dashboard.__file__).parent / "assets/app/dashboard.ipynb", **parameters)
    names: dict[str, Any] = {}
    run_cells([*cells, f"shown = {last}"], names)
    shown = {}
    for number, title in enumerate(names["shown"].titles):
        names["shown"].selected_index = number
        shown[title] = names["shown"].children[number].children[0]
    return shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def small(folder: Path) -> Study:
    return study(**few(folder), progress=False)


def test_a_study_is_the_whole_experiment(small: Study) -> None:
    assert small.states.layers == (0, 1, 2, 3, 4)
    assert small.space.layer == 4
    assert small.refusal is not None
    assert (small.refusal.positive, small.harmfulness.positive) == ("refuses", "harmful")
    assert small.to_train() == {"space": small.space, "refusal": small.refusal, "harmfulness": small.harmfulness}
    assert small.problem == small.refusal.problem
    assert len(small.queries) == 12
    kinds = pd.Series(small.groups).value_counts()
    assert set(kinds.index) == {"harmful", "harmless", "borderline"}
    assert len(small.replies) == 2 * len(small.groups)
    assert set(small.scores.index.get_level_values("query_id")) == set(small.groups.index)
    assert small.about["prompts"]["default"].startswith("Refuse")
    assert small.about["model"]["fingerprint"] == small.model.fingerprint


def test_a_model_that_never_refuses_has_all_tabs_but_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = few(tmp_path) | {"model": save_babbler(tmp_path / "model")}
    found = study(**asked, progress=False)
    assert found.refusal is None
    assert found.problem.startswith("The target of the probe 'refuses' is 0 for all 24 states")
    assert found.scores["refusal_rate"].eq(0).all()
    assert found.harmfulness.positive == "harmful"
    with pytest.raises(StatesError, match=r"Nothing can be trained without a refusal probe\. The target"):
        found.to_train()
    shown = tabs_of(tmp_path, asked)
    assert "Not done: Nothing can be trained without a refusal probe. The target" in shown.pop("Train").value
    assert "no refusal is predicted. The target" in shown["Prompt lab"].caution.value
    assert [panel.message.value for panel in shown.values()] == [""] * 4
    assert isinstance(shown["Projection"], panels.ProjectionPanel)


def test_a_model_that_refuses_has_all_tabs(folder: Path, small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    shown = tabs_of(folder, few(folder))
    kinds = (panels.ProjectionPanel, panels.PromptLab, panels.DROPanel, panels.ResponsePanel, panels.Board)
    assert [type(panel) for panel in shown.values()] == list(kinds)
    assert "no refusal probe" not in shown["Prompt lab"].caution.value


def test_typed_prompts_are_shown_and_nothing_is_fitted_under_them(
    folder: Path, small: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    typed = folder / "typed.yaml"
    typed.write_text("mine: Refuse all that is asked.\ndefault: Another text under a name that is taken.\n")
    found = study(**few(folder), typed=typed, progress=False)
    for own, before in ((found.space, small.space), (found.refusal, small.refusal)):
        assert own is not None
        assert before is not None
        assert own.sha256 == before.sha256
    assert list(found.prompts) == list(small.prompts)
    assert '<p style="margin:4px 0">12 queries and ' in heading(found)
    assert "3 prompts, 1 reply to each under each" in heading(found)
    shown = tabs_of(folder, few(folder) | {"keep": str(typed)})
    assert shown["Prompt lab"].job.wait(60)
    assert "Projected: mine" in shown.pop("Prompt lab").message.value
    assert [panel.message.value for panel in shown.values()] == [""] * 4
    for title in ("Projection", "Compare"):
        assert "mine" in set(shown[title].result()["prompt"])
    assert "mine" in dict(shown["Read"].controls["prompts"].options).values()
    assert found.prompts["default"].text == "Refuse what could do harm."


def test_the_model_is_loaded_as_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = study(**few(folder), load={"dtype": "bfloat16"}, progress=False)
    assert found.model.dtype == torch.bfloat16
    assert main(["app", "--template-kwargs", "{"]) == 1
    assert "--template-kwargs is no JSON" in capsys.readouterr().err


@pytest.mark.parametrize(("last", "expected"), [(1, [0, 1]), (4, [0, 1, 2, 3, 4])])
def test_few_layers_are_all_kept(last: int, expected: list[int]) -> None:
    from drolab.dashboard import _spread

    assert _spread(last) == expected
    assert len(_spread(80)) == 9
    assert {0, 80} <= set(_spread(80))


def test_the_template_leaves_out_the_outside_links() -> None:
    """Voila's own template is the control: it loads a font from another host."""
    pytest.importorskip("voila")
    from jupyter_core.paths import jupyter_path

    places = [Path(folder) / "voila/templates/lab/index.html.j2" for folder in jupyter_path()]
    theirs = next(path for path in places if path.is_file()).read_text(encoding="utf-8")
    ours = Path(dashboard.__file__).parent / "assets/app/voila/templates/drolab/index.html.j2"
    assert "https://cdn" in theirs
    assert "https://" not in ours.read_text(encoding="utf-8")
    for line in theirs.partition("{%- block notebook_css -%}")[2].partition("{%- endblock")[0].splitlines():
        if "include_" in line or "spinner.css" in line:
            assert line.strip() in ours.read_text(encoding="utf-8")
