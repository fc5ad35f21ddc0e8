"""The model class `drolab` for lm-eval (EleutherAI's lm-evaluation-harness).

lm-eval looks for models among its own only, so this file stands before its command and makes `drolab` known to it; all
else is lm-eval's:

    python -m drolab.harnesses.lm_eval run --model drolab --model_args model=demo,prompt=default --tasks …

`model_args` are those of `Subject.load`. Each context is a question, asked through the model's chat template, and
answered or scored under the prompt; so `--apply_chat_template` changes nothing, and examples stand in the question
(`--num_fewshot`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from drolab.errors import QueryError
from drolab.harnesses.subject import Subject, only_question

_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")


@register_model("drolab")
class DrolabLM(LM):  # type: ignore[misc]
    """A `Subject` as lm-eval asks it."""

    def __init__(
        self, model: str, batch_size: Any = None, max_batch_size: Any = None, device: Any = None, **subject: Any
    ):
        """Args: model, subject: as in `Subject.load`. The others are what lm-eval passes to every model."""
        super().__init__()
        # lm-eval says "cuda" where nobody said anything; load_model takes a GPU by itself, if there is one.
        named = {} if device is None or str(device).startswith("cuda") else {"device_map": str(device)}
        self.subject = Subject.load(model, **named | subject)
        self._batch_size = int(batch_size) if str(batch_size).isdigit() else None

    @property
    def tokenizer_name(self) -> str:
        return self.subject.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.subject.model.template.jinja

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The question itself: drolab renders it, with the prompt."""
        return only_question([(message["role"], message["content"]) for message in chat_history])

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        pairs = [request.args for request in requests]
        found = self.subject.log_likelihoods([context for context, _ in pairs], [answer for _, answer in pairs])
        length = max(len(self.subject.model.tokenizer(answer)["input_ids"]) for _, answer in pairs) + 1
        said = self._greedy([context for context, _ in pairs], max_new_tokens=length)
        return [
            (value, reply.lstrip().startswith(answer.strip()))
            for value, reply, (_, answer) in zip(found, said, pairs, strict=True)
        ]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        raise QueryError("drolab measures chats, no running text: use inference.perplexity(model, file).")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_options(request.args[1]), []).append(number)
        found: dict[int, str] = {}
        for options, numbers in groups.items():
            asked = [requests[number].args[0] for number in numbers]
            replies = self.subject.replies(asked, batch_size=self._batch_size, **dict(options))
            found |= dict(zip(numbers, replies["response"], strict=True))
        return [found[number] for number in range(len(requests))]

    def _greedy(self, questions: Sequence[str], **options: Any) -> list[str]:
        replies = self.subject.replies(questions, do_sample=False, batch_size=self._batch_size, **options)
        return list(replies["response"])


def _options(given: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What lm-eval asks for, in drolab's words."""
    until = given.get("until") or ()
    options = {
        "stop_strings": (until,) if isinstance(until, str) else tuple(text for text in until if text),
        "max_new_tokens": int(given.get("max_gen_toks") or given.get("max_new_tokens") or 256),
        "do_sample": bool(given.get("do_sample", False)),
    }
    if options["do_sample"]:
        options |= {name: given[name] for name in _SAMPLING[1:] if given.get(name) is not None}
    return tuple(options.items())


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
