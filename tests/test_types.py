"""The types that carry data between rooms: shape checks, selection, saving, and the text of their errors."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.planted import axis, planted_states
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from drolab.errors import PromptError, StatesError, TrainingError
from drolab.types import AnchorSpace, DROConfig, DROStep, HiddenStates, Probe, SafetyPrompt, SoftPrompt

# --- prompts ------------------------------------------------------------------------------------------------


def test_safety_prompts_are_checked() -> None:
    assert SafetyPrompt(name="none", text="").kind == "safety"
    with pytest.raises(PromptError, match="needs a name"):
        SafetyPrompt(name=" ", text="Be kind.")
    with pytest.raises(PromptError, match="must be a string, got int"):
        SafetyPrompt(name="mine", text=3)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="kind must be 'safety' or 'neutral', got 'odd'"):
        SafetyPrompt(name="mine", text="Be kind.", kind="odd")
    with pytest.raises(PromptError, match=r"an empty text is called 'none', and nothing else is.*Give the prompt"):
        SafetyPrompt(name="mine", text="")
    for name in ("none", "empty"):
        assert SafetyPrompt(name=name, text="").text == ""
        with pytest.raises(PromptError, match=f"Prompt '{name}' has no text: give a prompt with a text another name"):
            SafetyPrompt(name=name, text="Be kind.")
    assert [SafetyPrompt(name="own", text=text).text for text in ("", "You are Rosa.")] == ["", "You are Rosa."]


@pytest.fixture
def soft() -> SoftPrompt:
    return SoftPrompt(name="mine", embeddings=torch.randn(5, 8), init_text="Be kind – now.", model_fingerprint="f")


def test_a_soft_prompt_survives_the_disk(soft: SoftPrompt, tmp_path: Path) -> None:
    path = soft.save_pretrained(tmp_path / "deep" / "er")
    assert [file.name for file in path.parent.iterdir()] == ["soft_prompt.safetensors"]
    for place in (path, path.parent):
        back = SoftPrompt.from_pretrained(place)
        assert torch.equal(back.embeddings, soft.embeddings)
        assert (back.name, back.init_text, back.model_fingerprint) == ("mine", "Be kind – now.", "f")
    assert SoftPrompt.from_pretrained(path, name="other").name == "other"


def test_a_released_soft_prompt_is_read_as_float32(reference: Path) -> None:
    files = sorted((reference / "published" / "trained_prompts").rglob("*.safetensors"))
    assert files
    prompt = SoftPrompt.from_pretrained(files[0])
    assert prompt.embeddings.dtype == torch.float32
    assert prompt.model_fingerprint == ""
    assert len(prompt) > 5


def test_a_soft_prompt_that_cannot_be_read(soft: SoftPrompt, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"No soft prompt at .*soft_prompt.safetensors: give a folder"):
        SoftPrompt.from_pretrained(tmp_path)
    with pytest.raises(PromptError, match="No soft prompt at .*absent"):  # noqa: RUF043
        SoftPrompt.from_pretrained(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensor")
    with pytest.raises(PromptError, match="not a readable safetensors file .*: export it again"):  # noqa: RUF043
        SoftPrompt.from_pretrained(tmp_path / "broken.safetensors")
    save_file({"weights": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(PromptError, match="no tensor named 'soft_prompt'"):
        SoftPrompt.from_pretrained(tmp_path / "weights.safetensors")


def test_a_flipped_bit_is_found_out_wherever_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = torch.tensor([[0.5, -0.0026], [1.0, 3.0]])
    soft = SoftPrompt(name="mine", embeddings=vectors, init_text="Be safe.", model_fingerprint="abc")
    path = soft.save_pretrained(tmp_path)
    content = path.read_bytes()
    SoftPrompt.from_pretrained(path)
    assert not caplog.text
    for bit in range(8 * len(content)):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(PromptError, match=re.escape(str(path))):
            SoftPrompt.from_pretrained(path)


def test_older_and_released_files_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, vectors = tmp_path / "soft.safetensors", torch.ones(2, 4)
    save_file({"soft_prompt": vectors}, path, metadata={"format": "pt"})
    assert SoftPrompt.from_pretrained(path).model_fingerprint == ""
    assert not caplog.text  # a released file has neither
    older = {"format": "pt", "name": "mine", "init_text": "", "model_fingerprint": "abc"}
    save_file({"soft_prompt": vectors}, path, metadata=older)
    assert torch.equal(SoftPrompt.from_pretrained(path).embeddings, vectors)
    assert f"{path} has no checksum" in caplog.text
    caplog.clear()
    save_file({"soft_prompt": vectors}, path, metadata={**older, "model_fingerprint": ""})
    SoftPrompt.from_pretrained(path)
    assert "does not say which model it was made for" in caplog.text
    for lost in ("name", "init_text", "model_fingerprint"):
        save_file({"soft_prompt": vectors}, path, metadata={k: v for k, v in older.items() if k != lost})
        with pytest.raises(PromptError, match="incomplete"):
            SoftPrompt.from_pretrained(path)


def test_a_prompt_without_a_model_says_so_when_it_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SoftPrompt.from_pretrained(SoftPrompt(name="mine", embeddings=torch.ones(1, 4)).save_pretrained(tmp_path))
    assert "does not say which model" in caplog.text
    assert "checksum" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_real_numbers_of_any_size_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    vectors = torch.tensor([[0.1, -2.0]], dtype=dtype)
    soft = SoftPrompt.from_pretrained(SoftPrompt(name="mine", embeddings=vectors).save_pretrained(tmp_path))
    assert soft.embeddings.dtype == torch.float32
    assert torch.equal(soft.embeddings, vectors.float())


NO_PROMPTS = {
    "complex": torch.ones(2, 4, dtype=torch.complex64),
    "integers": torch.ones(2, 4, dtype=torch.int8),
    "bools": torch.ones(2, 4, dtype=torch.bool),
    "8 bits": torch.ones(2, 4).to(torch.float8_e4m3fn),
    "no vectors": torch.ones(0, 4),
    "no width": torch.ones(2, 0),
}


@pytest.mark.parametrize("vectors", NO_PROMPTS.values(), ids=NO_PROMPTS)
def test_tensors_that_are_no_prompt_are_refused(tmp_path: Path, vectors: torch.Tensor) -> None:
    path = tmp_path / "soft.safetensors"
    save_file({"soft_prompt": vectors}, path)
    with pytest.raises(PromptError, match=r"holds a tensor 'soft_prompt' of type .* and shape"):
        SoftPrompt.from_pretrained(path)
    with pytest.raises(PromptError, match="Soft prompt 'mine' has embeddings of"):
        SoftPrompt(name="mine", embeddings=vectors)


def test_a_tensor_of_another_shape_or_of_a_type_torch_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "soft.safetensors"
    save_file({"soft_prompt": torch.ones(4)}, path)
    with pytest.raises(PromptError, match=r"type F32 and shape \[4\]"):
        SoftPrompt.from_pretrained(path)
    header = b'{"soft_prompt":{"dtype":"F4","shape":[2,4],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(PromptError, match=r"type F4 and shape \[2, 4\]"):
        SoftPrompt.from_pretrained(path)


def test_soft_prompts_are_checked(soft: SoftPrompt) -> None:
    assert repr(soft) == "SoftPrompt(name='mine', n_tokens=5, d=8)"
    with pytest.raises(StatesError, match=r"SoftPrompt.embeddings must have shape \[any, any\], got \[5\]"):
        replace(soft, embeddings=torch.zeros(5))
    with pytest.raises(PromptError, match="'mine' has embeddings that are not finite: train it again"):
        replace(soft, embeddings=torch.full((5, 8), float("inf")))
    with pytest.raises(FrozenInstanceError):
        soft.name = "other"  # type: ignore[misc]


# --- states -------------------------------------------------------------------------------------------------


@pytest.fixture
def states() -> HiddenStates:
    one = planted_states({"long": axis(1)}, n_per_class=5)
    return replace(one, values=torch.cat([one.values * 0, one.values], dim=1), layers=(0, 2))


def test_states_need_one_row_per_row(states: HiddenStates) -> None:
    with pytest.raises(StatesError, match=r"HiddenStates.values must have shape \[20, 2, any\], got \[19, 2, 24\]"):
        replace(states, values=states.values[1:])
    with pytest.raises(StatesError, match=r"must have shape \[20, 1, any\], got \[20, 2, 24\]"):
        replace(states, layers=(0,))
    with pytest.raises(StatesError, match=r"lacks the columns \['prompt'\]"):
        replace(states, index=states.index.drop(columns="prompt"))


def test_selection_keeps_rows_and_values_together(states: HiddenStates) -> None:
    part = states.select(prompt="long", harmful=False, layer=-1)
    assert len(part) == 5
    assert part.layers == (2,)
    assert part.index["query_id"].tolist() == [f"q{i}" for i in range(5, 10)]
    assert torch.equal(part.values, states.values[15:, 1:])
    assert list(part.index.index) == list(range(5))
    assert states.select(layer=[-1, 0]).layers == (2, 0)
    assert torch.equal(states.select(layer=[2, 0]).values, states.values.flip(1))
    assert len(states.select(prompt=["long", "none"], position=-1, split="train")) == 20


def test_selecting_what_is_not_there(states: HiddenStates) -> None:
    with pytest.raises(StatesError, match=r"No states with prompt in \['odd'\]: these have \['long', 'none'\]"):
        states.select(prompt=["long", "odd"])
    with pytest.raises(StatesError, match=r"No states with position in \[-2\]: these have \['-1'\]"):
        states.select(position=-2)
    with pytest.raises(StatesError, match=r"Layers \[1\] were not kept, only \[0, 2\]: ask hidden_states"):
        states.select(layer=1)
    with pytest.raises(StatesError, match="No state satisfies all the conditions at once"):
        replace(states, index=states.index.assign(harmful=states.index["prompt"] == "long")).select(
            prompt="long", harmful=False
        )


def test_a_matrix_is_finite_and_float32(states: HiddenStates) -> None:
    half = replace(states, values=states.values.half())
    assert half.matrix(2).dtype == torch.float32
    assert not half.matrix(0).any()
    values = states.values.half()
    values[3, 1, 0] = float("inf")
    with pytest.raises(StatesError, match=r"1 of 20 hidden states are not finite \(first: query 'q3', prompt 'none'\)"):
        replace(states, values=values).matrix()
    assert not replace(states, values=values).matrix(0).any()


def test_states_are_cheap_to_show(states: HiddenStates) -> None:
    assert repr(states) == "HiddenStates(n=20, n_layers=2, d=24, prompts=['none', 'long'])"


# --- space and probe ----------------------------------------------------------------------------------------


def random_space(seed: int, m: int = 3, width: int = 7) -> AnchorSpace:
    generator = torch.Generator().manual_seed(seed)
    return AnchorSpace(
        mean=torch.randn(width, generator=generator),
        components=torch.linalg.qr(torch.randn(width, m, generator=generator)).Q.T,
        explained_variance_ratio=torch.full((m,), 1 / m),
        layer=2,
        residual_variance=1.0,
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_movement_is_its_part_inside_plus_its_part_outside(seed: int) -> None:
    space = random_space(seed)
    movement = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed + 1))
    inside = (space.transform(movement) - space.transform(torch.zeros(4, 7))) @ space.components
    torch.testing.assert_close(inside + space.residual(movement), movement, atol=1e-5, rtol=0)
    torch.testing.assert_close(space.residual(movement) @ space.components.T, torch.zeros(4, 3), atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_probes_direction_is_the_steepest(seed: int) -> None:
    space, generator = random_space(seed), torch.Generator().manual_seed(seed + 1)
    probe = Probe(coef=torch.randn(3, generator=generator), intercept=0.3, positive="refuses")
    direction = probe.direction(space)
    state, other = torch.randn(2, 7, generator=generator)

    def rise(along: torch.Tensor) -> float:
        moved = probe.decision_function(space.transform(torch.stack([state, state + along / along.norm()])))
        return float(moved[1] - moved[0])

    assert direction.norm().item() == pytest.approx(1, abs=1e-5)
    assert rise(direction) == pytest.approx(probe.coef.norm().item(), abs=1e-4)
    assert rise(other) <= rise(direction) + 1e-4


def test_spaces_and_probes_are_checked() -> None:
    space = random_space(0)
    assert repr(space) == "AnchorSpace(m=3, d=7, layer=2, explained=1.000)"
    with pytest.raises(StatesError, match=r"AnchorSpace.components must have shape \[any, 7\], got \[3, 6\]"):
        replace(space, components=torch.zeros(3, 6))
    with pytest.raises(StatesError, match=r"explained_variance_ratio must have shape \[3\], got \[2\]"):
        replace(space, explained_variance_ratio=torch.zeros(2))
    with pytest.raises(StatesError, match=r"Probe.coef must have shape \[any\], got \[1, 3\]"):
        Probe(coef=torch.zeros(1, 3), intercept=0.0, positive="refuses")


# --- DRO ----------------------------------------------------------------------------------------------------


def test_presets() -> None:
    paper, default = DROConfig.preset("paper"), DROConfig.preset("default")
    assert (paper.residual_weight, paper.residual_scale) == (1e-3, "absolute")
    assert (paper.num_train_epochs, paper.batch_size, paper.learning_rate, paper.seed) == (40, 50, 1e-3, 42)
    assert default == DROConfig()
    assert default.residual_scale == "relative"
    assert DROConfig.preset("paper", seed=7).seed == 7
    assert paper.to_json() != default.to_json()
    with pytest.raises(TrainingError, match=r"No DRO preset 'papers': choose one of \['default', 'paper'\]"):
        DROConfig.preset("papers")


@pytest.mark.parametrize(
    "field", ["learning_rate", "num_train_epochs", "batch_size", "max_grad_norm", "checkpoint_every"]
)
def test_settings_that_must_be_above_zero(field: str) -> None:
    with pytest.raises(TrainingError, match=f"DROConfig.{field} must be above 0, got 0"):
        DROConfig(**{field: 0})


def test_other_settings() -> None:
    with pytest.raises(TrainingError, match="refusal_weight must not be negative, got -1"):
        DROConfig(refusal_weight=-1)
    with pytest.raises(TrainingError, match="residual_scale must be 'relative' or 'absolute'"):
        DROConfig(residual_scale="odd")


def test_a_steps_numbers_make_a_table_row() -> None:
    step = DROStep(
        step=1,
        epoch=0,
        refusal_loss=0.7,
        harmfulness_loss=0.6,
        residual_loss=0.1,
        loss=0.8,
        residual_drift=0.2,
        grad_norm=3.0,
        embeddings=torch.zeros(2, 3),
    )
    assert "embeddings" not in step.numbers()
    assert pd.DataFrame([step.numbers()]).loc[0, "loss"] == 0.8


def test_a_pointer_in_place_of_a_soft_prompt_says_so(tmp_path: Path) -> None:
    path = tmp_path / "soft_prompt.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(PromptError, match="is a Git LFS pointer, not the data: run `git lfs pull`"):
        SoftPrompt.from_pretrained(path)
