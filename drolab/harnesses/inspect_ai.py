"""The provider `drolab` for inspect_ai (UK AI Security Institute), which finds it by drolab's entry point:

    inspect eval task.py --model drolab/demo -M prompt=default

What stands behind `drolab/` is the model's name, and `-M` gives what else `Subject.load` takes. Each question is asked
by itself, through the model's chat template, under the prompt.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, ModelUsage, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo

from drolab.errors import QueryError


@modelapi(name="drolab")  # type: ignore[untyped-decorator,unused-ignore]
def drolab() -> type[ModelAPI]:
    """What inspect_ai asks for by name."""
    return DrolabAPI


class DrolabAPI(ModelAPI):  # type: ignore[misc]
    """A `Subject` as inspect_ai asks it."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (as inspect_ai's own)
        **subject: Any,
    ) -> None:
        """Args: model_name, subject: as in `Subject.load`. The others are what inspect_ai passes to every model."""
        from drolab.harnesses.subject import Subject

        super().__init__(model_name, base_url, api_key, [], config)
        self.subject = Subject.load(model_name, **subject)
        self._asking = threading.Lock()
        self._asked: Counter[str] = Counter()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Replies of the subject. Without a seed, a question that is asked again gets another sample."""
        from drolab.harnesses.subject import only_question

        if tools:
            raise QueryError("drolab's models are asked in chats, without tools: choose a task that needs none.")
        question = only_question([(message.role, message.text) for message in input])
        seed = config.seed if config.seed is not None else self._asked[question]
        self._asked[question] += 1
        options = _options(config) | {"seed": seed}
        return await anyio.to_thread.run_sync(partial(self._ask, question, options))

    def _ask(self, question: str, options: dict[str, Any]) -> ModelOutput:
        with self._asking:
            replies = self.subject.replies([question], **options)
        ends = {"stop": "stop", "length": "max_tokens"}
        outputs = [
            ModelOutput.from_content(
                self.model_name, row.response, stop_reason=ends.get(str(row.finish_reason), "unknown")
            )
            for row in replies.itertuples()
        ]
        whole = outputs[0]
        whole.choices = [output.choices[0] for output in outputs]
        read = len(self.subject.model.tokenizer(question)["input_ids"])
        written = int(replies["n_tokens"].sum())
        whole.usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
        return whole

    def max_tokens(self) -> int:
        return 256

    def max_connections(self) -> int:
        return 1


def _options(config: GenerateConfig) -> dict[str, Any]:
    """What inspect_ai asks for, in drolab's words; temperature 0 is the most probable token each time."""
    given: dict[str, Any] = {
        "max_new_tokens": config.max_tokens,
        "stop_strings": tuple(config.stop_seqs or ()),
        "n_samples": config.num_choices or 1,
    }
    if config.temperature == 0:
        return given | {"do_sample": False}
    sampling: Sequence[str] = ("temperature", "top_p", "top_k")
    return given | {name: value for name in sampling if (value := getattr(config, name)) is not None}
