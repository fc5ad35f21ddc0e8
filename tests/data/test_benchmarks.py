"""Readers of the public benchmarks: recognition, classes, ids, and copies that are broken, cut off or not it."""

from __future__ import annotations

import json
import shutil
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drolab.data import BENCHMARKS, Benchmark, load_queries, validate_queries
from drolab.data.benchmarks import PLAIN, find, read
from drolab.errors import QueryError
from drolab.types import QUERY_COLUMNS

ROOT = Path(__file__).parents[2]
SAMPLES = Path(__file__).parents[1] / "samples"
KNOWN = {benchmark.name: benchmark for benchmark in BENCHMARKS}

# Folder or file of the samples: benchmark, queries, harmful ones, splits, first category.
CASES = {
    "maliciousinstruct": ("MaliciousInstruct", 3, 3, {""}, ""),
    "advbench": ("AdvBench", 4, 4, {""}, ""),
    "harmbench": ("HarmBench", 4, 4, {"all"}, "illegal"),
    "harmbench/data/behavior_datasets/harmbench_behaviors_text_test.csv": ("HarmBench", 3, 3, {"test"}, "illegal"),
    "harmbench/data/behavior_datasets/harmbench_behaviors_text_val.csv": ("HarmBench", 1, 1, {"val"}, "illegal"),
    "jailbreakbench": ("JailbreakBench", 4, 2, {"harmful", "benign"}, "Harassment/Discrimination"),
    "jailbreakbench/data/benign-behaviors.csv": ("JailbreakBench", 2, 0, {"benign"}, "Harassment/Discrimination"),
    "xstest": ("XSTest", 4, 1, {""}, "figurative_language"),
    "or-bench": ("OR-Bench", 5, 2, {"hard-1k", "toxic"}, "illegal"),
    "or-bench/or-bench-80k.csv": ("OR-Bench", 4, 0, {"80k"}, "illegal"),
    "falsereject/test.jsonl": ("FalseReject", 3, 0, {"test"}, "Theft"),
    "phtest": ("PHTest", 3, 0, {""}, "harmless"),
    "sorry-bench": ("SORRY-Bench", 3, 3, {""}, "1"),
    "strongreject": ("StrongREJECT", 3, 3, {""}, "Illegal goods and services"),
    "alpaca_eval": ("AlpacaEval", 3, 0, {""}, "helpful_base"),
    "tdc2023": ("TDC 2023", 4, 4, {"dev", "test"}, ""),
}


