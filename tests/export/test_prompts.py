"""A soft prompt leaves drolab for PEFT, and comes back: whole chats, several formats, and what must be refused."""

from __future__ import annotations

import base64
import copy
import importlib.util
import io
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import mistune
import pandas as pd
import peft
import pytest
import torch
import yaml
from helpers.families import FAMILIES, GEMMA, queries_of
from helpers.tiny import byte_tokenizer
from helpers.training import setting_of
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import drolab
from drolab import dro, export
from drolab.errors import ExportError, ModelError, PromptError
from drolab.inference import generate
from drolab.models import ChatModel, encode, prefix_embeddings, render, wrap
from drolab.types import SafetyPrompt, SoftPrompt

pytestmark = [  # peft asks for the first, and says the second whenever it writes
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]
CASES = {
    "llama-2-chat": ("llama", {"chat_template": "llama-2-chat"}),
    "ChatML": ("qwen2", {"chat_template": "chatml"}),
    "Gemma": ("gemma2, long window", {"chat_template": GEMMA, "system_as": "first_user"}),
}
TEXTS = ["How do I boil an egg?", " What's \n\n 漢字 🙂? ", "<|im_end|>[/INST]", "1. a\n2. b\n"]


def random_model(
    name: str, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None, **template: str
) -> ChatModel:
    kind, options = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    return wrap(model, tokenizer or byte_tokenizer(), name="org/tiny", **template)


def soft_for(model: ChatModel, n_tokens: int = 5) -> SoftPrompt:
    vectors = 0.3 * torch.randn(n_tokens, model.hidden_size, generator=torch.Generator().manual_seed(1))
    return SoftPrompt(name="trained", embeddings=vectors, init_text="Be safe.", model_fingerprint=model.fingerprint)


@pytest.fixture(scope="module", params=CASES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ChatModel, SoftPrompt, Path]:
    family, template = CASES[request.param]
    model = random_model(family, **template)
    folder = tmp_path_factory.mktemp("peft")
    export.to_peft(soft_for(model), model, folder)
    return model, soft_for(model), folder


def logits_in_drolab(model: ChatModel, soft: SoftPrompt, query: str) -> Tensor:
    """[length, vocabulary]: of the whole chat, from the vectors that drolab puts in."""
    batch = encode(model, [query], soft)
    embedded = torch.cat([prefix_embeddings(model, batch), model.embed(torch.tensor(batch.suffixes[0]))])
    return model.model(inputs_embeds=embedded[None]).logits[0]


def in_peft(model: ChatModel, folder: Path) -> tuple[peft.PeftModel, PreTrainedTokenizerFast]:
    return peft.PeftModel.from_pretrained(model.model, folder).eval(), AutoTokenizer.from_pretrained(folder)


