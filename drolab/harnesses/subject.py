"""A model as a harness asks it: under a prompt, perhaps steered, by names and paths that fit on a command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from drolab.data import load_prompts, pick_prompt
from drolab.errors import PromptError, QueryError, shown
from drolab.export import load_directions
from drolab.inference import generate, log_likelihoods
from drolab.models import Add, ChatModel, Prompt, as_prompts, load_model, steered
from drolab.types import NO_PROMPT, PEFT_CONFIG, SoftPrompt


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """Who is asked."""

    model: ChatModel
    prompt: Prompt
    edits: tuple[Add, ...] = ()
    """What is added to its states at every token."""

    @classmethod
    def load(
        cls,
        model: str,
        *,
        prompt: str = NO_PROMPT,
        prompts: str = "safety",
        direction: str | None = None,
        strength: float = 1.0,
        **load: Any,
    ) -> Subject:
        """The one that a command line names.

        Args:
            model: as in `load_model`, which is also told the rest (`load`).
            prompt: the name of a text prompt, or the path of a soft prompt: a folder of `save_pretrained`,
                `export.to_peft` or `export.to_vllm`, or a `.safetensors` file.
            prompts: the set or file that a name is looked up in, see `load_prompts`.
            direction: a folder or file of `export.save_directions`.
            strength: what its vectors are multiplied with.

        Raises:
            PromptError: no such prompt, or one of another model.
            StatesError: no such direction, or one of another model.
            ModelError: see `load_model`.

        Examples:
            >>> from drolab.harnesses import Subject
            >>> subject = Subject.load("demo", prompt="short")
            >>> subject.replies(["How do I boil an egg?"], do_sample=False, max_new_tokens=4)["n_tokens"].tolist()
            [4]
        """
        loaded = load_model(model, **load)
        edits: tuple[Add, ...] = ()
        if direction is not None:
            found = load_directions(direction, loaded)
            edits = tuple(Add(float(strength) * one.vector, layer=one.layer) for one in found)
        chosen = _prompt(loaded, str(prompt), prompts)
        as_prompts(chosen)
        return cls(model=loaded, prompt=chosen, edits=edits)

    @property
    def name(self) -> str:
        """For logs: what is asked, under what."""
        steering = f", steered at layer {', '.join(str(edit.layer) for edit in self.edits)}" if self.edits else ""
        return f"{self.model.name} under {self.prompt.name!r}{steering}"

    def replies(self, questions: Sequence[str], **options: Any) -> pd.DataFrame:
        """A row as from `generate` for each question (and sample), in their order. A question that is asked several
        times gets a sample each time.

        Args:
            options: as in `generate`, which samples unless told otherwise.
        """
        asked, times = _queries(questions), Counter(questions)
        several = max(times.values()) if options.get("do_sample", True) else 1
        options = {"n_samples": several, "progress": False, **options}
        with self._steered() as model:
            found = generate(model, asked, self.prompt, **options)
        wanted: list[int] = []
        rows, seen = found.groupby("text", sort=False).indices, Counter[str]()
        for question in questions:
            if options["n_samples"] == several > 1:
                wanted.append(int(rows[question][seen[question]]))
                seen[question] += 1
            else:
                wanted += [int(row) for row in rows[question]]
        return found.iloc[wanted].reset_index(drop=True)

    def log_likelihoods(self, questions: Sequence[str], answers: Sequence[str]) -> list[float]:
        """How probable each answer to its question is, as a logarithm; -inf for a blank one."""
        numbers = {question: f"q{number}" for number, question in enumerate(dict.fromkeys(questions))}
        table = pd.DataFrame({"text": list(questions), "response": list(answers), "sample": range(len(answers))})
        table = table.assign(query_id=table["text"].map(numbers))
        said = table[table["response"].str.strip() != ""]
        if said.empty:
            return [-float("inf")] * len(table)
        with self._steered() as model:
            found = log_likelihoods(model, said, self.prompt, progress=False)
        values = dict(zip(found["sample"], found["log_likelihood"], strict=True))
        return [float(values.get(number, -float("inf"))) for number in range(len(table))]

    @contextmanager
    def _steered(self) -> Iterator[ChatModel]:
        """In the thread that asks, in which alone an edit is in force."""
        if not self.edits:
            yield self.model
            return
        with steered(self.model, *self.edits) as model:
            yield model


def only_question(messages: Sequence[tuple[str, str]]) -> str:
    """The one question of a conversation of (role, text).

    Raises:
        QueryError: more than one message, or none of a user.
    """
    if len(messages) == 1 and messages[0][0] == "user":
        return messages[0][1]
    raise QueryError(
        f"drolab asks single questions, and this one comes with messages of {[role for role, _ in messages]}: put "
        "examples into the question, and a system text into a prompt of drolab's (prompt=…)."
    )


def _prompt(model: ChatModel, name: str, prompts: str) -> Prompt:
    path = Path(name)
    if (path / PEFT_CONFIG).is_file():
        return SoftPrompt.from_peft(path, model)
    if path.is_dir() or path.suffix == ".safetensors":
        return SoftPrompt.from_pretrained(path)
    found = load_prompts(prompts)
    if name not in found:
        raise PromptError(
            f"{shown(name)} is no soft prompt's folder, and no prompt of {prompts!r}: there are {list(found)}."
        )
    return pick_prompt(found, name)


def _queries(questions: Sequence[str]) -> pd.DataFrame:
    texts = list(dict.fromkeys(questions))
    names = [f"q{number}" for number in range(len(texts))]
    about = {"harmful": False, "category": "", "split": "", "source": "harness"}
    return pd.DataFrame({"query_id": names, "text": texts, **about}, index=names)