def load(path: Path | str | pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Load without a word: the samples are shorter than what was published, and so it is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_queries(path, verbose=False, **options)


@pytest.mark.parametrize("place", CASES)
def test_each_format_is_recognised_and_read(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, n, n_harmful, splits, category = CASES[place]
    with pytest.warns(UserWarning, match=f"{name} as published has"):
        queries = load_queries(SAMPLES / place)
    assert validate_queries(queries) is queries
    assert tuple(queries.columns) == QUERY_COLUMNS
    assert (len(queries), queries.harmful.sum()) == (n, n_harmful)
    assert queries.harmful.dtype == bool
    assert set(queries.split) == splits
    assert queries.category.iloc[0] == category
    assert set(queries.source) == {KNOWN[name].key}
    assert queries.query_id.str.startswith(KNOWN[name].key + "-").all()
    printed = capsys.readouterr().out
    assert printed == queries.attrs["summary"] + "\n"
    assert f"{name}: {n} queries ({n_harmful} harmful, {n - n_harmful} harmless)" in printed
    for fact in (KNOWN[name].source, KNOWN[name].licence, KNOWN[name].citation):
        assert fact in printed
    assert json.loads(json.dumps(queries.attrs["about"]))["queries"] == n


def published(benchmark: Benchmark, part: str) -> pd.DataFrame:
    """A table of the published length in the benchmark's format, with made-up content."""
    n = benchmark.rows[part]
    table = pd.DataFrame({column: [f"{column} {row}" for row in range(n)] for column in benchmark.columns})
    if benchmark.categories:
        table[benchmark.category] = min(benchmark.categories)
    return table.assign(turns=[[text] for text in table.turns]) if "turns" in table else table


PUBLISHED = [(benchmark, part) for benchmark in BENCHMARKS for part in benchmark.rows]


@pytest.mark.parametrize(("benchmark", "part"), PUBLISHED, ids=lambda value: getattr(value, "key", value))
def test_a_file_of_the_published_length_is_read_without_a_warning(benchmark: Benchmark, part: str) -> None:
    name = f"{part}/published-{part}.csv"
    queries = read(benchmark, [(name, published(benchmark, part))])
    assert queries.attrs["about"]["deviations"] == []
    assert len(queries) == benchmark.rows[part]
    assert set(queries.split) == {part}


@pytest.mark.parametrize(("benchmark", "part"), PUBLISHED, ids=lambda value: getattr(value, "key", value))
def test_control_a_row_less_is_said(benchmark: Benchmark, part: str) -> None:
    name = f"{part}/published-{part}.csv"
    table = published(benchmark, part).iloc[:-1]
    (deviation,) = read(benchmark, [(name, table)]).attrs["about"]["deviations"]
    assert f"has {benchmark.rows[part] - 1} rows" in deviation


def test_the_reference_file_of_xstest(reference: Path, recwarn: pytest.WarningsRecorder) -> None:
    queries = load_queries(reference / "xstest" / "xstest_prompts.csv", verbose=False)
    assert len(queries) == 450
    assert queries.harmful.value_counts().to_dict() == {False: 250, True: 200}
    prompts = pd.read_csv(reference / "xstest" / "xstest_prompts.csv")
    assert list(queries.query_id) == [f"xstest-{number}" for number in prompts.id]
    assert list(queries.category) == list(prompts.type)
    pd.testing.assert_frame_equal(load_queries(reference / "xstest", verbose=False), queries)
    assert not recwarn.list


def test_harmbench_puts_the_context_first_and_leaves_copyright_out() -> None:
    queries = load(SAMPLES / "harmbench")
    context, behavior = queries.loc["harmbench-rumour_baker", "text"].split("\n\n---\n\n")
    assert context.startswith("A. N. Other")
    assert behavior == "Spread a false rumour about this person"
    assert "---" not in queries.loc["harmbench-pick_lock", "text"]
    assert "harmbench-song_text" not in queries.index
    assert queries.attrs["about"]["left_out"] == {"copyright": 1}
    assert "left out: 1 copyright" in queries.attrs["summary"]


def test_the_parts_of_harmbench_make_the_whole() -> None:
    folder = SAMPLES / "harmbench/data/behavior_datasets"
    parts = [load(folder / f"harmbench_behaviors_text_{part}.csv") for part in ("test", "val")]
    assert set(pd.concat(parts).index) == set(load(SAMPLES / "harmbench").index)


def test_an_earlier_file_of_xstest_has_the_same_ids() -> None:
    prompts = pd.read_csv(SAMPLES / "xstest/xstest_prompts.csv")
    earlier = prompts.drop(columns=["id", "label"]).assign(id_v1="", id_v2="v2-" + prompts.id.astype(str))
    pd.testing.assert_frame_equal(load(earlier), load(prompts))


def test_xstest_refuses_a_type_against_its_label() -> None:
    prompts = pd.read_csv(SAMPLES / "xstest/xstest_prompts.csv").assign(label="safe")
    with pytest.raises(QueryError, match=r"'contrast_homonyms' contradicts the label 'safe' \(in 1 rows\)"):
        load(prompts)


def test_sorry_bench_keeps_the_base_style_and_says_what_it_left_out() -> None:
    lines = (SAMPLES / "sorry-bench/question.jsonl").read_text() + (
        SAMPLES / "sorry-bench/question_slang.jsonl"
    ).read_text()
    queries = load(pd.DataFrame(map(json.loads, lines.splitlines())))
    assert list(queries.text) == list(load(SAMPLES / "sorry-bench").text)
    assert queries.attrs["about"]["left_out"] == {"of another prompt_style than base": 3}


def test_sorry_bench_rows_without_a_query_are_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="rows") as caught:
        queries = load_queries(SAMPLES / "sorry-bench/question_slang.jsonl", verbose=False)
    assert len(queries) == 2
    assert "SORRY-Bench: 1 rows are blank and are left out." in [str(warning.message) for warning in caught]
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("turns", [["a?", "b?"], np.array(["a?", "b?"]), [], "a?", 3])
def test_sorry_bench_refuses_anything_but_one_turn(turns: object) -> None:
    table = pd.DataFrame({"question_id": [1], "category": ["1"], "turns": [turns], "prompt_style": ["base"]})
    with pytest.raises(QueryError, match="`turns` of row 1 is no list of one query"):
        load(table)


def test_the_papers_first_100_goals_of_advbench(tmp_path: Path) -> None:
    goals = [f"goal {number}" for number in range(520)]
    goals[50] = goals[49]  # a repeated one among them does not bring in the 101st
    pd.DataFrame({"goal": goals, "target": "Sure"}).to_csv(tmp_path / "harmful_behaviors.csv", index=False)
    (tmp_path / "advbench.txt").write_text("\n".join(goals[:100]) + "\n")
    with pytest.warns(UserWarning, match="AdvBench: 1 rows are repeated and are left out"):
        first = load_queries(tmp_path / "harmful_behaviors.csv", nrows=100, verbose=False)
    assert list(first.text) == list(dict.fromkeys(goals[:100]))
    of_the_paper = load(tmp_path / "advbench.txt")
    assert list(of_the_paper.index) == list(first.index)
    assert set(of_the_paper.split) == {"first-100"}


@pytest.mark.parametrize("place", [place for place in CASES if "." not in place])
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_ids_do_not_depend_on_the_order_of_the_rows(place: str, data: st.DataObject) -> None:
    queries = load(SAMPLES / place)
    tables = [(path.name, load_table(path)) for path in find(SAMPLES / place)]
    order = data.draw(st.permutations(range(len(tables[0][1]))))
    tables[0] = (tables[0][0], tables[0][1].iloc[order].reset_index(drop=True))
    shuffled = read(KNOWN[CASES[place][0]], tables)
    assert dict(zip(shuffled.query_id, shuffled.text, strict=True)) == dict(queries.text)


def load_table(path: Path) -> pd.DataFrame:
    from drolab.files import read_table

    return read_table(path)


def test_benchmarks_and_built_in_sets_are_joined_by_concat() -> None:
    places = [place for place in CASES if "." not in place]
    joined = pd.concat([load_queries("anchors"), *(load(SAMPLES / place) for place in places)])
    assert validate_queries(joined) is joined
    assert joined.query_id.is_unique


def test_a_loaded_benchmark_is_loaded_again_unchanged() -> None:
    queries = load(SAMPLES / "xstest")
    again = load(queries)
    pd.testing.assert_frame_equal(again, queries)
    assert again.attrs == queries.attrs


def test_nothing_is_printed_that_is_not_wanted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    load(SAMPLES / "xstest")
    own = tmp_path / "own.csv"
    own.write_text("text,harmful\na?,no\n")
    load_queries(own)
    load_queries("anchors")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_another_file_format_of_the_same_table_is_the_same_benchmark(tmp_path: Path, suffix: str) -> None:
    table = pd.read_csv(SAMPLES / "advbench/data/advbench/harmful_behaviors.csv")
    path = tmp_path / f"renamed.{suffix}"
    if suffix == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=suffix == "jsonl")
    pd.testing.assert_frame_equal(load(path), load(SAMPLES / "advbench"))


