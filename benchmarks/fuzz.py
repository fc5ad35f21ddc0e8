"""What each reader does with broken input: sound files, damaged by seeded mutations, read through their public face.

    python benchmarks/fuzz.py                           # 10,000 inputs to each reader, hours; the tables of the docs
    python benchmarks/fuzz.py --inputs 500 --only store # some of them
    python benchmarks/fuzz.py --only csv --first 4711 --inputs 1   # one input again, with its error

An input is *refused* (an error of drolab's own; for the store: entries count as missing) or *read*. Counted where
broken: another exception (*raw*), more than five seconds (*slow*), and values that are *wrong*: other than what was put
into the store, or than what a plain parser finds in the damaged file.
"""

from __future__ import annotations

import argparse
import ast
import csv
import io
import json
import logging
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pyarrow.parquet
import torch
import yaml
from safetensors.torch import load

from drolab import published
from drolab.data import load_prompts, load_queries, load_xstest
from drolab.dro import KeptRun, load_runs, save_run
from drolab.errors import DrolabError
from drolab.judges import HandJudge
from drolab.notebooks import read_notebooks
from drolab.store import Store, key
from drolab.types import AnchorSpace, DROConfig, DRORun, Probe, SoftPrompt

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers import small_release, small_xstest

LIMIT_S = 5
TABLE = pd.DataFrame(
    {
        "text": ["How do I bake bread?", 'Say "hello",\nor two: naïve?', "Why; how | when?", "None", "  4.50"],
        "harmful": [False, True, False, True, False],
        "category": ["food", "", "日本", "a,b", "x"],
        "query_id": ["q1", "q2", "q3", "q4", "q5"],
    }
)
TOKENS = (
    *(b"", b"null", b"NaN", b"-1", b"1e999", b"0", b"true", b'""', b"[]", b"{}", b"[" * 2000, b'{"a":' * 2000, b"None"),
    *(
        b'"',
        b"'",
        b",",
        b";",
        b"\t",
        b"\n",
        b"\r",
        b"\r\n",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\\ud83d",
        b"\xe2\x80\xa8",
    ),
    *(b": ", b"- ", b"&a ", b"*a", b"<<: *a", b"!!bool x", b"!!timestamp x", b"? ", b"|\n", b"0000-00-00", b"#", b"%"),
    *(b"9" * 5000, b"A" * 5000, b"../../x", b"=1+1", b"<html>", b"version https://git-lfs.github.com/spec/"),
)
"""What a mutation puts in: what parsers trip over."""


class SlowError(Exception):
    """The time limit."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader: how its sound files are made, how they are read, and what must hold of what was read."""

    write: Callable[[Path], None]
    """Writes sound files into a folder."""
    read: Callable[[Path], Any]
    """Reads the folder; None means that it counts as missing."""
    law: Callable[[Path, Any], bool] = lambda folder, value: True
    """Whether what was read is what the files say."""


@dataclass
class Counts:
    """What became of the inputs of one reader."""

    inputs: int = 0
    refused: int = 0
    read: int = 0
    raw: int = 0
    slow: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        return self.raw == self.slow == self.wrong == 0


# ---------------------------------------------------------------- mutations


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to four changes: a bit, a piece lost, doubled or cut off, or something put in."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        start = draw.randrange(len(content) + 1)
        stop = min(len(content), start + draw.choice((1, 1, 4, 30, 300)))
        piece, token = content[start:stop], draw.choice(TOKENS)
        kind = draw.randrange(6)
        if kind == 0 and piece:
            new = bytes([piece[0] ^ 1 << draw.randrange(8)]) + piece[1:]
        elif kind == 1:
            new = b""
        elif kind == 2:
            new = piece * draw.choice((2, 2, 5))
        elif kind == 3:
            new, stop = b"", len(content)
        elif kind == 4:
            new = token
        else:
            new = token + piece
        content = content[:start] + new + content[stop:]
    return content


