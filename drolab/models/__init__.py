"""One model, one batch of chats: loading, templates, forward passes, edits of hidden states.

In order: `fingerprint` (what a model computes, as a hash), `reasoning` (a reply taken apart), `templates` (what writes
the chats), `decoder` (the part of a model that reads text), `adapters`, `sources` and `memory` (where weights are, what
is wrong with them, is there room), `load` (`ChatModel`), `chat` (query and prompt → tokens), `layers` (where the blocks
are), `interventions` (edits while the model runs), `passes` (states of a batch behind a shared prefix),
`kv_cache` (reading a batch token by token). What runs many queries and keeps the results is `inference`.
"""

from drolab.models import chat, interventions, passes
from drolab.models.chat import (
    EncodedBatch,
    Prompt,
    Prompts,
    as_prompts,
    audit,
    check_fits,
    embed_text,
    encode,
    prompt_token_ids,
    render,
)
from drolab.models.decoder import check_trainable
from drolab.models.fingerprint import fingerprint
from drolab.models.interventions import (
    Ablate,
    Add,
    Edit,
    Patch,
    Positions,
    acts_at_read_position,
    check_direction,
    check_edits,
    edited_fingerprint,
    steered,
    vectors_of,
    with_vectors,
)
from drolab.models.kv_cache import Reader, reader_for
from drolab.models.layers import check_layers, resolve_layers
from drolab.models.load import ChatModel, load_model, wrap
from drolab.models.passes import (
    Prefix,
    accumulating_gradients,
    can_share_prefix,
    check_positions,
    copy_cache,
    forward_states,
    halve_pass_tokens,
    last_logits,
    plan_passes,
    prefix_cache,
    prefix_embeddings,
    run_prefix,
    states_by_pass,
)
from drolab.models.reasoning import Reply, split_reply
from drolab.models.sources import loading, model_source
from drolab.models.templates import CHAT_FORMATS, Template, Thinking, chat_format

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
    "Prompts",
    "Reader",
    "Reply",
    "Template",
    "Thinking",
    "accumulating_gradients",
    "acts_at_read_position",
    "as_prompts",
    "audit",
    "can_share_prefix",
    "chat",
    "chat_format",
    "check_direction",
    "check_edits",
    "check_fits",
    "check_layers",
    "check_positions",
    "check_trainable",
    "copy_cache",
    "edited_fingerprint",
    "embed_text",
    "encode",
    "fingerprint",
    "forward_states",
    "halve_pass_tokens",
    "interventions",
    "last_logits",
    "load_model",
    "loading",
    "model_source",
    "passes",
    "plan_passes",
    "prefix_cache",
    "prefix_embeddings",
    "prompt_token_ids",
    "reader_for",
    "render",
    "resolve_layers",
    "run_prefix",
    "split_reply",
    "states_by_pass",
    "steered",
    "vectors_of",
    "with_vectors",
    "wrap",
]