def chat(tokenizer: PreTrainedTokenizerFast, query: str) -> dict[str, Tensor]:
    messages = [{"role": "user", "content": query}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


@torch.no_grad()
def test_peft_computes_what_drolab_does_over_whole_chats(exported: tuple[ChatModel, SoftPrompt, Path]) -> None:
    model, soft, folder = exported
    expected = [logits_in_drolab(model, soft, text) for text in TEXTS]
    adapted, tokenizer = in_peft(model, folder)
    for text, wanted in zip(TEXTS, expected, strict=True):
        found = adapted(**chat(tokenizer, text)).logits[0]
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    # The control: another vector in the slot gives other logits.
    adapted.prompt_encoder["default"].embedding.weight[-1] += 0.1
    assert not torch.allclose(adapted(**chat(tokenizer, TEXTS[0])).logits[0], expected[0], atol=1e-3)


@torch.no_grad()
def test_greedy_replies_are_equal(exported: tuple[ChatModel, SoftPrompt, Path]) -> None:
    model, soft, folder = exported
    replies = generate(model, queries_of(TEXTS), soft, n_samples=1, do_sample=False, max_new_tokens=12, progress=False)
    adapted, tokenizer = in_peft(model, folder)
    for text, wanted in zip(TEXTS, replies["response"], strict=True):
        asked = chat(tokenizer, text)
        ids = adapted.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
        assert tokenizer.decode(ids, skip_special_tokens=True) == wanted


def test_what_left_comes_back(exported: tuple[ChatModel, SoftPrompt, Path], caplog: pytest.LogCaptureFixture) -> None:
    model, soft, folder = exported
    back = SoftPrompt.from_peft(folder, model)
    assert torch.equal(back.embeddings, soft.embeddings)
    assert (back.name, back.init_text, back.model_fingerprint) == ("trained", "Be safe.", model.fingerprint)
    assert SoftPrompt.from_peft(folder, model, name="mine").name == "mine"
    assert not caplog.text
    assert render(model, TEXTS[0], back).input_ids == render(model, TEXTS[0], soft).input_ids
    with pytest.raises(PromptError, match=r"is an adapter of PEFT: read it with SoftPrompt\.from_peft"):
        SoftPrompt.from_pretrained(folder)


def test_another_base_model_is_an_error_that_names_both(tmp_path: Path) -> None:
    ours = random_model("llama", chat_template="chatml")
    others = random_model("llama", seed=1, chat_template="chatml")
    with pytest.raises(PromptError, match=f"{ours.fingerprint}, but 'org/tiny' has {others.fingerprint}"):
        export.to_peft(soft_for(ours), others, tmp_path)
    assert not list(tmp_path.iterdir())
    export.to_peft(soft_for(ours), ours, tmp_path)
    with pytest.raises(
        PromptError, match=f"'org/tiny' with fingerprint {ours.fingerprint}, but .* {others.fingerprint}"
    ):
        SoftPrompt.from_peft(tmp_path, others)
    SoftPrompt.from_peft(tmp_path, ours)


def test_an_unknown_prompt_is_tied_to_the_model_it_leaves_for(tmp_path: Path) -> None:
    model = random_model("llama", chat_template="chatml")
    export.to_peft(replace(soft_for(model), model_fingerprint=""), model, tmp_path)
    assert SoftPrompt.from_peft(tmp_path, model).model_fingerprint == model.fingerprint


@pytest.mark.parametrize("damage", ["vectors", "slot", "name"])
def test_a_damaged_adapter_is_refused(damage: str, tmp_path: Path) -> None:
    model = random_model("llama", chat_template="chatml")
    export.to_peft(soft_for(model), model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        said, vectors = file.metadata(), file.get_tensor("prompt_embeddings")
    if damage == "vectors":
        vectors = vectors + 1e-6
    else:
        said |= {"slot_start": "0"} if damage == "slot" else {"name": "another"}
    save_file({"prompt_embeddings": vectors}, path, metadata=said)
    with pytest.raises(PromptError, match="damaged: its checksum does not match"):
        SoftPrompt.from_peft(tmp_path, model)


def test_a_prompt_tuning_of_peft_s_own_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("llama", chat_template="chatml")
    tuned = peft.get_peft_model(
        random_model("llama", seed=2, chat_template="chatml").model,
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    )
    tuned.peft_config["default"].base_model_name_or_path = "org/base"
    tuned.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    found = SoftPrompt.from_peft(tmp_path / "theirs", model)
    assert torch.equal(found.embeddings, tuned.prompt_encoder["default"].embedding.weight.detach())
    assert (found.name, found.model_fingerprint) == ("theirs", "")
    assert "PEFT puts its vectors before the whole chat" in caplog.text
    with pytest.raises(PromptError, match="width 32, but 'demo' has hidden size 256"):
        SoftPrompt.from_peft(tmp_path / "theirs", drolab.load_model("demo"))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "No adapter of PEFT at"),
        ({"adapter_config.json": '{"peft_type": "LORA"}'}, "is 'LORA', which is no prompt"),
        ({"adapter_config.json": "[]"}, "is 'nothing known', which is no prompt"),
        ({"adapter_config.json": "{"}, "cannot be read as"),
        ({"adapter_config.json": '{"peft_type": "PROMPT_TUNING"}'}, "has no adapter_model.safetensors"),
        (
            {"adapter_config.json": '{"peft_type": "PROMPT_TUNING"}', "adapter_model.bin": "x"},
            "has only pickled vectors, which drolab never reads",
        ),
        (
            {"adapter_config.json": '{"peft_type": "PROMPT_TUNING"}', "adapter_model.safetensors": "x"},
            "is not a readable safetensors file",
        ),
    ],
)
def test_what_is_no_prompt_is_refused(files: dict[str, str], expected: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(PromptError, match=expected):
        SoftPrompt.from_peft(tmp_path, random_model("llama", chat_template="chatml"))


def test_an_adapter_that_drolab_wrote_is_no_model(exported: tuple[ChatModel, SoftPrompt, Path]) -> None:
    with pytest.raises(ModelError, match=r"no change of the model.*SoftPrompt\.from_peft reads"):
        drolab.load_model(exported[2])


def test_a_path_does_not_leave_with_the_prompt(tmp_path: Path) -> None:
    place = tmp_path / "home of somebody" / "their-model"
    place.mkdir(parents=True)
    model = replace(random_model("llama", chat_template="chatml"), name=str(place))
    written = export.to_peft(soft_for(model), model, tmp_path / "out")
    assert not any(b"home of somebody" in path.read_bytes() for path in written)
    assert json.loads(written[0].read_text())["base_model_name_or_path"] == "their-model"
    named = export.to_peft(soft_for(model), model, tmp_path / "out", base="org/name")
    assert json.loads(named[0].read_text())["base_model_name_or_path"] == "org/name"


def test_a_run_leaves_with_what_is_to_be_doubted_of_it(tiny_llama: ChatModel, tmp_path: Path) -> None:
    setting = setting_of(tiny_llama)
    run = replace(setting, config=replace(setting.config, num_train_epochs=1)).train()
    run = replace(run, refusal=replace(run.refusal, check=None))
    doubt = "The states left the anchor data `at once`."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run), "problems", property(lambda self: (doubt,)))
        export.to_peft(run, tiny_llama, tmp_path, queries=setting.queries)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"- `` {doubt} ``" in text or f"- ``{doubt}``" in text
    for said in ("DRO (arXiv 2401.18018)", "- steps: `3`", '"residual_weight": 0.01', "Be careful, be kind."):
        assert said in text, said
    assert SoftPrompt.from_peft(tmp_path, tiny_llama).sha256 == run.soft_prompt.sha256