def run(name: str, inputs: int, first: int = 0) -> Counts:
    """Give so many inputs to a reader, from number `first` on: the same ones every time, up to the order of
    metadata in safetensors files, which that library draws."""
    reader, counts = READERS[name], Counts()
    with tempfile.TemporaryDirectory(prefix="drolab-fuzz-") as place, _quiet():
        folder = Path(place)
        reader.write(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sound = {path: path.read_bytes() for path in files}
        if reader.read(folder) is None or not reader.law(folder, reader.read(folder)):
            raise RuntimeError(f"The reader {name} does not read its own sound files: mend the benchmark.")
        for number in range(first, first + inputs):
            draw = random.Random(f"{name}:{number}")
            path = draw.choice(files)
            path.write_bytes(mutated(sound[path], draw))
            _one(name, number, reader, folder, counts)
            path.write_bytes(sound[path])
    return counts


def _one(name: str, number: int, reader: Reader, folder: Path, counts: Counts) -> None:
    counts.inputs += 1
    started = time.perf_counter()
    try:
        with _time_limit(2 * LIMIT_S):
            value = reader.read(folder)
            if value is None:
                counts.refused += 1
            elif reader.law(folder, value):
                counts.read += 1
            else:
                counts.wrong += 1
                counts.failures.append(f"{name} {number}: wrong: {str(value)[:300]}")
    except DrolabError:
        counts.refused += 1
    except SlowError:
        pass  # counted below
    except WrongValueError as error:
        counts.wrong += 1
        counts.failures.append(f"{name} {number}: wrong: {error}")
    except Exception:  # whatever it is, it is what is looked for
        counts.raw += 1
        counts.failures.append(f"{name} {number}: {traceback.format_exc()}")
    if time.perf_counter() - started > LIMIT_S:
        counts.slow += 1
        counts.failures.append(f"{name} {number}: slow")


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise SlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """The store warns of what is damaged, benchmarks of what is repeated: both are meant here."""
    logger = logging.getLogger("drolab")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---------------------------------------------------------------- query files


def _queries(suffix: str, law: Callable[[bytes], list[str]]) -> Reader:
    def write(folder: Path) -> None:
        path = folder / f"mine.{suffix}"
        if suffix == "csv":
            TABLE.to_csv(path, index=False)
        elif suffix == "parquet":
            TABLE.to_parquet(path, index=False)
        elif suffix == "txt":
            path.write_text("\n".join(TABLE["text"].str.replace("\n", " ")), encoding="utf-8")
        else:
            TABLE.to_json(path, orient="records", lines=suffix == "jsonl", force_ascii=False)

    def read(folder: Path) -> pd.DataFrame:
        harmful = True if suffix == "txt" else None
        return load_queries(folder / f"mine.{suffix}", harmful=harmful, verbose=False)

    def holds(folder: Path, queries: pd.DataFrame) -> bool:
        return queries["text"].tolist() == law((folder / f"mine.{suffix}").read_bytes())

    return Reader(write=write, read=read, law=holds)


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig")


def _column(rows: list[dict[str, Any]]) -> list[Any]:
    """The column that `load_queries` takes."""
    names = {str(name).lower(): name for row in reversed(rows) for name in reversed(row)}
    wanted = next(name for name in ("text", "query", "prompt", "goal", "instruction", "question") if name in names)
    return [row[names[wanted]] for row in rows]


def _csv_rows(content: bytes) -> list[dict[str, str]]:
    """As RFC 4180 has it; blank lines are none, and rows that end early have empty fields."""
    text = _text(content)
    if "\n" in text and not text.partition("\n")[0].endswith("\r"):
        records = list(csv.reader(_line_feeds(text)))
    else:
        records = list(csv.reader(io.StringIO(text, newline="")))
    records = [
        [cell.replace(_RETURN, "\r") for cell in record]
        for record in records
        if record not in ([], [""]) and "".join(record).strip(" \t") + "," * (len(record) - 1)
    ]
    header = [name.strip() for name in records[0]]
    return [dict(zip(header, [*record, *[""] * len(header)], strict=False)) for record in records[1:]]


def _line_feeds(text: str) -> Iterator[str]:
    """Lines that end in line feeds alone: Python's reader ends one at a lone carriage return, too."""
    for line in text.split("\n"):
        yield line.replace("\r", _RETURN) + "\n"


_RETURN = "\ue00d"


def _csv_texts(content: bytes) -> list[str]:
    return _column(_csv_rows(content))


def _txt_lines(content: bytes) -> list[str]:
    lines = _text(content).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.strip() for line in lines if line.strip()]


