"""What `drolab check` says: of the demo model, of one that cannot do something, of what is no model; and its counts."""

from __future__ import annotations

import ast
import json
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import nbformat
import pandas as pd
import pytest
import torch
from helpers.thinkers import thinker
from helpers.tiny import byte_tokenizer, random_llama
from huggingface_hub.errors import GatedRepoError

import drolab
from drolab import attacks, check, dro, notebooks
from drolab.__main__ import main
from drolab.check import Check, check_model
from drolab.errors import ModelError
from drolab.models import ChatModel, memory, wrap

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
)


@pytest.fixture(scope="module")
def checked(demo: ChatModel) -> Check:
    return check_model(demo)


def random_model() -> Any:
    """With room for the prompts in bytes."""
    model = random_llama()
    model.config.max_position_embeddings = 4096
    return model


def row(found: Check, asked: str) -> Any:
    (one,) = found.rows[found.rows["asked"] == asked].itertuples()
    return one


def test_the_demo_model_can_do_everything(checked: Check) -> None:
    assert checked.answer == "Yes."
    assert set(checked.rows["status"]) == {"ok"}
    assert row(checked, "runs a prompt once for all chats").found == "yes"
    assert "13.2 MB weights (float32)" in row(checked, "memory").found
    assert row(checked, "a DRO step").found.endswith("for 50 queries (tried with 50)")
    assert checked.replies["response"].str.len().gt(0).all()
    assert (checked.times["seconds"] > 0).all()


def test_it_reads_as_text(checked: Check, capsys: pytest.CaptureFixture[str]) -> None:
    lines = str(checked).splitlines()
    assert lines[0] == "demo"
    assert lines[-1] == "Yes."
    assert sum(line.startswith("0") for line in lines) == 7
    checked.show()
    assert "expected" in capsys.readouterr().out


def parameters(name: str) -> dict[str, Any]:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assigned = [node for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assigned}


def counts(model: ChatModel, n_samples: int) -> dict[str, check.Work]:
    return check.works(check.usual_size(n_samples, demo=True), num_hidden_layers=model.num_hidden_layers)


def test_the_counts_are_of_these_notebooks(demo: ChatModel) -> None:
    """Each of them, with its own parameters."""
    works = counts(demo, 10)
    assert tuple(works) == (*notebooks.DEMO_NOTEBOOKS, check.BOARD)
    for name, work in works.items():
        found = parameters(name)
        assert not work.replies or found["N_SAMPLES"] == (check.Size.board_samples if name == check.BOARD else 10)
        assert found.get("QUERIES", "anchors") == "anchors"
        assert found.get("HELDOUT", "heldout") == "heldout"
        assert found.get("PROMPTS", "safety") == "safety"
    assert parameters("04_refusal_direction")["N_RANDOM"] == 20
    assert len(parameters("07_beyond_the_paper")["OTHERS"]) == 3
    board = parameters(check.BOARD)
    assert board["MAX_NEW_TOKENS"] == check.Size.board_tokens
    assert board["GROUPS"] == dro.GROUPS
    assert board["ATTACKS"] == tuple(attacks.TEMPLATES)
    fewer = counts(demo, 5)
    assert all(2 * fewer[name].replies == work.replies for name, work in works.items() if name != check.BOARD)
    assert fewer[check.BOARD] == works[check.BOARD]
    assert counts(demo, 1)[check.BOARD].replies * 5 == works[check.BOARD].replies


def test_the_board_counts_its_contenders(demo: ChatModel) -> None:
    """As `fit_contenders` names them: the prompts, ten that DRO or prompt tuning trains, and three that edit states."""
    size = check.usual_size(1, demo=True)
    asked = size.heldout + size.borderline + len(attacks.TEMPLATES) * size.heldout // 2
    found = check.works(size, num_hidden_layers=demo.num_hidden_layers)[check.BOARD]
    assert found.replies == size.anchors * size.prompts + asked * (size.prompts + 10 + 3)
    assert (found.steps, found.tuning) == (9 * 200, 200)


def test_a_step_of_prompt_tuning_takes_longer_than_one_of_dro_as_its_replies_are_long(checked: Check) -> None:
    speed = checked.measured.speed  # type: ignore[union-attr]
    assert 1 < (speed.step + 64 * speed.taught) / speed.step < 10


def test_a_notebook_says_what_it_is_expected_to_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "03_short.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
    notebooks.run_notebooks([path], tmp_path / "out", expected={"03_short": 130.0, "04_other": 1.0})
    assert capsys.readouterr().out.startswith("03_short begins: expected to take 2 min\n03_short: ")


# What it cannot do


