"""One model, one batch of chats: loading, templates, forward passes, edits of hidden states.

In order: `fingerprint` (what a model computes, as a hash), `load` (`ChatModel`), `chat` (query and prompt → tokens),
`layers` (where the blocks are), `interventions` (edits while the model runs), `passes` (states of a batch behind a
shared prefix), `kv_cache` (reading a batch token by token). What runs many queries and keeps the results is
`inference`.
"""

from drolab.models import chat, interventions, passes
from drolab.models.chat import (
    EncodedBatch,
    Prompt,
    as_prompts,
    audit,
    check_fits,
    embed_text,
    encode,
    prompt_token_ids,
    render,
)
from drolab.models.fingerprint import fingerprint
from drolab.models.interventions import (
    Ablate,
    Add,
    Edit,
    Patch,
    Positions,
    at_read_position,
    check_direction,
    check_edits,
    edits_in_force,
    steered,
)
from drolab.models.kv_cache import Reader, can_read_in_place, reader_for
from drolab.models.layers import block_names, resolve_layers
from drolab.models.load import CHAT_FORMATS, ChatModel, chat_format, load_model, loading, model_source, wrap
from drolab.models.passes import (
    Prefix,
    back_off,
    begin,
    can_pack,
    can_share_prefix,
    check_positions,
    collecting,
    expanded,
    forward_states,
    last_logits,
    pass_states,
    passes_of,
    prefix_cache,
    prefix_embeddings,
)

__all__ = [
    "CHAT_FORMATS",
    "Ablate",
    "Add",
    "ChatModel",
    "Edit",
    "EncodedBatch",
    "Patch",
    "Positions",
    "Prefix",
    "Prompt",
    "Reader",
    "as_prompts",
    "at_read_position",
    "audit",
    "back_off",
    "begin",
    "block_names",
    "can_pack",
    "can_read_in_place",
    "can_share_prefix",
    "chat",
    "chat_format",
    "check_direction",
    "check_edits",
    "check_fits",
    "check_positions",
    "collecting",
    "edits_in_force",
    "embed_text",
    "encode",
    "expanded",
    "fingerprint",
    "forward_states",
    "interventions",
    "last_logits",
    "load_model",
    "loading",
    "model_source",
    "pass_states",
    "passes",
    "passes_of",
    "prefix_cache",
    "prefix_embeddings",
    "prompt_token_ids",
    "reader_for",
    "render",
    "resolve_layers",
    "steered",
    "wrap",
]
