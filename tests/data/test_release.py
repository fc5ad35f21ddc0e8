"""Clones that are not whole, or are something else: each is refused by file and reason, and none becomes a result."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.small_release import responses, write

from drolab import published
from drolab.errors import CloneError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
SUMMARY = "eval_results/sampling/Alpha-7b_with_default_malicious_summary.json"
SCORES = "eval_results/sampling/Alpha-7b_with_default_malicious.csv"
ALL = "eval_results/sampling/Alpha-7b_with_default_malicious_all.csv"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "clone")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (SUMMARY, POINTER, "is a Git LFS pointer, not the data: run `git lfs pull`"),
        (SCORES, POINTER, "is a Git LFS pointer"),
        (SUMMARY, b"  \n", "is empty"),
        (SUMMARY, b'{"sampling": ', r"cannot be read as \.json .* clone it again"),
        (SUMMARY, b"<!doctype html>", "is a web page"),
        (SUMMARY, b"", "is empty"),
        (SUMMARY, b"[" * 100_000, r"cannot be read as \.json"),
        (SUMMARY, b"[1]", "holds no count under 'sampling'"),
        (SUMMARY, b'{"sampling": true}', "holds no count"),
        (SUMMARY, b'{"sampling": 2}', r"_summary.json counts 2 queries, but .*\.csv has 1 of 3"),
        (SCORES, b",sampling\n0,0.05\n1,0.0\n", "'default' has 2 queries of 'malicious' instead of 3"),
        (SCORES, b",sampling\n0,0.05\n1,0.0\n2,", "no share of 20 samples"),
        (SCORES, b",sampling\n0,0.05\n1,0.0\n2", "no share of 20 samples"),
        (SCORES, b",sampling\n0,1,0.05\n1,2,0.0\n2,3,0.0\n", r"Expected 2 fields in line 2, saw 3"),
        (SCORES, b",sampling\n0,0.05\n1,0.0,3\n2,0.0\n", r"cannot be read as \.csv"),
        (SCORES, b",sampling\n0,0.05\n1,0.33\n2,0.0\n", "no share of 20 samples"),
        (SCORES, b",sampling\n0,1.05\n1,0.0\n2,0.0\n", "no share of 20 samples"),
        (SCORES, b",sampling\n0,nan\n1,0.0\n2,0.0\n", "no share of 20 samples"),
        (
            SCORES,
            b",greedy\n0,0.05\n",
            r"must have the columns \['sampling'\] once each, and has .*: is it the right file",
        ),
        (SCORES, ",sampling\n0,é\n".encode("latin-1"), "is not UTF-8 text .line 2, byte 12"),
    ],
)
def test_a_broken_file_is_named(root: Path, file: str, content: bytes, message: str) -> None:
    (root / file).write_bytes(content)
    with pytest.raises(CloneError, match=message) as caught:
        published.load(root)
    assert "Alpha-7b" in str(caught.value)


def test_all_broken_files_are_counted(root: Path) -> None:
    for path in (root / "eval_results" / "sampling").glob("*.json"):
        path.write_bytes(POINTER)
    with pytest.raises(CloneError, match=r"pointer.*pointer.*pointer.*\(and 2 more\)"):
        published.load(root)


def test_what_is_no_clone_is_refused_with_the_command(tmp_path: Path) -> None:
    command = re.escape(published.CLONE)
    with pytest.raises(CloneError, match=f"No folder .*{command}"):
        published.load(tmp_path / "nowhere")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "utils.py").write_text("")
    with pytest.raises(CloneError, match=f"its code is another repository.*{command}"):
        published.load(tmp_path)
    (tmp_path / "eval_results" / "sampling").mkdir(parents=True)
    with pytest.raises(CloneError, match="no whole clone"):
        published.load(tmp_path)


def test_files_of_other_kinds_are_told_not_lost(root: Path) -> None:
    folder = root / "eval_results" / "sampling"
    (folder / "notes.md").write_text("mine")
    (folder / ".DS_Store").write_text("x")
    release = published.load(root)
    assert release.unread == ("notes.md",)
    assert "1 unread files" in repr(release)


def test_a_result_may_come_as_a_count_or_per_query_alone(root: Path) -> None:
    (root / SCORES).unlink()
    (root / SUMMARY.replace("_with_default", "")).unlink()
    found = published.rates(published.load(root), "malicious").set_index(["model", "prompt"])
    assert found.loc[("Alpha-7b", "default"), "any"] == pytest.approx(1 / 3)
    assert found.loc[("Alpha-7b", "default"), "n_queries"] == 3
    assert found.loc[("Alpha-7b", "default")].isna()[["per_sample", "per_sample_low"]].all()
    assert found.loc[("Alpha-7b", "none"), "any"] == pytest.approx(2 / 3)
    (root / SUMMARY).unlink()
    gone = published.rates(published.load(root), "malicious").set_index(["model", "prompt"])
    assert gone.loc[("Alpha-7b", "default")].isna()[["any", "n_queries", "per_sample"]].all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "Git LFS pointer"),
        (b"prompt,output\na,b\n", r"must have the columns \['refusal_score'\]"),
        (b",prompt,output,refusal_score\n0,a,b,2\n", "neither 0 nor 1"),
        (b",prompt,output,refusal_score\n0,a,b,1\n", "has not 20 responses to each query"),
        (b',prompt,output,refusal_score\n0,a,"b', r"cannot be read as \.csv"),
        (responses("malicious", [0, 0, 0]).to_csv().encode(), "other verdicts than the file of results per query"),
    ],
)
def test_broken_responses_are_refused_when_they_are_read(root: Path, content: bytes, message: str) -> None:
    (root / ALL).write_bytes(content)
    release = published.load(root)
    with pytest.raises(CloneError, match=message):
        release.responses(prompt="default", dataset="malicious", model="Alpha-7b")


def test_a_soft_prompt_that_is_a_pointer_says_so(root: Path) -> None:
    (root / "trained_prompts/Alpha-7b/type.all_length.default.safetensors").write_bytes(POINTER)
    with pytest.raises(CloneError, match="git lfs pull"):
        published.load(root).soft_prompt("Alpha-7b", "dro-default")


def test_other_line_ends_and_marks_change_nothing(root: Path) -> None:
    before = published.load(root)
    texts = before.responses(dataset="malicious", prompt="none")["response"].str.replace("\r\n", "\n")
    for path in root.rglob("*.csv"):
        path.write_bytes(
            b"\xef\xbb\xbf" + path.read_bytes().replace(b"a\rb", b"ab").replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        )
    after = published.load(root)
    assert after.counts.equals(before.counts)
    assert after.queries.equals(before.queries)
    again = after.responses(dataset="malicious", prompt="none")["response"].str.replace("\r\n", "\n")
    assert list(again) == list(texts.str.replace("a\rb", "ab"))


def test_a_response_of_a_megabyte_is_read_whole(root: Path) -> None:
    table = responses("malicious", [1, 0, 0])
    table.loc[0, "output"] = 'x"\n,' * 250_000
    table.to_csv(root / ALL, lineterminator="\n")
    found = published.load(root).responses(prompt="default", dataset="malicious", model="Alpha-7b")
    assert found["response"][0] == table.loc[0, "output"]


def test_a_summary_may_have_a_mark(root: Path) -> None:
    (root / SUMMARY).write_bytes(b"\xef\xbb\xbf" + json.dumps({"sampling": 1}).encode())
    assert len(published.load(root).counts) == 8


def test_a_summary_of_more_queries_than_there_are(root: Path) -> None:
    for path in root.glob("eval_results/sampling/Beta*_malicious.csv"):
        path.unlink()
    path = next(root.glob("eval_results/sampling/Beta*_summary.json"))
    path.write_text('{"sampling": 710}')
    with pytest.raises(CloneError, match=f"{re.escape(str(path))} counts 710 queries of the 3 that 'malicious' has"):
        published.load(root)
