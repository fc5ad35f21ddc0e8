"""The store: bit-equal values, damage that costs only what is damaged, crashes and concurrent processes."""

from __future__ import annotations

import logging
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drolab.errors import StoreError
from drolab.store import Store, key
from drolab.store import shards as shards_module

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int8,
    torch.uint16,
    torch.bool,
    torch.float8_e4m3fn,
)


def keys(n: int, name: str = "row") -> list[str]:
    return [key(name=name, number=number) for number in range(n)]


def rows(n: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def shards(store: Store, kind: str = "tensors") -> list[Path]:
    return sorted((store.folder / "v2" / kind).glob("*.safetensors"))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    def raw(tensor: torch.Tensor) -> bytes:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


# Keys


def test_a_key_depends_on_every_field_and_not_on_their_order() -> None:
    assert key(a=1, b="x") == key(b="x", a=1)
    different = [key(a=1), key(a=1.0), key(a=True), key(a="1"), key(a=[1]), key(a=None), key(b=1), key(a={"a": 1})]
    assert len(set(different)) == len(different)
    assert all(len(name) == 64 for name in different)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a" * 63, "A" * 64, "g" * 64, "", "a" * 64 + "\n", "/" + "a" * 63]
)
def test_only_hashes_are_keys(store: Store, name: str) -> None:
    calls = (
        lambda: store.get_tensors([name]),
        lambda: store.get_texts([name]),
        lambda: store.put_texts({name: "x"}),
        lambda: store.put_tensors([name], torch.zeros(1, 2)),
        lambda: store.save_run(name, {}, {}),
        lambda: store.load_run(name),
    )
    for call in calls:
        with pytest.raises(StoreError, match=r"is not a store key: make keys with drolab\.store\.key"):
            call()
    assert not store.folder.exists()


def test_keys_stay_what_they_are() -> None:
    """Whoever has a store has these keys in it: another encoding would lose everything."""
    assert key(b="ü", a=[1, 2.5, None, True, {"c": "d"}]).startswith("b3ed1ec9f0296a49")


# What is put comes back


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    n=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_tensors_come_back_bit_equal(
    shape: list[int], n: int, dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    size = [n, *shape]
    n_bytes = torch.Size(size).numel() * dtype.itemsize
    raw = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    values = (raw % 2 if dtype == torch.bool else raw).view(dtype).reshape(size)  # any bits: NaN, infinities
    names = keys(n)
    asked = data.draw(st.lists(st.sampled_from([*names, key(absent=1)]), max_size=8))
    with tempfile.TemporaryDirectory() as folder:
        Store(folder).put_tensors(names, values)
        found = Store(folder).get_tensors(asked)
    assert set(found) == set(asked) & set(names)
    assert all(same_bits(found[name], values[names.index(name)]) for name in found)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=6))