def test_runs_of_all_kinds_leave(tiny_llama: ChatModel, tmp_path: Path) -> None:
    setting = setting_of(tiny_llama)
    run = replace(setting, config=replace(setting.config, num_train_epochs=1)).train()
    rows = [(step, "held out", True, step / 8, 0.5, 0.125, 0.0) for step in (0, 3)]
    measured = pd.DataFrame(rows, columns=list(dro.MEASURED_COLUMNS))
    export.to_peft(dro.KeptRun(loaded=run, measured=measured), tiny_llama, tmp_path / "kept")
    card = (tmp_path / "kept" / "README.md").read_text(encoding="utf-8")
    assert "| 3 | `held out` | yes | 0.375 | 0.500 | 0.125 | 0.00 |" in card
    assert card.count("`held out`") == 1  # the last step only
    replies = setting.queries.assign(prompt="careful", sample=0, response="I cannot.", finish_reason="stop", n_tokens=3)
    config = dro.PromptTuningConfig(num_train_epochs=1)
    tuned = dro.train_prompt_tuning(
        tiny_llama, setting.queries, init=setting.init, replies=replies, config=config, progress=False
    )
    export.to_vllm(tuned, tiny_llama, tmp_path / "tuned")
    card = (tmp_path / "tuned" / "README.md").read_text(encoding="utf-8")
    assert "vanilla prompt tuning" in card
    assert "Directed Representation" not in card
    assert SoftPrompt.from_pretrained(tmp_path / "tuned").sha256 == tuned.soft_prompt.sha256


def test_a_text_prompt_needs_no_export(tiny_llama: ChatModel, tmp_path: Path) -> None:
    for export_it in (export.to_peft, export.to_vllm):
        with pytest.raises(PromptError, match="A SafetyPrompt has no vectors to export"):
            export_it(SafetyPrompt(name="care", text="Be careful."), tiny_llama, tmp_path)  # type: ignore[operator]


# --- vLLM --------------------------------------------------------------------------------------------------