def test_a_template_without_a_system_role_is_checked_with_the_setting_that_helps(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    found = check_model(tmp_path, load={"chat_template": NO_SYSTEM})
    assert found.answer.startswith("Yes, with these settings: system_as='first_user'")
    assert len(found.times) == 8


def test_a_model_that_loses_the_gradient_does_all_but_train() -> None:
    class Cut(torch.nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states).detach()

    model = random_model()
    down = model.model.layers[1].mlp.down_proj
    model.model.layers[1].mlp.down_proj = Cut(down.in_features, down.out_features, bias=False)
    found = check_model(wrap(model, byte_tokenizer(), name="cut", chat_template="chatml"))
    assert found.answer.startswith("Yes, with these settings: ")
    assert "Leave notebook 05 out, and with it the trained prompt" in found.answer
    assert found.times[["steps", "tuning"]].iloc[-1].tolist() == [0, 0]  # no contender is trained
    assert "No gradient comes back through" in found.answer
    assert len(found.times) == 8


def test_states_that_are_no_numbers_are_a_no() -> None:
    model = random_model()
    model.model.norm.weight.data[0] = float("nan")
    found = check_model(wrap(model, byte_tokenizer(), name="broken", chat_template="chatml"))
    assert found.answer.startswith("No: ")
    assert "not finite" in found.refused
    assert not len(found.times)
    assert found.rows.iloc[-1]["status"] == "problem"


def test_a_context_too_short_for_the_prompts_is_a_no() -> None:
    found = check_model(wrap(random_llama(), byte_tokenizer(), name="short", chat_template="chatml"))
    assert found.answer.startswith("No: Prompt 'default' has 582 tokens, but 'short' reads at most 512")


def test_long_work_is_advised_to_take_fewer_samples(demo: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    times = pd.DataFrame({"seconds": [90_000.0, 10_000.0]})
    (said,) = check._faster(demo, times, replies_s=80_000.0, n_samples=10)
    assert said == "N_SAMPLES = 2 in the notebooks takes 10.0 h instead of 27.8 h."
    assert not check._faster(demo, times / 10, replies_s=8_000.0, n_samples=10)


def test_a_slow_model_gets_small_trials(demo: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TRIED_S", 0.0)
    found = check_model(demo)
    assert "computed" in row(found, "a DRO step").found
    assert len(found.replies) == 4
    assert found.answer.startswith("Yes")  # on a busy machine with the advice of fewer samples


# What is no model


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["check", *arguments]) == 1
    return capsys.readouterr().err


def test_what_is_no_model_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no folder" in refused([str(tmp_path / "nowhere")], capsys)
    assert "config.json" in refused([str(tmp_path)], capsys)
    random_llama().config.save_pretrained(tmp_path)
    assert "no weights" in refused([str(tmp_path)], capsys)
    assert "--template-kwargs is no JSON" in refused(["demo", "--template-kwargs", "{thinking"], capsys)
    assert "No weights can have dtype 'int7'" in refused(["demo", "--dtype", "int7"], capsys)


def test_without_room_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_llama().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(ModelError, match=r"has 0\.0 GiB free: load it with dtype='bfloat16'"):
        check_model(tmp_path, load={"chat_template": "chatml"})


def test_a_folder_says_its_size(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    found = check_model(tmp_path, load={"chat_template": "chatml", "dtype": "float32"})
    assert f"1 of weights in {tmp_path}" in row(found, "files").found


class Hub:
    """What the hub says of a model of 14 GB."""

    def __init__(self, refuses: Exception | None = None) -> None:
        self.refuses = refuses

    def model_info(self, name: str, **_: Any) -> Any:
        files = [types.SimpleNamespace(rfilename=f"model-{i}.safetensors", size=7_000_000_000) for i in (1, 2)]
        return types.SimpleNamespace(siblings=files, gated="manual" if self.refuses else False)

    def auth_check(self, name: str) -> None:
        if self.refuses:
            raise self.refuses


def test_a_model_of_the_hub_is_not_fetched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(drolab.models, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    assert main(["check", "maker/large-chat"]) == 1
    said = capsys.readouterr().out
    assert "maker/large-chat is on the hub, not here: 2 of weights, 14.00 GB; no licence gate" in said
    assert "`hf download maker/large-chat`" in said


def test_of_an_adapter_both_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    adapter, base = tmp_path / "adapter", tmp_path / "large-chat"
    adapter.mkdir()
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "maker/large-chat"}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    (adapter / "adapter_model.safetensors").write_bytes(bytes(2_300_000))
    found = check_model(adapter)
    assert row(found, "files").found == f"an adapter in {adapter}, 2.3 MB"
    assert "maker/large-chat is on the hub, not here: 2 of weights" in row(found, "files of its base").found
    assert "`hf download maker/large-chat`" in found.refused
    random_llama().save_pretrained(base)
    rows = check._where(str(adapter), {"base": base})
    assert [row.asked for row in rows] == ["files", "files of its base"]
    assert f"1 of weights in {base}" in rows[1].found


def test_a_gate_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    response = types.SimpleNamespace(headers={}, request=None, status_code=403)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(GatedRepoError("gated repo", response=response)))
    with pytest.raises(ModelError, match="is gated: accept its licence on its hub page"):
        check_model("maker/gated-chat")


def test_without_network_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        check_model("maker/some-chat")


def test_replies_of_a_model_that_thinks_count_with_their_thoughts() -> None:
    reply, written, lengths, replies, row = check._try_replies(thinker("opened"), 1e9)
    assert replies["n_tokens"].max() <= 4 + 4  # a thought of its own is not waited for
    assert reply == pytest.approx(written * (64 + 96))
    assert lengths == (64,)
    assert "before each it thinks, for 96 tokens at most" in row.found
