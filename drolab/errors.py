""""""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class DrolabError(Exception):
    """Base of the errors that drolab raises on purpose. Each message ends with what to do next."""


class QueryError(DrolabError, ValueError):
    """A query set is empty, malformed, or lacks something the call needs."""


class PromptError(DrolabError, ValueError):
    """A safety prompt or soft prompt is malformed or does not fit the model."""


class ModelError(DrolabError, ValueError):
    """A model or tokenizer cannot be loaded or cannot do what was asked."""


class ChatTemplateError(ModelError):
    """A chat template is missing, rejects the messages, or changes the prompt beyond recognition."""


class StatesError(DrolabError, ValueError):
    """Hidden states are missing, not finite, or do not match what they are used with."""


class StoreError(DrolabError, OSError):
    """The store cannot be read or written."""


class TrainingError(DrolabError, RuntimeError):
    """DRO training cannot start or go on."""
