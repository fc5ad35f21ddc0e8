"""What training did to a soft prompt, token by token: how long its vectors are, and how far they went."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from drolab.errors import PromptError
from drolab.models import ChatModel, check_fits, embed_text, prompt_token_ids
from drolab.types import SafetyPrompt, SoftPrompt


def as_embeddings(model: ChatModel, prompt: SafetyPrompt) -> SoftPrompt:
    """A text prompt as the embeddings that a soft prompt starts from: its text tokenised alone, without BOS.

    Raises:
        PromptError: a prompt without a text.
    """
    if not prompt_token_ids(model, prompt.text):
        raise PromptError(
            f"Prompt {prompt.name!r} has no text, so no tokens: pass the prompt that training began with."
        )
    embedded = embed_text(model, prompt.text)
    return SoftPrompt(name=prompt.name, embeddings=embedded, init_text=prompt.text, model_fingerprint=model.fingerprint)


def token_drift(prompt: SoftPrompt, against: SoftPrompt | None = None) -> pd.DataFrame:
    """How each vector of a soft prompt differs from the one in the same place of another.

    Returns:
        prompt, against, token (from 0), norm (of the first prompt's vector), drift (their Euclidean distance), cosine;
        the last two are NaN without another prompt.

    Raises:
        PromptError: prompts of another shape.
    """
    own = prompt.embeddings
    columns = {"prompt": prompt.name, "against": "", "token": range(len(prompt)), "norm": own.double().norm(dim=1)}
    if against is None:
        return pd.DataFrame({**columns, "drift": np.nan, "cosine": np.nan})
    other = against.embeddings
    if own.shape != other.shape:
        raise PromptError(
            f"Soft prompt {prompt.name!r} has {len(prompt)} vectors of width {own.shape[1]}, but {against.name!r} has "
            f"{len(against)} of width {other.shape[1]}: they did not start from the same prompt in the same model."
        )
    drift, cosine = (own - other).double().norm(dim=1), torch.cosine_similarity(own.double(), other.double(), dim=1)
    return pd.DataFrame({**columns, "against": against.name, "drift": drift, "cosine": cosine})


def drift_from_text(model: ChatModel, prompt: SoftPrompt, init: SafetyPrompt) -> pd.DataFrame:
    """`token_drift` from the human prompt that training began with, and the `text` of its tokens.

    Cosines near 0 at every token say that the prompt was made for other weights.

    Raises:
        PromptError: the soft prompt does not fit the model, or the text has another number of tokens in it.
    """
    check_fits(model, prompt)
    start = as_embeddings(model, init)
    if len(start) != len(prompt):
        raise PromptError(
            f"Soft prompt {prompt.name!r} has {len(prompt)} vectors, but prompt {init.name!r} has {len(start)} tokens "
            f"in {model.name!r}: load the model it was trained on, and give the prompt it began with."
        )
    texts = [str(model.tokenizer.decode([number])) for number in prompt_token_ids(model, init.text)]
    return token_drift(prompt, start).assign(text=texts)
