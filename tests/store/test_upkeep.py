"""`drolab store check|list|size|prune|export`: what it says, what it removes, and what it never touches."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drolab.__main__ import main
from drolab.store import Store, key, shards, upkeep
from drolab.store.upkeep import Choice

DAY = 86_400


def keys(name: str, n: int = 3) -> list[str]:
    return [key(name=name, number=number) for number in range(n)]


@pytest.fixture
def full(store: Store) -> Store:
    """Two files of states (the second has a damaged entry), one of texts, a run; what a killed writer left; a note."""
    store.put_tensors(keys("a"), torch.arange(12.0).reshape(3, 4), note="states, model one")
    store.put_tensors(keys("b"), torch.arange(12.0, 24.0).reshape(3, 4), note="states, model two")
    store.put_texts(dict.fromkeys(keys("a"), "reply"), note="replies, model one")
    store.save_run(key(run=1), {"step": torch.zeros(2)}, {"kind": "dro", "name": "kind prompt", "step": "1"})
    path = file_of(store, "model two")
    content = path.read_bytes()
    path.write_bytes(content.replace(torch.arange(16.0, 20.0).numpy().tobytes(), bytes(16)))
    (store.folder / "v2" / "tensors" / ".0123.1-ab.partial").write_bytes(b"half of")
    (store.folder / "v2" / "texts" / "notes.txt").write_text("mine")
    return store


def file_of(store: Store, note: str) -> Path:
    files = store.files()
    (file,) = files.loc[files["note"].str.contains(note) & (files["kind"] == "tensors"), "file"]
    return store.folder / file


def command(store: Store, *words: str) -> int:
    return main(["store", words[0], "--store", str(store.folder), *words[1:]])


def n_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


# Saying what is there


def test_check_fails_when_there_is_damage_and_says_where(full: Store, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = file_of(full, "model two")
    assert command(full, "check") == 1
    said = capsys.readouterr().out
    assert f"{full.folder}: 6 files, 1 damaged" in said
    assert damaged.name in said
    assert "1 of 3 entries are damaged and are computed again" in said
    assert "an unfinished write" in said
    damaged.unlink()
    assert command(full, "check") == 0  # what a killed writer left, or a file of someone else's, is no damage


def test_list_and_size_count_by_kind_and_note(full: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(full, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    (states,) = [line for line in lines if "states, model one" in line]
    assert states.split()[:6] == ["tensors", "states,", "model", "one", "ok", "1"]
    assert any("dro kind prompt" in line for line in lines)
    assert command(full, "list", "--files") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 6
    assert command(full, "size") == 0
    total = sum(path.stat().st_size for path in full.folder.rglob("*") if path.is_file())
    assert f"{total / 1000:.1f} kB in 6 files" in capsys.readouterr().out


def test_listing_reads_no_values(full: Store) -> None:
    assert (full.files()["state"] == "damaged").sum() == 0
    assert (full.check()["state"] == "damaged").sum() == 1


# Removing


def test_prune_says_first_and_removes_only_with_yes(full: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = n_files(full.folder)
    assert command(full, "prune") == 0
    said = capsys.readouterr().out
    assert "2 files to remove" in said
    assert "keep its 2 sound entries in a new file, remove it" in said
    assert "Nothing was removed. Add --yes to do it." in said
    assert n_files(full.folder) == before

    assert command(full, "prune", "--yes") == 0
    assert set(full.check()["state"]) == {"ok", "foreign"}
    assert (full.folder / "v2" / "texts" / "notes.txt").exists()
    found = Store(full.folder).get_tensors([*keys("a"), *keys("b")])
    assert set(found) == {*keys("a"), *keys("b")} - {keys("b")[1]}
    assert torch.equal(found[keys("b")[2]], torch.arange(20.0, 24.0))
    assert file_of(full, "model two").exists()  # the new file has the old one's note


@pytest.mark.parametrize(
    ("choice", "n"),
    [
        (["--kind", "tensors"], 1),
        (["--kind", "texts"], 1),
        (["--note", "*model one"], 2),
        (["--note", "*model one", "--kind", "texts"], 1),
        (["--older-than", "1"], 0),
        (["--older-than", "0"], 3),
        (["--max-size", "1GB"], 0),
        (["--max-size", "0B"], 3),
    ],
)
def test_sound_files_go_only_as_chosen(full: Store, choice: list[str], n: int) -> None:
    assert command(full, "prune", "--yes") == 0
    kept = full.check()
    assert (kept["state"] == "ok").sum() == 4
    file_of(full, "model two").unlink()
    assert command(full, "prune", *choice, "--yes") == 0
    left = full.check()
    assert (left["state"] == "ok").sum() == 3 - n
    assert (left["state"] == "foreign").sum() == 1


def test_the_oldest_go_first_until_the_store_is_small_enough(store: Store) -> None:
    for day, name in enumerate(["day 0", "day 1", "day 2"]):
        store.put_tensors(keys(name), torch.full((3, 100), float(day)), note=name)
        os.utime(file_of(store, name), (day * DAY, day * DAY))
    size = file_of(store, "day 2").stat().st_size
    plan = upkeep.plan_prune(store, max_bytes=2 * size)
    assert plan["note"].tolist() == ["day 0"]
    assert set(upkeep.plan_prune(store, max_bytes=2 * size - 1)["note"]) == {"day 0", "day 1"}
    assert set(upkeep.plan_prune(store, Choice(note="*[12]"), max_bytes=size)["note"]) == {"day 1", "day 2"}


def test_a_file_from_the_future_is_not_old(store: Store) -> None:
    store.put_tensors(keys("a"), torch.zeros(3, 1))
    for time in (2**34, 2**33):  # the years 2514 and 2242
        os.utime(file_of(store, ""), (time, time))
        assert upkeep.plan_prune(store, Choice(days=0)).empty
    os.utime(file_of(store, ""), (0, 0))
    assert len(upkeep.plan_prune(store, Choice(days=0))) == 1


def test_a_file_that_is_being_written_stays(full: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A writer holds a shared lock on the folder: whoever prunes cannot have it for himself."""
    writer = os.open(full.folder / "v2" / "tensors", os.O_RDONLY)
    fcntl.flock(writer, fcntl.LOCK_SH)
    try:
        assert command(full, "prune", "--yes") == 1
        assert "left: a process is writing to this folder now" in capsys.readouterr().out
        assert (full.check()["state"] == "unfinished").sum() == 1
    finally:
        os.close(writer)
    assert command(full, "prune", "--yes") == 0
    assert (full.check()["state"] == "unfinished").sum() == 0


