"""One model, one batch of chats: loading, templates, forward passes, edits of hidden states.

In order: `fingerprint` (what a model computes, as a hash), `reasoning` (a reply taken apart), `templates` (what writes
the chats), `places` (where they end), `decoder` (the part of a model that reads text), `adapters`, `sources` and
`memory` (where weights are, what is wrong with them, is there room), `load` (`ChatModel`), `chat` (query and prompt →
tokens), `layers` (where the blocks are), `interventions` (edits while the model runs), `passes` (states of a batch
behind a shared prefix), `kv_cache` (reading a batch token by token), `interop` (a
soft prompt as other programs take it). What runs many queries and keeps the results is
`inference`.
"""

from drolab.models import chat, interventions, passes
from drolab.models.chat import (
    EncodedBatch,
    Prompt,
    Prompts,
    about_none,
    as_prompts,
    audit,
    baselines,
    check_fits,
    embed_text,
    encode,
    own_text,
    prompt_token_ids,
    render,
)
from drolab.models.decoder import check_trainable
from drolab.models.fingerprint import fingerprint
from drolab.models.interop import Prepended, prepended
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
from drolab.models.kv_cache import Reader, can_read_in_place, reader_for
from drolab.models.layers import check_layers, layers_at, resolve_layers, spread_layers
from drolab.models.load import ChatModel, load_model, wrap
from drolab.models.memory import free_memory
from drolab.models.passes import (
    Prefix,
    accumulating_gradients,
    by_pass,
    can_pack,
    can_share_prefix,
    check_logits,
    check_positions,
    copy_cache,
    forward_states,
    halve_pass_tokens,
    label_logits,
    last_logits,
    plan_passes,
    prefix_cache,
    prefix_embeddings,
    run_prefix,
    states_by_pass,
    token_bytes,
)
from drolab.models.places import check_answers_known, check_read_at, thought_mark, unknown_thoughts
from drolab.models.reasoning import (
    THOUGHT_MARKS,
    Reply,
    at_answer,
    could_be_mark,
    marks_among,
    marks_in,
    open_thought,
    split_reply,
    to_answer,
)
from drolab.models.sources import DEMO, Source, find_source, loading, model_source, named_source
from drolab.models.template_thinking import Thinking
from drolab.models.templates import CHAT_FORMATS, Template, chat_format

__all__ = [
    "CHAT_FORMATS",
    "DEMO",
    "THOUGHT_MARKS",
    "Ablate",
    "Add",
    "ChatModel",
    "Edit",
    "EncodedBatch",
    "Patch",
    "Positions",
    "Prefix",
    "Prepended",
    "Prompt",
    "Prompts",
    "Reader",
    "Reply",
    "Source",
    "Template",
    "Thinking",
    "about_none",
    "accumulating_gradients",
    "acts_at_read_position",
    "as_prompts",
    "at_answer",
    "audit",
    "baselines",
    "by_pass",
    "can_pack",
    "can_read_in_place",
    "can_share_prefix",
    "chat",
    "chat_format",
    "check_answers_known",
    "check_direction",
    "check_edits",
    "check_fits",
    "check_layers",
    "check_logits",
    "check_positions",
    "check_read_at",
    "check_trainable",
    "copy_cache",
    "could_be_mark",
    "edited_fingerprint",
    "embed_text",
    "encode",
    "find_source",
    "fingerprint",
    "forward_states",
    "free_memory",
    "halve_pass_tokens",
    "interventions",
    "label_logits",
    "last_logits",
    "layers_at",
    "load_model",
    "loading",
    "marks_among",
    "marks_in",
    "model_source",
    "named_source",
    "open_thought",
    "own_text",
    "passes",
    "plan_passes",
    "prefix_cache",
    "prefix_embeddings",
    "prepended",
    "prompt_token_ids",
    "reader_for",
    "render",
    "resolve_layers",
    "run_prefix",
    "split_reply",
    "spread_layers",
    "states_by_pass",
    "steered",
    "thought_mark",
    "to_answer",
    "token_bytes",
    "unknown_thoughts",
    "vectors_of",
    "with_vectors",
    "wrap",
]