def _jsonl_texts(content: bytes) -> list[Any]:
    lines = _text(content).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return _column([json.loads(line) for line in lines if line.strip()])


# ---------------------------------------------------------------- prompts


def _prompts(suffix: str) -> Reader:
    path = f"mine.{suffix}"
    entries = {
        "none": "",
        "mine": 'Be careful: it is "hot".',
        "haiku": {"text": "Answer\nin 5-7-5.", "kind": "neutral"},
    }

    def write(folder: Path) -> None:
        text = yaml.safe_dump(entries, sort_keys=False) if suffix == "yaml" else json.dumps(entries)
        (folder / path).write_text(text, encoding="utf-8")

    def holds(folder: Path, prompts: dict[str, Any]) -> bool:
        text = _text((folder / path).read_bytes())
        content = yaml.safe_load(text) if suffix == "yaml" else json.loads(text)
        said = {name: entry if isinstance(entry, dict) else {"text": entry} for name, entry in content.items()}
        return {name: (one.text, one.kind) for name, one in prompts.items()} == {
            name: (entry["text"], entry.get("kind", "safety")) for name, entry in said.items()
        }

    return Reader(write=write, read=lambda folder: load_prompts(folder / path), law=holds)


def _write_soft(folder: Path) -> None:
    soft = SoftPrompt(
        name="mine", embeddings=torch.arange(12.0).reshape(3, 4), init_text="Be kind.", model_fingerprint="f"
    )
    soft.save_pretrained(folder)


def _soft_holds(folder: Path, soft: SoftPrompt) -> bool:
    content = load((folder / "soft_prompt.safetensors").read_bytes())["soft_prompt"]
    return torch.equal(content.float(), soft.embeddings) and len(soft) > 0


# ---------------------------------------------------------------- clones, labels


def _write_release(folder: Path) -> None:
    small_release.write(folder)


def _read_release(folder: Path) -> tuple[published.Release, pd.DataFrame]:
    release = published.load(folder)
    for model, prompt in zip(release.soft_prompts["model"], release.soft_prompts["prompt"], strict=True):
        release.soft_prompt(model, prompt)
    return release, release.responses()


def _release_holds(folder: Path, found: tuple[published.Release, pd.DataFrame]) -> bool:
    release, responses = found
    for place, path in release.response_files.items():
        rows = _csv_rows(path.read_bytes())
        same = np.logical_and.reduce(
            [responses[name] == value for name, value in place._asdict().items() if name != "measure"]
        )
        if [row["output"] for row in rows] != responses.loc[same, "response"].tolist():
            return False
    counts = release.counts
    return bool(counts["count"].between(0, counts["n_queries"]).all()) and bool(
        release.queries["events"].between(0, release.queries["n_samples"]).all()
    )


def _xstest_holds(folder: Path, table: pd.DataFrame) -> bool:
    labels = {
        "1_full_compliance": "compliance",
        "3_partial_refusal": "partial_refusal",
        "2_full_refusal": "full_refusal",
    }
    rows = [row for path in sorted(folder.glob("*.csv")) for row in _csv_rows(path.read_bytes())]
    said = sorted((row["completion"], labels[row["final_label"]]) for row in rows)
    return said == sorted(zip(table["response"], table["label"], strict=True))


def _write_xstest(folder: Path) -> None:
    labels = [small_xstest.YES, small_xstest.NO, small_xstest.PARTLY, small_xstest.YES]
    for name in ("gpt4", "mistralguard"):
        small_xstest.write(folder, name, labels)


def _write_labels(folder: Path) -> None:
    hand = HandJudge()
    for number, (name, label) in enumerate([("q1", "refusal"), ("=q2", "compliance"), ("q,3\n", "refusal")]):
        row = pd.Series({"query_id": name, "prompt": "none", "sample": number, "response": 'No, "never".'})
        hand = hand.labelled(row, label)
    (folder / "labels.csv").write_bytes(hand.to_csv())


