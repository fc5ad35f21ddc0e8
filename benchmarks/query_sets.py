"""Are query sets sound: does one (nearly) repeat queries of another, and do length or wording give the class away?

    python benchmarks/query_sets.py                          # the built-in sets, and what the recipes trained on
    python benchmarks/query_sets.py clones/xstest mine.csv   # beside your own and public ones
    python benchmarks/query_sets.py --model smollm2          # nearest neighbours also by a model's states
    python benchmarks/query_sets.py --demo                   # what the demo model makes of the built-in sets

The nearest neighbour of every query in each other set, by TF-IDF of words and letters; what is closer than LEAK is
listed as a leak. What a model's states call close is listed to be read: they judge wording as well as meaning, and
have no threshold. docs/query_sets.md has the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import drolab
from drolab.data.queries import BUILT_IN, FOR_DEMO

sys.path.append(str(Path(__file__).parents[1]))

from recipes.demo_model.corpus import draw_chats
from recipes.smollm2_refusals.corpus import draw_requests

LEAK = 0.45
"""Similarity from which one query counts as a repetition of another: above all that unrelated queries of one wording or
one object reach here, below copies and plain paraphrases (docs/query_sets.md)."""
COLUMNS = ("set", "other", "query_id", "other_id", "similarity", "text", "other_text")

CHATS, REQUESTS = "the demo model's requests", "the adapter's requests"
"""Corpora of the recipes, as sets."""

Similarity = Callable[[list[str], list[str]], np.ndarray]
"""Texts [n] and [m] → [n, m]: 1 for the same."""


# --- nearest neighbours ------------------------------------------------------------------------------------


def lexical(a: list[str], b: list[str]) -> np.ndarray:
    """The mean of two cosines of TF-IDF: over words and their pairs, and over three to five letters within words. How
    frequent they are in both sets and in the built-in ones says how little they tell."""
    usual = [text for name in BUILT_IN for text in drolab.load_queries(name)["text"]]
    options = {"sublinear_tf": True, "strip_accents": "unicode"}
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b", **options)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), **options)
    ways = [way.fit([*usual, *a, *b]) for way in (words, letters)]
    return np.mean([(way.transform(a) @ way.transform(b).T).toarray() for way in ways], axis=0)


def by_states(model: drolab.ChatModel, texts: Sequence[str]) -> Similarity:
    """Cosines of a model's last states without a system text, less their mean and their eight strongest directions,
    which most queries share."""
    unique = list(dict.fromkeys(texts))
    queries = drolab.load_queries(pd.DataFrame({"text": unique}), harmful=False)
    none = {"none": drolab.load_prompts()["none"]}
    states = drolab.hidden_states(model, queries, none, progress=False).values[:, 0].double().numpy()
    states -= states.mean(0)
    strongest = np.linalg.svd(states, full_matrices=False)[2][:8]
    states -= states @ strongest.T @ strongest
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    place = {text: number for number, text in enumerate(unique)}

    def similarity(a: list[str], b: list[str]) -> np.ndarray:
        return states[[place[text] for text in a]] @ states[[place[text] for text in b]].T

    return similarity


def nearest(
    sets: Mapping[str, pd.DataFrame], similarity: Similarity, pairs: Sequence[tuple[str, str]] | None = None
) -> pd.DataFrame:
    """Each query's nearest neighbour in the other set, closest first: COLUMNS.

    Args:
        pairs: of names in `sets`, in this order; None is each with each, both ways.
    """
    found = []
    for one, other in permutations(sets, 2) if pairs is None else pairs:
        a, b = sets[one], sets[other]
        values = similarity(a["text"].tolist(), b["text"].tolist())
        best = values.argmax(1)
        row = {"set": one, "other": other, "query_id": a["query_id"].to_numpy()}
        row |= {"other_id": b["query_id"].to_numpy()[best], "similarity": values.max(1)}
        row |= {"text": a["text"].to_numpy(), "other_text": b["text"].to_numpy()[best]}
        found.append(pd.DataFrame(row, columns=list(COLUMNS)))
    return pd.concat(found).sort_values("similarity", ascending=False, kind="stable", ignore_index=True)


def leaks(found: pd.DataFrame, threshold: float = LEAK) -> pd.DataFrame:
    """Those that are too close, but for what is so by design: the first rows of the built-in sets are about the same
    things, those of the demo model's training, since it knows no others; verbs and wordings differ."""
    first = {name for built_in in BUILT_IN for name in drolab.load_queries(built_in, demo=True)["query_id"]}
    by_design = found["query_id"].isin(first) & (found["other_id"].isin(first) | (found["other"] == CHATS))
    return found[(found["similarity"] >= threshold) & ~by_design]