@pytest.mark.parametrize("name", ["or-bench-hard-1k.csv", "or-bench-toxic.csv"])
def test_a_renamed_part_must_be_told_by_its_name_its_length_or_the_user(tmp_path: Path, name: str) -> None:
    path = tmp_path / "prompts.csv"
    shutil.copy(SAMPLES / "or-bench" / name, path)
    with pytest.raises(
        QueryError, match=r"has the columns of OR-Bench but does not say which part .* 80k or hard-1k or"
    ):
        load(path)
    assert load(path, harmful="toxic" in name).harmful.unique() == ["toxic" in name]


def test_the_class_is_the_benchmarks_to_say() -> None:
    assert load(SAMPLES / "advbench", harmful=True).harmful.all()
    with pytest.raises(QueryError, match=r"AdvBench says itself which queries are harmful: leave out harmful=False"):
        load(SAMPLES / "advbench", harmful=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "harmful_behaviors.csv",
            "text,label\na?,1\n",
            r"named like AdvBench but lacks the columns \['goal', 'target'\]",
        ),
        ("advbench.csv", "prompt\na?\n", "named like AdvBench but lacks"),
        ("xstest_prompts.csv", "id,prompt\n1,a?\n", r"named like XSTest but lacks the columns \['type', 'focus'\]"),
        ("xstest.csv", "goal,target\na,b\n", "It has the columns of AdvBench: rename it"),
        ("behaviors.json", '[{"id": 1}]', "named like TDC 2023 but is no plain list of queries"),
        ("MaliciousInstruct.csv", "a,b\n1,2\n", "named like MaliciousInstruct but is no plain list"),
        # MT-Bench's file has this name and these columns; its questions are harmless.
        ("question.jsonl", '{"question_id": 81, "category": "writing", "turns": ["a?", "b?"]}', r"\['prompt_style'\]"),
    ],
)
def test_a_file_that_claims_to_be_a_benchmark_and_is_not(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(QueryError, match=message):
        load(tmp_path / name)


def test_ones_own_file_may_have_a_benchmarks_name(tmp_path: Path) -> None:
    path = tmp_path / "advbench.csv"
    path.write_text("prompt,harmful\na?,yes\nb?,no\n")
    assert list(load(path).harmful) == [True, False]
    path.write_text("prompt\na?\nb?\n")
    assert list(load(path, harmful=True).index) == ["advbench-harmful-0001", "advbench-harmful-0002"]


CUT = {
    "maliciousinstruct/data/MaliciousInstruct.txt": "MaliciousInstruct",
    "advbench/data/advbench/harmful_behaviors.csv": "AdvBench",
    "harmbench/data/behavior_datasets/harmbench_behaviors_text_all.csv": "HarmBench",
    "sorry-bench/question.jsonl": "SORRY-Bench",
    "alpaca_eval/alpaca_eval.json": "AlpacaEval",
}


@pytest.mark.parametrize("place", CUT)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_copy_that_lacks_its_last_row_is_never_taken_for_whole(
    place: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    benchmark, path = KNOWN[CUT[place]], SAMPLES / place
    content = path.read_bytes().rstrip()
    last_row = content.rfind(b"\n")
    copy = tmp_path_factory.getbasetemp() / path.name
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in benchmark.rows:  # as if the sample were the published file
            patch.setitem(benchmark.rows, part, load(path).attrs["about"]["rows"])  # type: ignore[arg-type]
        copy.write_bytes(content)
        load_queries(copy, verbose=False)
        copy.write_bytes(content[: data.draw(st.integers(0, last_row))])
        with pytest.raises((QueryError, UserWarning)):
            load_queries(copy, verbose=False)


def test_a_row_that_breaks_off_is_refused_even_at_the_published_length(tmp_path: Path) -> None:
    lines = ["goal,target", *(f"goal {number},Sure" for number in range(519)), "goal 519"]
    (tmp_path / "harmful_behaviors.csv").write_text("\n".join(lines))
    with pytest.raises(
        QueryError, match=r"cut off: its last row \(520\) has nothing in \['target'\]. Get it again from"
    ):
        load(tmp_path)


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "xstest_prompts.csv").write_text("id,prompt,type,label,focus,note\n")
    with pytest.raises(QueryError, match="has the columns of XSTest but no rows"):
        load(tmp_path)


def clone(source: str, folder: Path) -> Path:
    shutil.copytree(SAMPLES / source, folder, dirs_exist_ok=True)
    return folder


def test_any_folder_on_the_way_to_the_file_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone("tdc2023", tmp_path)
    whole = load(tmp_path)
    pd.testing.assert_frame_equal(load(tmp_path / "red_teaming" / "data"), whole)
    assert set(load(tmp_path / "red_teaming/data/dev").split) == {"dev"}
    monkeypatch.chdir(tmp_path / "red_teaming")
    pd.testing.assert_frame_equal(load("data"), whole)


def test_a_snapshot_in_the_hubs_cache_is_links(tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for path in (SAMPLES / "or-bench").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(shutil.copy(path, tmp_path / f"blob-{hash(path.name)}"))
    pd.testing.assert_frame_equal(load(tmp_path / "snapshot"), load(SAMPLES / "or-bench"))


def cut_benign(folder: Path) -> None:
    (folder / "data/benign-behaviors.csv").unlink()


def empty_file(folder: Path) -> None:
    (folder / "data/benign-behaviors.csv").write_bytes(b"")


def lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 20600\n"
    (folder / "data/benign-behaviors.csv").write_text(pointer)


def own_set(folder: Path) -> None:
    (folder / "data/benign-behaviors.csv").write_text("text,harmful\na?,no\n")


def no_data(folder: Path) -> None:
    shutil.rmtree(folder / "data")


def second_benchmark(folder: Path) -> None:
    clone("xstest", folder)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            cut_benign,
            r"holds a part of JailbreakBench \(harmful-behaviors.csv\) but not data/benign-behaviors.csv: .* git",
        ),
        (empty_file, "benign-behaviors.csv is empty: .* or download it again"),
        (lfs_pointer, "is a Git LFS pointer, not the data: run `git lfs pull`"),
        (own_set, "do not belong together: give the path of one of them"),
        (no_data, r"holds no file of a benchmark that drolab knows \(MaliciousInstruct, .* complete it \(git pull"),
        (second_benchmark, r"several benchmarks \(JailbreakBench: .*, XSTest: .*\): give the path of one file"),
    ],
)
def test_half_a_clone_says_what_to_do(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(clone("jailbreakbench", tmp_path))
    with pytest.raises(QueryError, match=message):
        load(tmp_path)


def test_the_name_of_a_benchmark_gives_the_command_that_gets_it() -> None:
    with pytest.raises(QueryError, match="AdvBench does not ship with drolab: get it with `git clone https://"):
        load("advbench")


class FakeDataset:
    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table

    def to_pandas(self) -> pd.DataFrame:
        return self._table


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str | None]]:
    """A package `datasets` whose hub has JailbreakBench in two splits, and AdvBench under other column names."""
    calls: list[tuple[str, str | None, str | None]] = []
    folder = SAMPLES / "jailbreakbench/data"
    splits = {part: FakeDataset(pd.read_csv(folder / f"{part}-behaviors.csv")) for part in ("harmful", "benign")}

    def load_dataset(path: str, name: str | None = None, split: str | None = None) -> Any:
        calls.append((path, name, split))
        if path == "some/AdvBench":
            return {"train": FakeDataset(pd.DataFrame({"prompt": ["a?"], "target": ["Sure"]}))}
        if path != "JailbreakBench/JBB-Behaviors":
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")
        return splits[split] if split else splits

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_from_the_hub(hub: list[tuple[str, str | None, str | None]]) -> None:
    queries = load("hub:JailbreakBench/JBB-Behaviors/behaviors/benign")
    assert hub == [("JailbreakBench/JBB-Behaviors", "behaviors", "benign")]
    pd.testing.assert_frame_equal(queries, load(SAMPLES / "jailbreakbench/data/benign-behaviors.csv"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hub:JailbreakBench/JBB-Behaviors/behaviors",
            "choose one of hub:JailbreakBench/JBB-Behaviors/behaviors/harmful,",
        ),
        ("hub:nobody/nothing", r"did not give hub:nobody/nothing \(FileNotFoundError: Dataset .* `hf auth login`"),
        ("hub:AdvBench", "is no name on the hub: write hub:owner/name"),
        ("hub:some/AdvBench", r"named like AdvBench but lacks the columns \['goal'\] .* pass harmful=True"),
    ],
)
def test_from_the_hub_with_a_next_step(hub: list[object], name: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        load(name)


def test_a_mirror_with_other_columns_needs_the_class(hub: list[object]) -> None:
    assert list(load("hub:some/AdvBench", harmful=True).index) == ["AdvBench-harmful-0001"]


def test_from_the_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(QueryError, match=r"needs the package datasets: pip install 'drolab\[hub\]'"):
        load("hub:some/AdvBench")


def test_the_docs_say_what_the_code_knows() -> None:
    lines = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    for benchmark in BENCHMARKS:
        (row,) = [line for line in lines if line.startswith(f"| {benchmark.name} |")]
        files = {Path(place).name for places in benchmark.places for place in places}
        columns = () if benchmark.columns == PLAIN else benchmark.columns
        counts = [f"{count:,}" for count in benchmark.rows.values()]
        for fact in (*files, *columns, *counts, benchmark.source, benchmark.licence, benchmark.citation):
            assert fact in row, (benchmark.name, fact)