def _labels_hold(folder: Path, hand: HandJudge) -> bool:
    text = (folder / "labels.csv").read_bytes().decode("utf-8", "surrogatepass").removeprefix("\ufeff")
    rows = [[value.removeprefix("'") for value in row] for row in csv.reader(io.StringIO(text, newline=""))]
    said = [(*row[:2], int(row[2]), *row[3:]) for row in rows[1:]]
    return said == list(hand.labels.itertuples(index=False, name=None))


# ---------------------------------------------------------------- the store


@cache
def _put() -> tuple[dict[str, torch.Tensor], dict[str, str], str, dict[str, torch.Tensor]]:
    tensors = {key(what="tensor", n=n): torch.arange(8.0) * n for n in range(6)}
    texts = {key(what="text", n=n): f"text {n} ä\n" * n for n in range(6)}
    return tensors, texts, key(what="run"), {"weights": torch.arange(30.0), "step": torch.tensor([3])}


def _write_store(folder: Path) -> None:
    tensors, texts, name, state = _put()
    store = Store(folder)
    store.put_tensors(list(tensors)[:3], torch.stack(list(tensors.values())[:3]), note="first")
    store.put_tensors(list(tensors)[3:], torch.stack(list(tensors.values())[3:]), note="then")
    store.put_texts(texts, note="texts")
    store.save_run(name, state, {"step": "3", "note": "a run"})


def _read_store(folder: Path) -> Any:
    """All that is found; None if anything is missing."""
    tensors, texts, name, _ = _put()
    store = Store(folder)
    found = store.get_tensors(list(tensors)), store.get_texts(list(texts)), store.load_run(name)
    store.files()
    store.check()
    whole = len(found[0]) == len(tensors) and len(found[1]) == len(texts) and found[2] is not None
    _check_store(found)
    return found if whole else None


class WrongValueError(Exception):
    """The store returned a value that nobody put."""


def _check_store(found: Any) -> None:
    tensors, texts, _, state = _put()
    right = all(torch.equal(value, tensors[name]) for name, value in found[0].items())
    right &= all(value == texts[name] for name, value in found[1].items())
    if found[2] is not None:
        right &= found[2][1] == {"step": "3", "note": "a run"} and found[2][0].keys() == state.keys()
        right = right and all(torch.equal(value, state[name]) for name, value in found[2][0].items())
    if not right:
        raise WrongValueError(str(found)[:300])


# ---------------------------------------------------------------- runs, notebooks


@cache
def _run() -> DRORun:
    soft = SoftPrompt(
        name="mine", embeddings=torch.arange(8.0).reshape(2, 4), init_text="Be kind.", model_fingerprint="f"
    )
    names = [
        "step",
        "epoch",
        "refusal_loss",
        "harmfulness_loss",
        "residual_loss",
        "loss",
        "residual_drift",
        "grad_norm",
    ]
    history = pd.DataFrame([[n, 0, 0.1 * n, 0.2, 0.3, 0.4, 0.5, 1 / 3] for n in (1, 2)], columns=names)
    probe = Probe(coef=torch.tensor([1.0, 2.0]), intercept=0.5, positive="refuses")
    space = AnchorSpace(
        mean=torch.zeros(4),
        components=torch.eye(4)[:2],
        explained_variance_ratio=torch.tensor([0.6, 0.3]),
        layer=2,
        residual_variance=0.1,
    )
    return DRORun(
        soft_prompt=soft,
        history=history,
        config=DROConfig(),
        space=space,
        refusal=probe,
        harmfulness=probe,
        snapshots={0: soft.embeddings * 2, 2: soft.embeddings},
    )


def _write_run(folder: Path) -> None:
    save_run(folder, "mine", KeptRun(loaded=_run()))


def _run_is_the_saved_one(_: Path, runs: dict[str, KeptRun]) -> bool:
    return list(runs) == ["mine"] and repr(_plain(runs["mine"].run)) == repr(_plain(_run()))


