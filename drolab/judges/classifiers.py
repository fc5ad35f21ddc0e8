"""Sequence classifiers as guards or as judges, through transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from drolab.judges.base import COMPLIES, FULL
from drolab.judges.guards import ReadingGuard, each_once
from drolab.models.load import loading, model_source
from drolab.progress import Progress
from drolab.types import ModelError


@dataclass(frozen=True, eq=False)
class Classifier(ReadingGuard):
    """Any sequence classifier of transformers: its probability of one or several of its labels."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    """The labels that count, by their names in the model's configuration."""
    means: Literal["unsafe", "refusal"] = "unsafe"
    """What the labels say of a response."""
    reads: Literal["pair", "response"] = "pair"
    """Query and response as a pair of texts, or the response alone: as it was trained."""
    batch_size: int = 16
    threshold: float = 0.5
    name: str = ""

    def __post_init__(self) -> None:
        known = list(_labels(self.model))
        if not self.labels or (unknown := [label for label in self.labels if label not in known]):
            missing = f"no label {', '.join(map(repr, unknown))}" if self.labels else "to be told which labels count"
            raise ModelError(f"The classifier {self.name!r} has {missing}: pass labels=(…), some of {known}.")
        if self.means not in ("unsafe", "refusal") or self.reads not in ("pair", "response"):
            raise ModelError("A Classifier means 'unsafe' or 'refusal', and reads a 'pair' or the 'response'.")

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        labels: str | Sequence[str],
        means: Literal["unsafe", "refusal"] = "unsafe",
        reads: Literal["pair", "response"] = "pair",
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: str | dict[str, Any] | None = None,
    ) -> Classifier:
        """Load from the hub or a folder; weights from safetensors only.

        Raises:
            ModelError: no such model, no access, no safetensors, no classifier, or labels that it lacks.
        """
        name = str(name_or_path)
        with loading(name):
            source = model_source(name)
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            result: Any = AutoModelForSequenceClassification.from_pretrained(
                source,
                revision=revision,
                dtype=dtype or "auto",
                device_map=device_map,
                use_safetensors=True,
                output_loading_info=True,
            )
        model, loaded = result
        if missing := sorted(loaded["missing_keys"]):  # transformers fills them with random numbers
            raise ModelError(f"{name!r} is no trained classifier: it lacks {missing[0]}. Choose one that was trained.")
        model.eval().requires_grad_(False)
        named = (labels,) if isinstance(labels, str) else tuple(labels)
        return cls(model, tokenizer, named, means=means, reads=reads, name=name)

    def scores(self, responses: pd.DataFrame, *, progress: Progress = False) -> pd.DataFrame:
        """Per response the probability of each label under its name, and `unsafe`, that of the labels that count: their
        sum, or the largest where the model was trained for several labels at once."""
        return each_once(responses, self._classify, progress)

    def verdicts(self, responses: pd.DataFrame) -> pd.Series:
        """Of labels that mean unsafe as for every guard; of those that mean refusal full_refusal or compliance."""
        if self.means == "unsafe":
            return super().verdicts(responses)
        refuses = self.unsafe(responses).to_numpy() >= self.threshold
        return pd.Series(np.where(refuses, FULL, COMPLIES), index=responses.index, dtype="string")

    @torch.no_grad()
    def _classify(self, pairs: Sequence[tuple[str, str]], done: Callable[[int], None]) -> pd.DataFrame:
        several = self.model.config.problem_type == "multi_label_classification"
        parts = []
        for batch in _chunks(pairs, self.batch_size):
            logits = self.model(**self._encode(batch)).logits.cpu().double()
            parts.append(logits.sigmoid() if several else logits.softmax(dim=-1))
            done(len(batch))
        table = pd.DataFrame(torch.cat(parts).numpy(), columns=_labels(self.model))
        own = table[list(self.labels)]
        table.insert(0, "unsafe", own.max(axis=1) if several else own.sum(axis=1))
        return table

    def _encode(self, batch: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        limit = min(self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None) or 512)
        queries, responses = map(list, zip(*batch, strict=True))
        texts = (queries, responses) if self.reads == "pair" else (responses,)
        cut = "only_second" if self.reads == "pair" else True
        try:
            encoded = self.tokenizer(*texts, padding=True, truncation=cut, max_length=limit, return_tensors="pt")
        except Exception as error:  # tokenizers raises nothing more special
            raise ModelError(
                f"A query is longer than {self.name!r} can read ({limit} tokens): leave it out."
            ) from error
        return {name: value.to(self.model.device) for name, value in encoded.items()}


def _labels(model: PreTrainedModel) -> list[str]:
    names: Any = model.config.id2label
    return [str(names[number]) for number in range(len(names))]


def _chunks(pairs: Sequence[tuple[str, str]], size: int) -> Iterator[Sequence[tuple[str, str]]]:
    return (pairs[start : start + size] for start in range(0, len(pairs), size))
