"""Judges: from the text of a response to a verdict, and from verdicts to rates.

In the order in which its modules stand: `string_rule` (the paper's rule), `base` (the protocol, `judge`, several judges
side by side), `text_reading` with `text_patterns.yaml` and `refusal_text` (drolab's own judge), `guards` (models as
judges, the paper's composite), `first_token`, `human_labels`, `agreement` (how far judges are of one opinion).

- `is_refusal`: refusal or not, by the paper's string rule; `is_refusal_raw`: the same of all that the model wrote, its
  thoughts, too. They need a response.
- `TextJudge`: full refusal, partial refusal, compliance. It needs query and response.
- `CompositeJudge`: the paper's compliance with harmful queries. It needs a guard.
- `LlamaGuard`, `ShieldGemma`, `Classifier`: whether a response is unsafe (or refuses). They need a model.
- `FirstTokenJudge`: a score, without sampling. It needs judged responses, and the model.
- `HandJudge`: what a person said. It needs labels.

Judges read the answer: what a model thinks aloud is left out (`models.split_reply`), and of a response that ends before
its answer begins they have no opinion (`n_unanswered` counts those). Hand labels and `is_refusal_raw` are of whole
responses.

A judge is anything with `verdicts(responses)`, or a plain function of the response: `Judge` shows how to write one.
`judge` makes a table of rates, `verdicts` and `opinions` set several judges side by side, `disagreement` and
`confusion` compare them. Which one for what, with their known failures: `docs/judges.md`.
"""

from drolab.judges.agreement import confusion, disagreement
from drolab.judges.base import (
    VERDICTS,
    AnyJudge,
    Judge,
    judge,
    n_unanswered,
    opinion,
    opinions,
    score_table,
    verdicts,
)
from drolab.judges.first_token import FirstTokenJudge, calibration_table, score_agreement
from drolab.judges.guards import Classifier, CompositeJudge, Guard, LlamaGuard, ShieldGemma, longest
from drolab.judges.human_labels import LABEL_COLUMNS, HandJudge
from drolab.judges.refusal_text import TextJudge, named
from drolab.judges.string_rule import is_refusal, is_refusal_raw, refusal_words

__all__ = [
    "LABEL_COLUMNS",
    "VERDICTS",
    "AnyJudge",
    "Classifier",
    "CompositeJudge",
    "FirstTokenJudge",
    "Guard",
    "HandJudge",
    "Judge",
    "LlamaGuard",
    "ShieldGemma",
    "TextJudge",
    "calibration_table",
    "confusion",
    "disagreement",
    "is_refusal",
    "is_refusal_raw",
    "judge",
    "longest",
    "n_unanswered",
    "named",
    "opinion",
    "opinions",
    "refusal_words",
    "score_agreement",
    "score_table",
    "verdicts",
]
