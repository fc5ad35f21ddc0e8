"""Many queries under many prompts, the store first: what is kept is not computed again.

In order: `thoughts` (where in a growing reply the answer begins), `sampling` (which token comes next, and what ends a
reply), `responses` (`generate`), `reply_tokens` (the text of a reply as the tokens that the model wrote), `thinking`
(chats up to their answers), `hidden` (`hidden_states`), `next_tokens` (the distribution of a reply's first token, also
under edits), `likelihood` (how probable given texts are, and how far the next tokens of whole replies are from what
they were). How one batch runs is the business of `models`.
"""

from drolab.inference.hidden import hidden_states
from drolab.inference.likelihood import TEXT_ALONE, log_likelihoods, perplexity, read_texts, reply_divergence
from drolab.inference.next_tokens import divergence, first_token_probabilities, next_tokens
from drolab.inference.reply_tokens import reply_tokens
from drolab.inference.responses import at_once, generate, reply_bytes, thinking_budget
from drolab.inference.sampling import whole_paragraphs
from drolab.inference.thinking import reading_places

__all__ = [
    "TEXT_ALONE",
    "at_once",
    "divergence",
    "first_token_probabilities",
    "generate",
    "hidden_states",
    "log_likelihoods",
    "next_tokens",
    "perplexity",
    "read_texts",
    "reading_places",
    "reply_bytes",
    "reply_divergence",
    "reply_tokens",
    "thinking_budget",
    "whole_paragraphs",
]
