"""What is asked, and under which prompts: query sets, safety prompts, public benchmarks, released results.

In order: `benchmarks` (recognise and read files of public benchmarks), `queries` (a checked table of queries),
`attacks` (queries derived from others: jailbreaks), `prompts` (safety prompts and controls), `release` (a clone of the
paper's released results), `xstest` (a clone of XSTest's responses with human labels), `paper` (the paper's eight
models, how they were run and what was released of them, small enough to ship), `alpaca_eval` (files to and from
AlpacaEval). What these results say is measured in `evidence`.
"""

from drolab.data import attacks, prompts
from drolab.data.alpaca_eval import (
    ALPACA_COLUMNS,
    ANNOTATION_COLUMNS,
    load_alpaca_annotations,
    save_alpaca_outputs,
)
from drolab.data.attacks import children_of
from drolab.data.benchmarks import BENCHMARKS, Benchmark
from drolab.data.paper import (
    PAPER_RESULTS,
    ROLES,
    PaperModel,
    beside_paper,
    find_paper_model,
    load_paper_queries,
    paper_models,
    paper_rates,
    paper_results,
)
from drolab.data.prompts import CODE_CLONE, join_prompts, load_prompts, pick_prompt, random_words, save_prompts
from drolab.data.queries import ATTACK_COLUMNS, NO_ATTACK, fresh_queries, load_queries, validate_queries
from drolab.data.release import CLONE, N_SAMPLES, Release, load, release_name, scores_from_events
from drolab.data.xstest import LABELS, XSTEST_CLONE, XSTEST_COLUMNS, load_xstest

__all__ = [
    "ALPACA_COLUMNS",
    "ANNOTATION_COLUMNS",
    "ATTACK_COLUMNS",
    "BENCHMARKS",
    "CLONE",
    "CODE_CLONE",
    "LABELS",
    "NO_ATTACK",
    "N_SAMPLES",
    "PAPER_RESULTS",
    "ROLES",
    "XSTEST_CLONE",
    "XSTEST_COLUMNS",
    "Benchmark",
    "PaperModel",
    "Release",
    "attacks",
    "beside_paper",
    "children_of",
    "find_paper_model",
    "fresh_queries",
    "join_prompts",
    "load",
    "load_alpaca_annotations",
    "load_paper_queries",
    "load_prompts",
    "load_queries",
    "load_xstest",
    "paper_models",
    "paper_rates",
    "paper_results",
    "pick_prompt",
    "prompts",
    "random_words",
    "release_name",
    "save_alpaca_outputs",
    "save_prompts",
    "scores_from_events",
    "validate_queries",
]