def test_a_file_repaired_since_the_plan_stays(full: Store) -> None:
    plan = upkeep.plan_prune(full)
    full.put_tensors(keys("b"), torch.arange(12.0, 24.0).reshape(3, 4), note="states, model two")
    done = upkeep.prune(full, plan).set_index("state")["done"]
    assert done["damaged"] == "repaired"
    assert len(Store(full.folder).get_tensors(keys("b"))) == 3


def test_a_store_open_elsewhere_finds_what_a_prune_kept(full: Store, caplog: pytest.LogCaptureFixture) -> None:
    opened = Store(full.folder)
    assert len(opened.get_tensors(keys("a"))) == 3  # it knows the files as they were
    assert command(full, "prune", "--yes") == 0
    assert set(opened.get_tensors(keys("b"))) == {keys("b")[0], keys("b")[2]}
    assert len(caplog.records) == 1


def test_a_file_that_only_the_disk_keeps_from_being_read_is_not_removed(
    full: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, safe_open = file_of(full, "model one"), shards.safe_open

    def broken_disk(path: Path, **options: str) -> object:
        if Path(path) == sound:
            raise OSError(5, "Input/output error")
        return safe_open(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "safe_open", broken_disk)
        assert command(full, "check") == 1
        assert "unreadable ([Errno 5] Input/output error)" in capsys.readouterr().out
        assert Store(full.folder).get_tensors(keys("a")) == {}
        assert command(full, "prune", "--kind", "tensors", "--yes") == 0
    assert len(Store(full.folder).get_tensors(keys("a"))) == 3


def test_what_cannot_be_removed_is_said(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    plan = upkeep.plan_prune(full)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert upkeep.prune(full, plan)["done"].str.contains("left: .*Permission denied").all()


# Exporting


def test_export_copies_what_is_sound_as_chosen(full: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(full, "export", str(tmp_path / "all")) == 0
    said = capsys.readouterr().out
    assert "9 sound entries of 4 files copied" in said
    assert "1 of 3 entries are damaged" in said
    copy = Store(tmp_path / "all")
    assert (copy.check()["state"] == "ok").all()
    assert len(copy.get_tensors([*keys("a"), *keys("b")])) == 5
    assert copy.load_run(key(run=1)) is not None

    assert command(full, "export", str(tmp_path / "some"), "--note", "*model one", "--kind", "tensors") == 0
    some = Store(tmp_path / "some")
    assert set(some.get_tensors([*keys("a"), *keys("b")])) == set(keys("a"))
    assert some.get_texts(keys("a")) == {}


def test_export_writes_over_nothing(full: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for target in (full.folder, tmp_path, tmp_path / "file"):
        assert command(full, "export", str(target)) == 1
        assert "export writes a new store, give a new folder" in capsys.readouterr().err


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from([torch.bfloat16, torch.float8_e4m3fn, torch.uint16, torch.bool, torch.int64]),
    shape=st.lists(st.integers(0, 3), max_size=2),
    n=st.integers(1, 4),
)
def test_export_keeps_every_bit(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, shape: list[int], n: int
) -> None:
    folder = tmp_path_factory.mktemp("export")
    raw = torch.arange(n * torch.Size(shape).numel() * dtype.itemsize, dtype=torch.uint8)
    values = (raw % 2 if dtype == torch.bool else raw).view(dtype).reshape(n, *shape)
    store = Store(folder / "store")
    store.put_tensors(keys("x", n), values)
    upkeep.export(store, folder / "copy")
    found = Store(folder / "copy").get_tensors(keys("x", n))
    for name, value in zip(keys("x", n), values, strict=True):
        assert found[name].dtype == dtype
        assert found[name].shape == value.shape
        assert found[name].reshape(-1).view(torch.uint8).equal(value.reshape(-1).view(torch.uint8))
    shutil.rmtree(folder)