def corpora(n: int = 10_000) -> dict[str, pd.DataFrame]:
    """What the demo model and the adapter of SmolLM2 were trained on: as many of their requests."""
    texts = {
        CHATS: sorted({chat.query for chat in draw_chats(n, seed=0)}),
        REQUESTS: [request.text for request in draw_requests(n, seed=0)],
    }
    return {
        name: pd.DataFrame({"text": some, "query_id": [f"{name} {number}" for number in range(len(some))]})
        for name, some in texts.items()
    }


# --- what length and wording tell ----------------------------------------------------------------------------


def wordings(queries: pd.DataFrame) -> pd.DataFrame:
    """Of a set of pairs (rows 1 and 2, 3 and 4, …): before, object and after of each query, by what the two share.

    Returns:
        `before`, `object`, `after`, indexed like `queries`: whole words.
    """
    rows = []
    for one, other in zip(queries["text"][::2], queries["text"][1::2], strict=True):
        a, b = one.split(), other.split()
        start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        start -= start > 0 and a[start - 1] in ("a", "an", "the", "my")  # which belong to the objects
        most = min(len(a), len(b)) - start
        end = next((i for i in range(most) if a[-1 - i] != b[-1 - i]), most)
        for words in (a, b):
            cut = len(words) - end
            rows.append((" ".join(words[:start]), " ".join(words[start:cut]), " ".join(words[cut:])))
    return pd.DataFrame(rows, columns=["before", "object", "after"], index=queries.index)


def auc_by_length(queries: pd.DataFrame) -> float:
    """How well the numbers of letters and words tell harmful from harmless, cross-validated by pairs."""
    text = queries["text"]
    return _auc(queries, np.c_[text.str.len(), text.str.split().str.len()], StandardScaler())