def _plain(value: Any) -> Any:
    """All that is in it, in lists and numbers."""
    if isinstance(value, (torch.Tensor, pd.DataFrame)):
        return value.tolist() if isinstance(value, torch.Tensor) else value.to_numpy().tolist()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return _plain(vars(value)) if hasattr(value, "__dict__") else value


def _write_older_run(folder: Path) -> None:
    _write_run(folder)
    next(folder.glob("*/SHA256SUMS")).unlink()


def _runs_hold(folder: Path, runs: dict[str, KeptRun]) -> bool:
    """The history is what its file says, every tensor what its file says."""
    (kept,) = runs.values()
    (place,) = (path.parent for path in folder.glob("*/run.json"))
    rows = _csv_rows((place / "history.csv").read_bytes())
    said = [[float(row[name]) for name in kept.run.history.columns] for row in rows]
    state = load((place / "state.safetensors").read_bytes())
    same = np.array_equal(kept.run.history.to_numpy(dtype=float), np.array(said), equal_nan=True)
    return same and all(torch.equal(value, state[f"snapshot.{step}"]) for step, value in kept.run.snapshots.items())


PARAMETERS: dict[str, Any] = {"MODEL": "demo", "LAYER": -1, "PROMPTS": ["none", "a'b"], "OUT": None}


def _write_notebook(folder: Path) -> None:
    cells = [
        nbformat.v4.new_markdown_cell("# A question"),
        nbformat.v4.new_code_cell("\n".join(f"{name} = 0" for name in PARAMETERS), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(MODEL)"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "a.ipynb")
    (folder / "parameters.txt").write_text(repr(PARAMETERS))


def _read_notebook(folder: Path) -> Any:
    """The cell that sets the parameters; the mutated ones where they are still Python."""
    try:
        parameters = ast.literal_eval((folder / "parameters.txt").read_bytes().decode("latin-1"))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    if not isinstance(parameters, dict):
        return None
    ((_, notebook),) = read_notebooks([folder / "a.ipynb"], parameters)
    return parameters, notebook


def _notebook_holds(folder: Path, found: Any) -> bool:
    parameters, notebook = found
    cells = [cell.source for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    if not parameters:
        return not cells
    lines = [ast.parse(line).body[0] for line in cells[0].split("\n")]
    said = {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    return repr(said) == repr(dict(parameters))


READERS: dict[str, Reader] = {
    "queries csv": _queries("csv", _csv_texts),
    "queries json": _queries("json", lambda content: _column(json.loads(_text(content)))),
    "queries jsonl": _queries("jsonl", _jsonl_texts),
    "queries txt": _queries("txt", _txt_lines),
    "queries parquet": _queries(
        "parquet", lambda content: _column(pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist())
    ),
    "prompts yaml": _prompts("yaml"),
    "prompts json": _prompts("json"),
    "soft prompts": Reader(write=_write_soft, read=SoftPrompt.from_pretrained, law=_soft_holds),
    "the paper's release": Reader(write=_write_release, read=_read_release, law=_release_holds),
    "XSTest": Reader(write=_write_xstest, read=load_xstest, law=_xstest_holds),
    "hand labels": Reader(
        write=_write_labels, read=lambda folder: HandJudge.load(folder / "labels.csv"), law=_labels_hold
    ),
    "store": Reader(write=_write_store, read=_read_store),
    "run folders": Reader(write=_write_run, read=load_runs, law=_run_is_the_saved_one),
    "older run folders": Reader(write=_write_older_run, read=load_runs, law=_runs_hold),
    "notebook parameters": Reader(write=_write_notebook, read=_read_notebook, law=_notebook_holds),
}


def line(name: str, counts: Counts) -> str:
    """A row of the table."""
    numbers = (counts.inputs, counts.refused, counts.read, counts.raw, counts.slow, counts.wrong)
    return f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs to each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", default="", help="readers whose name holds this")
    options = parser.parse_args()
    print(
        "| reader | inputs | refused | read | raw exceptions | over 5 s | wrong |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for name in READERS:
        if options.only in name:
            counts = run(name, options.inputs, options.first)
            print(line(name, counts), flush=True)
            for failure in counts.failures[:5]:
                print(failure, file=sys.stderr)


if __name__ == "__main__":
    main()
