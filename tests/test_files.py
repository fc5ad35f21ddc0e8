"""The one reader and the one writer: whole or an error that says what to do, and nothing is left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drolab.errors import CloneError, DrolabError, ExportError, PromptError, QueryError, StoreError
from drolab.files import idle, plain_name, read_bytes, read_csv, read_json, read_text, safe_path, write_file

ERRORS = [CloneError, ExportError, PromptError, QueryError, StoreError]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


# --- what is written is read


def is_data(content: bytes) -> bool:
    """No Git LFS pointer and no web page: those are refused."""
    start = content.lstrip()[:20].lower()
    return not content.isspace() and not start.startswith((b"version https://git", b"<!doctype html", b"<html"))


@settings(deadline=None)
@given(content=st.binary(min_size=1).filter(is_data))
def test_bytes_come_back(folder: Path, content: bytes) -> None:
    assert read_bytes(write_file(folder / "bytes", content), QueryError) == content


TEXT = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@settings(deadline=None)
@given(text=st.text(TEXT, min_size=1).filter(str.strip).filter(lambda text: text[0] != "\ufeff"))
@example(text="a\r\nb\rc\n\u2028d\x85")
def test_texts_come_back(folder: Path, text: str) -> None:
    if is_data(text.encode()):
        assert read_text(write_file(folder / "text", text), QueryError) == text


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    assert read_text(write_file(tmp_path / "a", "x\ud800"), QueryError) == "x\\ud800"


@settings(deadline=None)
@given(cells=st.lists(st.tuples(st.text(TEXT), st.text(TEXT, min_size=1)), min_size=1))
@example(cells=[("a\rb", "NA"), ("", "None"), ('"\n,', "007"), ("", " ")])
def test_tables_come_back_as_texts(folder: Path, cells: list[tuple[str, str]]) -> None:
    table = pd.DataFrame(cells, columns=["one", "two"], dtype=object)
    path = write_file(folder / "table.csv", str(table.to_csv(index=False)))
    assert read_csv(path, QueryError, ["two"]).to_numpy().tolist() == table.to_numpy().tolist()


def test_other_line_ends_and_a_mark_are_no_content(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        path = write_file(tmp_path / "a.csv", end.join(["\ufeffone,two", "1,2", ""]))
        assert read_csv(path, QueryError).to_dict("records") == [{"one": "1", "two": "2"}]


# --- what is not whole is refused


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"Cannot read .*a\.csv \(No such file or directory\): {again}"),
        (b"", "is empty: {again}"),
        (b" \n\n", "is empty: {again}"),
        (POINTER, "is a Git LFS pointer, not the data: run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "is a web page, not the data: download the raw file"),
        ("a,b\né,c".encode("latin-1"), r"is not UTF-8 text \(line 2, byte 4; Latin-1 .* save it in UTF-8"),
        ("a,b".encode("utf-16"), "is UTF-16 text, not UTF-8: save it in UTF-8"),
        ("a,b".encode("utf-16-le"), "holds NUL characters .* save it in UTF-8"),
        (b'a,b\n1,"2', r"cannot be read as \.csv \(.*EOF inside string.*\): {again}"),
        (b"a,b\n1,2,3\n", r"cannot be read as \.csv \(.*Expected 2 fields in line 2, saw 3.*\): {again}"),
        (b"a,c\n1,2\n", r"must have the columns \['b'\] once each, and has \['a', 'c'\]: is it the right file\?"),
        (b"a,b,b\n1,2,3\n", r"must have the columns \['b'\] once each"),
    ],
)
def test_a_file_that_is_not_whole(
    tmp_path: Path, error: type[DrolabError], content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message.format(again=error.read_again)) as caught:
        read_csv(path, error, ["a", "b"])
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, error)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"nonsense"])
def test_json_that_is_cut_off(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CloneError, match=r"a\.json cannot be read as \.json .* or clone it again"):
        read_json(tmp_path / "a.json", CloneError)


# --- what cannot be written leaves nothing


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, step: str, error: type[DrolabError], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(
        error, match=rf"Cannot write .*a\.json \(No space left on device\): {error.write_again}"
    ) as caught:
        write_file(path, "after", error)
    assert ("store" in str(caught.value).replace(str(path), "")) == (error is StoreError)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file/a", "a\x00", "a" * 300])
def test_a_place_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"Cannot write .*: choose another folder"):
        write_file(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path = write_file(tmp_path / "a", "before")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "written"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_flushed(
    tmp_path: Path, number: int, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network folders never can; a disk that fails is told."""
    flush = os.fsync

    def refuse(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(number, "refused")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if written:
        assert write_file(tmp_path / "a", "x").read_text() == "x"
    else:
        with pytest.raises(ExportError, match="refused"):
            write_file(tmp_path / "a", "x")


def test_a_writer_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, replace = [], os.replace

    def while_writing(source: Path, target: Path) -> None:
        with idle(target.parent) as nobody_writes:
            seen.append(nobody_writes)
        replace(source, target)

    monkeypatch.setattr(os, "replace", while_writing)
    write_file(tmp_path / "a", "x")
    assert seen == [False]
    with idle(tmp_path) as nobody_writes:
        assert nobody_writes


# --- names


NAMES = st.text(max_size=60) | st.sampled_from(
    ["..", "/", "a/b", ".", "", "-", "x" * 41, "A", "a", "a b", "\ud800", "é"]
)


@given(name=NAMES)
def test_any_name_becomes_one_that_stays_where_it_is(name: str) -> None:
    made = plain_name(name)
    assert safe_path("folder", made, "csv") == Path("folder") / f"{made}.csv"
    assert plain_name(made) == made or len(made) > 40


@given(names=st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_other_names_become_others(names: list[str]) -> None:
    assert plain_name(names[0]) != plain_name(names[1])


@pytest.mark.parametrize(
    "name", ["../out", "a/b", "", ".hidden", "a\\b", "x" * 101, "a b", "/etc/x", "name\x00", "a\n"]
)
def test_names_that_could_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(ExportError, match="is no file name to write"):
        safe_path("folder", name, "csv")