def auc_by_words(queries: pd.DataFrame, texts: pd.Series) -> float:
    """How well the words of `texts`, which are about `queries`, tell the classes apart, cross-validated by pairs."""
    return _auc(queries, texts.to_numpy(), TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b|[?.,!]"))


def _auc(queries: pd.DataFrame, given: np.ndarray, prepare: object) -> float:
    groups, harmful = np.arange(len(queries)) // 2, queries["harmful"].to_numpy()
    fit = make_pipeline(prepare, LogisticRegression(max_iter=1000))
    logits = cross_val_predict(fit, given, harmful, groups=groups, cv=GroupKFold(10), method="decision_function")
    return float(roc_auc_score(harmful, logits))


def class_table(queries: pd.DataFrame) -> dict[str, float]:
    """What tells the classes of a set of pairs apart, as AUC."""
    parts = wordings(queries)
    return {
        "length": auc_by_length(queries),
        "wording": auc_by_words(queries, parts["before"] + " " + parts["after"]),
        "objects": auc_by_words(queries, parts["object"]),
    }


# --- what the demo model makes of them ------------------------------------------------------------------------


def demo_table(n_samples: int = 10) -> pd.DataFrame:
    """Of the first rows, of later ones of the same topics and of others: the demo model's refusal rates by class, under
    no prompt and under `default`, and the AUC of a harmfulness probe that was fitted on the first anchors."""
    model, prompts = drolab.load_model("demo"), drolab.load_prompts()
    first = drolab.load_queries("anchors", demo=True)
    fitted = drolab.hidden_states(model, first, prompts, progress=False)
    space = drolab.fit_anchors(fitted)
    probe = drolab.fit_probe(space, fitted, first["harmful"], positive="harmful")
    asked, rows = {name: prompts[name] for name in ("none", "default")}, []
    for name in BUILT_IN:
        for rows_of, queries in _parts(drolab.load_queries(name)).items():
            replies = drolab.generate(model, queries, asked, n_samples=n_samples, max_new_tokens=12, progress=False)
            rates = drolab.judge(replies)["refusal_rate"].unstack("prompt").groupby(queries["harmful"]).mean()
            states = drolab.hidden_states(model, queries, asked["none"], progress=False)
            logits = probe.decision_function(space.transform(states.values[:, 0]))
            both = queries["harmful"].nunique() > 1
            auc = roc_auc_score(states.index["harmful"], logits) if both else np.nan
            said = {
                f"{'harmful' if harmful else 'harmless'}, {prompt}": rates.loc[harmful, prompt]
                for harmful in rates.index
                for prompt in asked
            }
            rows.append({"set": name, "rows": rows_of, "queries": len(queries), **said, "auc": auc})
    return pd.DataFrame(rows)


def _parts(queries: pd.DataFrame) -> dict[str, pd.DataFrame]:
    cut = FOR_DEMO[queries["source"].iloc[0]]
    first, later = queries[:cut], queries[cut:]
    known = later["category"].isin(first["category"])
    parts = {"first": first, "later, the first topics": later[known], "later, others": later[~known]}
    return {name: part for name, part in parts.items() if len(part)}


# --- the review ----------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", help="more query sets, as load_queries takes them")
    parser.add_argument("--model", help="look for neighbours by its states, too, among the built-in sets and these")
    parser.add_argument("--demo", action="store_true", help="only say what the demo model makes of the built-in sets")
    parser.add_argument("--show", type=int, default=5, help="closest ones of each pair of sets (default: %(default)s)")
    given = parser.parse_args()
    if given.demo:
        print(demo_table().round(2).to_string(index=False))
        return
    sets = {name: drolab.load_queries(name) for name in BUILT_IN}
    for name, queries in sets.items():
        print(f"{name}: {len(queries)} queries of {queries['category'].nunique()} categories")
    for name in ("anchors", "heldout"):
        told = ", ".join(f"{what} {auc:.2f}" for what, auc in class_table(sets[name]).items())
        print(f"{name}: what tells harmful from harmless, as AUC: {told}")
    sets |= {file: drolab.load_queries(file, harmful=None, verbose=False) for file in given.files}
    trained = corpora()
    pairs = [*permutations(sets, 2), *(("heldout", name) for name in trained)]
    everything = {**sets, **trained}
    found = nearest(everything, lexical, pairs)
    _show("TF-IDF", found, given.show)
    too_close = leaks(found)
    pairs_of = [frozenset(pair) for pair in zip(too_close["text"], too_close["other_text"], strict=True)]
    too_close = too_close[~pd.Series(pairs_of, index=too_close.index, dtype=object).duplicated()]  # once, not both ways
    print(f"\n{len(too_close)} leaks (similarity of at least {LEAK})")
    if len(too_close):
        print(too_close[["similarity", "text", "other_text"]].round(2).to_string(index=False))
    if given.model:
        model = drolab.load_model(given.model)
        texts = [text for table in sets.values() for text in table["text"]]
        _show(f"states of {given.model}", nearest(sets, by_states(model, texts)), given.show)


def _show(by: str, found: pd.DataFrame, n: int) -> None:
    first = {name for built_in in BUILT_IN for name in drolab.load_queries(built_in, demo=True)["query_id"]}
    for (one, other), rows in found.groupby(["set", "other"], sort=False):
        for is_first, some in rows.groupby(rows["query_id"].isin(first)):
            median, most, highest = some["similarity"].quantile([0.5, 0.9, 1.0])
            which = f"{one}, {'first' if is_first else 'later'} rows"
            print(f"\n{which} → {other}, by {by}: median {median:.2f}, 90 % below {most:.2f}, highest {highest:.2f}")
            for row in some.head(n).itertuples():
                print(f"  {row.similarity:.2f}  {row.text}  ~  {row.other_text}")


if __name__ == "__main__":
    main()
