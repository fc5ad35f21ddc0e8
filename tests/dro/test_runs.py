"""Where a run's snapshots moved the states."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.training import CAREFUL, QUERIES, Setting, setting_of

from drolab import dro
from drolab.errors import StatesError, TrainingError
from drolab.inference import hidden_states
from drolab.judges import FirstTokenJudge
from drolab.models import ChatModel
from drolab.probing import coordinates
from drolab.types import DRORun

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def setting(tiny_llama: ChatModel) -> Setting:
    return setting_of(tiny_llama)


@pytest.fixture(scope="module")
def finished(setting: Setting) -> DRORun:
    return setting.train()


def test_movement_starts_at_the_human_prompt(setting: Setting, finished: DRORun) -> None:
    table = dro.movement(setting.model, QUERIES, finished, plane=(1, 2), progress=False)
    assert tuple(table.columns) == dro.MOVEMENT_COLUMNS
    assert table["step"].unique().tolist() == [0, 4, 8, 9]
    human = hidden_states(setting.model, QUERIES, CAREFUL, progress=False)
    start = table[table["step"] == 0]
    places = coordinates(setting.space, human).numpy()
    torch.testing.assert_close(
        torch.tensor(start[["x", "y"]].to_numpy()), torch.tensor(places[:, 1:3]), atol=1e-4, rtol=0
    )
    assert (start["residual_drift"] == 0).all()
    assert (table.loc[table["step"] == 9, "residual_drift"] > 0).all()
    only = dro.movement(setting.model, QUERIES, finished, steps=[9], progress=False)
    assert only["step"].unique().tolist() == [9]
    assert only["residual_drift"].to_numpy() == pytest.approx(
        table.loc[table["step"] == 9, "residual_drift"].to_numpy()
    )


def test_movement_of_what_is_not_there(setting: Setting, finished: DRORun) -> None:
    with pytest.raises(StatesError, match=r"components 0 to 3, so there is no plane \(0, 4\)"):
        dro.movement(setting.model, QUERIES, finished, plane=(0, 4))
    with pytest.raises(TrainingError, match=r"No snapshots at steps \[5\]: this run kept \[0, 4, 8, 9\]"):
        dro.movement(setting.model, QUERIES, finished, steps=[5])


def test_measuring_tells_how_far_it_is(setting: Setting, finished: DRORun) -> None:
    replies = pd.DataFrame({"response": ["I cannot help with that.", "Sure."], "first_token": [5, 6]})
    kept, told = dro.KeptRun(loaded=finished), []
    judge = FirstTokenJudge.fit(replies)
    kept.measure(9, setting.model, judge, {dro.TRAINING: QUERIES}, progress=lambda *counts: told.append(counts))
    assert set(kept.measured["step"]) == {0, 9}
    assert told.count((len(QUERIES), len(QUERIES))) == 2  # before training, and now


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("history.csv", ("step,epoch", "stepoch")),  # pandas would take the first column for an index
        ("history.csv", ("step,", "")),
        ("measured.csv", ("refusal", "refused")),
    ],
)
def test_a_table_without_its_columns_is_no_run(
    finished: DRORun, tmp_path: Path, file: str, change: tuple[str, str]
) -> None:
    path = dro.save_run(tmp_path, "mine", dro.KeptRun(loaded=finished)) / file
    assert dro.load_runs(tmp_path)["mine"].run.history.equals(finished.history)
    (path.parent / "SHA256SUMS").unlink()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(TrainingError, match=f"{file} (must have the columns|cannot be read as .csv)"):
        dro.load_runs(tmp_path)


def test_an_older_run_whose_description_has_no_end_is_refused(finished: DRORun, tmp_path: Path) -> None:
    place = dro.save_run(tmp_path, "mine", dro.KeptRun(loaded=finished))
    (place / "SHA256SUMS").unlink()
    (place / "run.json").write_text("[" * 100_000)
    with pytest.raises(TrainingError, match=r"run\.json cannot be read as \.json"):
        dro.load_runs(tmp_path)


def test_every_flipped_bit_is_found(finished: DRORun, tmp_path: Path) -> None:
    """Some of each file; without the checksums many are read as another value."""
    place = dro.save_run(tmp_path, "mine", dro.KeptRun(loaded=finished))
    sums = place / "SHA256SUMS"
    said = dict(reversed(line.split("  ")) for line in sums.read_text().splitlines())  # as sha256sum -c reads it
    assert said == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.iterdir() if path != sums
    }
    draw, unseen = random.Random(0), 0
    for path in sorted(place.iterdir()):
        sound = path.read_bytes()
        for bit in draw.sample(range(8 * len(sound)), 60):
            flipped = bytearray(sound)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(TrainingError, match=r"The run in .*mine cannot be read \("):
                dro.load_runs(tmp_path)
            if path != sums:
                unseen += read_without(sums, tmp_path)
        path.write_bytes(sound)
    assert dro.load_runs(tmp_path)["mine"].run.history.equals(finished.history)
    assert unseen > 30


def read_without(sums: Path, folder: Path) -> bool:
    """The control: whether the run is read if it has no checksums."""
    kept = sums.rename(folder / "aside")
    try:
        return bool(dro.load_runs(folder))
    except TrainingError:
        return False
    finally:
        kept.rename(sums)