def test_texts_come_back_equal(texts: list[str]) -> None:
    items = dict(zip(keys(len(texts)), texts, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        Store(folder).put_texts(items)
        assert Store(folder).get_texts([*items, key(absent=1)]) == items


def test_hostile_texts_come_back_equal(store: Store) -> None:
    texts = ["", "\0", "\ud800 lone", "<script>alert(1)</script>", "../..", "a\r\nb\u2028c", "🙂" * 1000]
    items = dict(zip(keys(len(texts)), texts, strict=True))
    store.put_texts(items)
    assert Store(store.folder).get_texts(list(items)) == items


def test_non_contiguous_and_differentiable_values(store: Store) -> None:
    values = rows(6, 4).T[::2].requires_grad_()
    store.put_tensors(keys(2), values)
    found = Store(store.folder).get_tensors(keys(2))
    assert all(same_bits(found[name], values.detach()[i]) for i, name in enumerate(keys(2)))


def test_a_returned_tensor_does_not_depend_on_the_file(store: Store) -> None:
    store.put_tensors(keys(2), rows(2))
    found = store.get_tensors(keys(2))
    found[keys(2)[0]].zero_()
    assert same_bits(Store(store.folder).get_tensors(keys(2))[keys(2)[0]], rows(2)[0])


def test_an_empty_store_has_nothing_and_makes_no_folder(store: Store) -> None:
    assert store.get_tensors(keys(3)) == {}
    assert store.get_texts([]) == {}
    assert store.load_run(key(run=1)) is None
    assert store.check().empty
    store.put_tensors([], torch.zeros(0, 3))
    store.put_texts({})
    assert not store.folder.exists()


def test_keys_must_match_the_values(store: Store) -> None:
    with pytest.raises(StoreError, match=r"3 keys do not match values of shape \[2, 8\]: give one row each"):
        store.put_tensors(keys(3), rows(2))
    with pytest.raises(StoreError, match="0 keys do not match values of shape"):
        store.put_tensors([], torch.tensor(1.0))
    with pytest.raises(StoreError, match="The same key appears twice"):
        store.put_tensors(keys(1) * 2, rows(2))


def test_a_note_says_what_a_file_holds(store: Store) -> None:
    store.put_tensors(keys(2), rows(2), note="states of a model, prompt “none”")
    store.put_texts({keys(1)[0]: "x"}, note="replies")
    store.save_run(key(run=1), {}, {"kind": "dro", "name": "mine"})
    table = store.files().set_index("kind")
    assert table["note"].to_dict() == {
        "tensors": "states of a model, prompt “none”",
        "texts": "replies",
        "runs": "dro mine",
    }
    assert table["entries"].to_dict() == {"tensors": 2, "texts": 1, "runs": 0}


def test_asking_twice_for_a_key_is_fine(store: Store) -> None:
    store.put_tensors(keys(2), rows(2))
    assert set(store.get_tensors(keys(2) * 2)) == set(keys(2))


# Where it is


def test_the_folder_is_an_argument_the_environment_or_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DROLAB_CACHE", str(tmp_path / "environment"))
    assert Store().folder == tmp_path / "environment"
    assert Store(tmp_path / "argument").folder == tmp_path / "argument"
    monkeypatch.delenv("DROLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "platform"))
    assert "drolab" in Store().folder.parts


@pytest.mark.parametrize("other", ["v1", "v9"])
def test_another_format_is_refused(tmp_path: Path, other: str) -> None:
    (tmp_path / other).mkdir()
    with pytest.raises(StoreError, match=f"has format {other}, this drolab reads v2: use the drolab version that"):
        Store(tmp_path)
    (tmp_path / "v2").mkdir()
    Store(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file: give a folder, or set DROLAB_CACHE"):
        Store(tmp_path / "file")


# Runs


def test_a_run_is_replaced_and_comes_back(store: Store) -> None:
    name = key(run=1)
    store.save_run(name, {"a": rows(1)}, {"step": "1"})
    path = store.save_run(name, {"a": rows(2), "b": torch.tensor(3)}, {"step": "2", "ü": "\n"})
    tensors, metadata = Store(store.folder).load_run(name) or ({}, {})
    assert path.parent == store.folder / "v2" / "runs"
    assert metadata == {"step": "2", "ü": "\n"}
    assert same_bits(tensors["a"], rows(2))
    assert same_bits(tensors["b"], torch.tensor(3))
    assert len(list(path.parent.iterdir())) == 1


def test_a_damaged_run_counts_as_absent(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    path = store.save_run(key(run=1), {"a": rows(4)}, {"step": "1"})
    flip_bit(path, path.stat().st_size - 3)
    assert store.load_run(key(run=1)) is None
    assert "the run starts again" in caplog.text
    assert str(path) in caplog.text
    assert "unreadable" in store.check().status[0]


def test_a_checkpoint_under_another_name_is_not_that_runs(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    one, other = (store.save_run(key(run=number), {"a": rows(number)}, {"step": "1"}) for number in (1, 2))
    other.write_bytes(one.read_bytes())
    absent = one.with_stem(key(run=3))
    absent.write_bytes(one.read_bytes())
    assert store.load_run(key(run=2)) is None
    assert store.load_run(key(run=3)) is None
    assert caplog.text.count(f"it is the checkpoint of another run, {one.stem[:12]}") == 2
    assert str(absent) in caplog.text
    checked = store.check().set_index("file")
    assert checked.loc[f"v2/runs/{one.name}", "state"] == "ok"
    for path in (other, absent):
        assert checked.loc[f"v2/runs/{path.name}", "state"] == "damaged"
        assert "another run" in checked.loc[f"v2/runs/{path.name}", "status"]
    found = store.load_run(key(run=1))
    assert found is not None
    assert same_bits(found[0]["a"], rows(1))


def test_a_checkpoint_whose_key_was_changed_with_its_name_is_found_out(store: Store) -> None:
    one, other = key(run=1), key(run=2)
    path = store.save_run(one, {"a": rows(1)}, {"step": "1"})
    path.with_stem(other).write_bytes(path.read_bytes().replace(one.encode(), other.encode()))
    assert store.load_run(other) is None


def test_a_checkpoint_without_a_key_counts_as_absent(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Those of earlier versions prove nothing about whose they are."""
    path = store.save_run(key(run=1), {"a": rows(1)}, {"step": "1"})
    path.write_bytes(path.read_bytes().replace(b'"key"', b'"kez"'))
    assert store.load_run(key(run=1)) is None
    assert "does not say which run it is of" in caplog.text


# Damage


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def test_one_flipped_bit_loses_one_row_and_says_so_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    values = rows(10)
    store.put_tensors(keys(10), values)
    (shard,) = shards(store)
    content = shard.read_bytes()
    flip_bit(shard, content.index(values[7].numpy().tobytes()) + 5)
    fresh = Store(store.folder)
    for _ in range(2):
        found = fresh.get_tensors(keys(10))
        assert set(found) == {*keys(10)} - {keys(10)[7]}
        assert all(same_bits(found[name], values[keys(10).index(name)]) for name in found)
    assert len(caplog.records) == 1
    assert str(shard) in caplog.text
    assert "1 of its entries are computed again. Nothing else is lost" in caplog.text
    assert store.check().status[0] == "1 of 10 entries are damaged and are computed again"

    fresh.put_tensors([keys(10)[7]], values[7:8])  # computed again: whole, in this process and in a new one
    assert len(fresh.get_tensors(keys(10))) == 10
    caplog.clear()
    assert len(Store(store.folder).get_tensors(keys(10))) == 10
    assert not caplog.records


@pytest.mark.parametrize("kind", ["tensors", "texts"])
def test_no_flipped_bit_anywhere_gives_a_wrong_value(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path / "store")
    names, values, texts = keys(3), rows(3, 2), {name: f"text {i}" for i, name in enumerate(keys(3))}
    if kind == "tensors":
        store.put_tensors(names, values)
    else:
        store.put_texts(texts)
    (shard,) = shards(store, kind)
    content = shard.read_bytes()
    logging.getLogger("drolab.store").setLevel(logging.CRITICAL)
    survivors = 0
    try:
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << (position % 8)
            shard.write_bytes(damaged)
            fresh = Store(store.folder)
            if kind == "tensors":
                found = fresh.get_tensors(names)
                assert all(same_bits(found[name], values[names.index(name)]) for name in found)
                survivors += len(found)
            else:
                assert fresh.get_texts(names).items() <= texts.items()
                survivors += len(fresh.get_texts(names))
    finally:
        logging.getLogger("drolab.store").setLevel(logging.NOTSET)
    assert survivors > len(content) / 2  # most of what was not hit survives


@pytest.mark.parametrize("kind", ["tensors", "texts"])
def test_a_file_in_the_place_of_another_gives_no_value_under_a_wrong_key(store: Store, kind: str) -> None:
    """An open store knows which row of which file holds a key: the file may be another one by now."""

    def get(asked: Store) -> dict[str, Any]:
        return (asked.get_tensors if kind == "tensors" else asked.get_texts)([*keys(3), *keys(3, "other")])

    for name in ("row", "other"):
        store.put_tensors(keys(3, name), rows(3, seed=len(name)))
        store.put_texts({item: f"{name} {item}" for item in keys(3, name)})
    opened = Store(store.folder)
    right = get(opened)
    assert len(right) == 6
    one, two = shards(store, kind)
    one.write_bytes(two.read_bytes())
    left = get(opened)
    assert len(left) == 3
    assert all(str(left[name]) == str(right[name]) for name in left)
    assert get(Store(store.folder)).keys() == left.keys()


@pytest.mark.parametrize("damage", ["empty", "truncated", "foreign", "other format", "not safetensors", "folder"])
def test_an_unreadable_file_is_ignored_and_named(store: Store, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    store.put_tensors(keys(3, "lost"), rows(3))
    (bad,) = shards(store)
    store.put_tensors(keys(3, "kept"), rows(3))
    content = bad.read_bytes()
    if damage == "folder":
        bad.unlink()
        bad.mkdir()
    else:
        contents = {
            "empty": b"",
            "truncated": content[:-10],
            "foreign": b"#!/bin/sh\necho not ours\n" * 20,
            "other format": content.replace(b'"format":"v2"', b'"format":"v9"'),
            "not safetensors": content[100:],
        }
        bad.write_bytes(contents[damage])
    fresh = Store(store.folder)
    assert fresh.get_tensors(keys(3, "lost")) == {}
    assert fresh.get_tensors(keys(3, "lost")) == {}
    assert len(fresh.get_tensors(keys(3, "kept"))) == 3
    assert len(caplog.records) == 1
    assert str(bad) in caplog.text
    assert "its entries are computed again" in caplog.text
    table = store.check().set_index("file")
    assert (table.status == "ok").sum() == 1
    assert "computed again" in table.status[str(bad.relative_to(store.folder))]

    if damage != "folder":
        fresh.put_tensors(keys(3, "lost"), rows(3))  # the same content has the same name: the bad file is replaced
        assert len(Store(store.folder).get_tensors(keys(3, "lost"))) == 3
        assert (store.check().status == "ok").all()


def test_files_that_vanish_are_missing(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.put_tensors(keys(2), rows(2))
    shards(store)[0].unlink()
    assert store.get_tensors(keys(2)) == {}
    assert "No such file" in caplog.text
    store.put_tensors(keys(2), rows(2))
    assert len(store.get_tensors(keys(2))) == 2


def test_a_file_of_another_user_is_named_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """As a user without the right to read it: root is nobody for a moment."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        store = Store(folder)
        store.put_tensors(keys(2), rows(2))
        store.put_tensors(keys(2, "open"), rows(2))
        (path,) = (path for path in shards(store) if keys(2)[0] in shards_module.read_table(path).keys)
        path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            assert set(Store(folder).get_tensors([*keys(2), *keys(2, "open")])) == set(keys(2, "open"))
            assert store.check().set_index("file")["state"][str(path.relative_to(folder))] == "unreadable"
        finally:
            os.seteuid(user)
        assert "cannot be read ([Errno 13] Permission denied" in caplog.text
        path.chmod(0o600)
        assert len(Store(folder).get_tensors(keys(2))) == 2


def test_check_names_every_file(store: Store) -> None:
    store.put_tensors(keys(2), rows(2))
    store.put_texts({keys(1)[0]: "x"})
    store.save_run(key(run=1), {"a": rows(1)}, {})
    (store.folder / "v2" / "texts" / "notes.txt").write_text("mine")
    (store.folder / "v2" / "texts" / ".x.partial").write_bytes(b"half")
    table = store.check()
    assert sorted(table.kind) == ["runs", "tensors", "texts", "texts", "texts"]
    assert (table.status == "ok").sum() == 3
    assert table.status.str.contains("not a file of the store").sum() == 1
    assert table.status.str.contains("unfinished write").sum() == 1
    assert store.get_texts(keys(1)) == {keys(1)[0]: "x"}


# Writing fails


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing_behind(store: Store, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_tensors(keys(2), rows(2))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(
            StoreError, match=r"No space left on device\): everything stored before is safe\. Free some"
        ):
            store.put_tensors(keys(2, "new"), rows(2))
        with pytest.raises(StoreError, match="run the same call again: it goes on from there"):
            store.save_run(key(run=1), {}, {})
    assert (store.check().status == "ok").all()
    assert set(store.get_tensors([*keys(2), *keys(2, "new")])) == set(keys(2))


def test_a_disk_that_is_full(store: Store) -> None:
    """A real refusal of the operating system: files of this process may not grow beyond 20 kB."""
    store.put_tensors(keys(2), rows(2))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(StoreError, match=r"Cannot write .*store.*File too large\): everything stored"):
            store.put_tensors(keys(100, "new"), rows(100, 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (store.check().status == "ok").all()
    store.put_tensors(keys(100, "new"), rows(100, 1000))
    assert len(Store(store.folder).get_tensors(keys(100, "new"))) == 100


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "store").touch()  # since then a file took its place; root may write anywhere else
    with pytest.raises(StoreError, match=r"Cannot write .*store.* set DROLAB_CACHE to a folder"):
        store.put_tensors(keys(1), rows(1))


def test_tensors_that_cannot_be_stored(store: Store) -> None:
    with pytest.raises(StoreError, match=r"These tensors cannot be stored .* convert them to a plain dtype"):
        store.put_tensors(keys(1), torch.zeros(1, 2, dtype=torch.complex128))
    assert store.check().empty


def test_an_interrupt_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.put_tensors(keys(2), rows(2))
    assert store.check().empty


# Other processes

WRITER = """
import sys, torch
from drolab.store import Store, key
store, name, n = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for number in range(n):
    keys = [key(name=name, number=number, row=row) for row in range(20)]
    store.put_tensors(keys, torch.full((20, 500), float(number)))
    store.put_texts({keys[0]: str(number)})
    store.save_run(key(run=name), {"step": torch.full((5000,), number)}, {"step": str(number)})
"""


def start_writer(folder: Path, name: str, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), name, str(n)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def assert_sound(store: Store, name: str, n: int) -> int:
    """All that is there is whole and right; returns how many shards are."""
    names = {(number, row): key(name=name, number=number, row=row) for number in range(n) for row in range(20)}
    found = store.get_tensors(list(names.values()))
    numbers = {number for number, row in names if names[number, row] in found}
    for number in numbers:
        for row in range(20):  # a put is all or nothing
            assert (found[names[number, row]] == number).all()
    texts = store.get_texts([names[number, 0] for number in range(n)])
    assert all(texts[names[number, 0]] == str(number) for number in range(n) if names[number, 0] in texts)
    if run := store.load_run(key(run=name)):
        assert (run[0]["step"] == int(run[1]["step"])).all()
    return len(numbers)


def test_processes_write_and_read_at_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    writers = [start_writer(store.folder, name, 10) for name in ("same", "same", "other")]
    seen = []
    while any(writer.poll() is None for writer in writers):
        seen.append(assert_sound(store, "same", 10))  # the same open store sees what the others add
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
    assert seen == sorted(seen)
    assert assert_sound(store, "same", 10) == 10
    assert assert_sound(store, "other", 10) == 10
    assert (store.check().status == "ok").all()
    assert not caplog.records


# Other threads


def test_a_thread_waits_while_another_reads_the_keys_of_a_shard(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard counts as seen before its keys are known: in between, nobody may take them for missing."""
    store.put_tensors(keys(3), rows(3))
    fresh, read_table = Store(store.folder), shards_module.read_table
    reading, go_on = threading.Event(), threading.Event()

    def slow(opened: Any) -> Any:
        reading.set()
        assert go_on.wait(30)
        return read_table(opened)

    monkeypatch.setattr(shards_module, "read_table", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fresh.get_tensors, keys(3))
        assert reading.wait(30)
        second = pool.submit(fresh.get_tensors, keys(3))
        wait([second], timeout=0.3)  # long enough to come back with nothing
        go_on.set()
        assert len(first.result(30)) == len(second.result(30)) == 3


def test_threads_that_find_the_same_damage_warn_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.put_tensors(keys(3), rows(3))
    (path,) = shards(store)
    flip_bit(path, path.read_bytes().index(rows(3)[2].numpy().tobytes()))
    both, safe_open = threading.Barrier(2), shards_module.safe_open

    def together(*place: Any, **settings: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # without a lock both come here, and each would drop the same rows
        return safe_open(*place, **settings)

    monkeypatch.setattr(shards_module, "safe_open", together)
    with caplog.at_level(logging.WARNING, "drolab.store"), ThreadPoolExecutor(2) as pool:
        found = [pool.submit(store.get_tensors, keys(3)) for _ in range(2)]
        assert [len(future.result(30)) for future in found] == [2, 2]
    assert len(caplog.records) == 1


def test_threads_write_and_read_at_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    def work(name: str) -> None:
        for number in range(15):
            store.put_tensors(
                [key(name=name, number=number, row=row) for row in range(20)], torch.full((20, 9), number)
            )
            store.put_texts({key(name=name, number=number, row=0): str(number)})
            assert_sound(store, "same", 15)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, ["same", "same", "other", "third"]))
    assert [assert_sound(store, name, 15) for name in ("same", "other", "third")] == [15] * 3
    assert not caplog.records


def test_a_store_can_be_sent_to_another_process(store: Store) -> None:
    store.put_tensors(keys(2), rows(2))
    assert len(pickle.loads(pickle.dumps(store)).get_tensors(keys(2))) == 2


@pytest.mark.parametrize("cache", ["~nobody-of-this-name/x", "~/x", None])
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, cache: str | None) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where neither HOME nor a passwd entry is
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _: Path("~/.cache/drolab"))
    monkeypatch.delenv("DROLAB_CACHE", raising=False)
    if cache is not None:
        monkeypatch.setenv("DROLAB_CACHE", cache)
    with pytest.raises(StoreError, match=r"no home folder for '~.*: set DROLAB_CACHE to the full path"):
        Store()
