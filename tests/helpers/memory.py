"""A model whose passes run out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from drolab.models import ChatModel
from drolab.models.layers import has_blocks


@contextmanager
def memory_for(model: ChatModel, n_tokens: int) -> Iterator[list[int]]:
    """Passes of more tokens than this run out of memory; yields the sizes of those that were tried."""
    has_blocks(model)  # its trial is not what is tried
    tried: list[int] = []

    def before(module: torch.nn.Module, args: object, kwargs: dict[str, Tensor]) -> None:
        rows, length = kwargs["inputs_embeds"].shape[:2]
        tried.append(rows * length)
        if rows * length > n_tokens:
            raise torch.OutOfMemoryError("no memory")

    hook = model.base_model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield tried
    finally:
        hook.remove()