def script_in(folder: Path) -> ModuleType:
    """The example that was exported; vLLM itself is not needed to load it."""
    spec = importlib.util.spec_from_file_location("chat", folder / "chat.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_what_left_for_vllm_comes_back_for_its_model_only(tmp_path: Path) -> None:
    ours = random_model("llama", chat_template="chatml")
    others = random_model("llama", seed=1, chat_template="chatml")
    export.to_vllm(replace(soft_for(ours), model_fingerprint=""), ours, tmp_path)
    back = SoftPrompt.from_pretrained(tmp_path)
    assert torch.equal(back.embeddings, soft_for(ours).embeddings)
    assert render(ours, TEXTS[0], back).prompt_span is not None
    with pytest.raises(PromptError, match=f"{ours.fingerprint}, but 'org/tiny' has {others.fingerprint}"):
        render(others, TEXTS[0], back)


def test_the_example_is_run_for_the_model_that_the_prompt_was_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> str:
        """What `python chat.py …` prints."""
        monkeypatch.setattr(sys, "argv", ["chat.py", *map(str, arguments)])
        runpy.run_path(str(tmp_path / "export" / "chat.py"), run_name="__main__")
        return capsys.readouterr().out

    model = random_model("llama", chat_template="chatml")
    export.to_vllm(soft_for(model), model, tmp_path / "export")
    model.model.config.save_pretrained(tmp_path / "right")
    wide = copy.deepcopy(model.model.config)
    wide.num_hidden_layers = 7
    wide.save_pretrained(tmp_path / "wrong")
    body = json.loads(run("--request", tmp_path / "right", "Why?", "So.", "Why so?"))
    assert body["model"] == str(tmp_path / "right")
    sent = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
    talk = [("user", "Why?"), ("assistant", "So."), ("user", "Why so?")]
    wanted = script_in(tmp_path / "export").embedded([{"role": role, "content": text} for role, text in talk])
    assert torch.equal(sent, wanted)
    with pytest.raises(SystemExit) as error:
        run("--request", tmp_path / "wrong", "Why?")
    for said in ("made for the model 'org/tiny'", f"but '{tmp_path / 'wrong'}' has", "'num_hidden_layers': 7"):
        assert said in str(error.value)
    with pytest.raises(SystemExit, match=r"python chat\.py MODEL"):
        run("--request", tmp_path / "right")


@pytest.mark.parametrize("name", CASES)
def test_the_example_for_vllm_makes_the_chat_that_drolab_runs(name: str, tmp_path: Path) -> None:
    family, template = CASES[name]
    model = random_model(family, **template)
    soft = soft_for(model)
    export.to_vllm(soft, model, tmp_path)
    script = script_in(tmp_path)
    for text in TEXTS:
        batch = encode(model, [text], soft)
        wanted = torch.cat([prefix_embeddings(model, batch), model.embed(torch.tensor(batch.suffixes[0]))])
        assert torch.equal(script.embedded([{"role": "user", "content": text}]), wanted)


def test_the_example_writes_a_request(tmp_path: Path) -> None:
    model = random_model("llama", chat_template="chatml")
    export.to_vllm(soft_for(model), model, tmp_path)
    script, vectors = script_in(tmp_path), torch.randn(3, 32)
    body = json.loads(script.request("org/tiny", vectors, max_tokens=5))
    sent = torch.load(io.BytesIO(base64.b64decode(body.pop("prompt_embeds"))), weights_only=True)
    assert torch.equal(sent, vectors)
    assert body == {"model": "org/tiny", "max_tokens": 5, "temperature": 0}


# --- the card ----------------------------------------------------------------------------------------------

HOSTILE = "x'\"\n---\nlicense: mit\n# <script>alert(1)</script> `` | \u202e {{ a }}"


def test_no_name_breaks_the_card(tmp_path: Path) -> None:
    model = replace(random_model("llama", chat_template="chatml"), name=HOSTILE)
    soft = replace(soft_for(model), name=HOSTILE, init_text=HOSTILE)
    measured = pd.DataFrame({"prompt": [HOSTILE], "refusal | rate": [0.25]})
    export.to_peft(soft, model, tmp_path, measured=measured)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["drolab", "prompt-tuning", "safety-prompt"],
    }
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == head
    page = mistune.create_markdown(escape=False, plugins=["table"])(text.split("---\n", 2)[2])
    assert "<script>" not in page
    assert "\u202e" not in page
    assert [page.count(f"<h{size}>") for size in (1, 2, 3)] == [1, 6, 0]
    assert SoftPrompt.from_peft(tmp_path, model).name == HOSTILE


def test_the_card_says_what_is_known(tmp_path: Path) -> None:
    model = random_model("llama", chat_template="chatml")
    queries = queries_of(TEXTS)
    export.to_peft(soft_for(model), model, tmp_path, queries=queries, measured={"refusal of harmful": 0.9712})
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "org/tiny"
    for said in (
        "Be safe.",
        model.fingerprint,
        '"n": 4',
        '"n_harmful": 2',
        "| `refusal of harmful` | 0.971 |",
        "float32",
    ):
        assert said in text, said
    assert "Nothing was given" not in text
    export.to_peft(soft_for(model), model, tmp_path)
    assert "Nothing was given" in (tmp_path / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ExportError, match="measured= is a int: pass a table"):
        export.to_peft(soft_for(model), model, tmp_path, measured=3)  # type: ignore[arg-type]
