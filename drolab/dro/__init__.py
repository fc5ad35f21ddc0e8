"""Directed Representation Optimization, the paper's method: a prompt trained as embeddings.

In order: `objective` (the losses of eqs. 3 to 5), `training` (`train_dro`, and the resumable loop of whatever trains a
prompt), `baselines` (vanilla prompt tuning, the paper's), `runs` (runs side by side, their snapshots and files),
`contenders` (what any safety measure ends as, and whether it broke the model), `fitting` (all of them on the same
queries and budget), `token_drift` (how far the vectors went from the words they started from), `forensics` (what is in
a soft prompt, and which part of it does the work).
"""

from drolab.dro import runs
from drolab.dro.baselines import (
    TUNING_COLUMNS,
    PromptTuning,
    PromptTuningConfig,
    PromptTuningRun,
    TuningLosses,
    train_prompt_tuning,
    unlikelihood_losses,
)
from drolab.dro.contenders import (
    DAMAGE_COLUMNS,
    MOST_REPEATS,
    MOST_SURPRISE,
    Contender,
    Contenders,
    damage,
    goes_round,
    surprise,
    text_contender,
)
from drolab.dro.fitting import DEPTHS, GROUPS, STRENGTHS, fit_contenders
from drolab.dro.forensics import (
    RefusalMeter,
    carried,
    cut_short,
    forensics,
    moved,
    nearest_tokens,
    random_like,
    rounded_to_text,
    without_each_token,
)
from drolab.dro.objective import Losses, losses
from drolab.dro.runs import (
    MEASURED_COLUMNS,
    MEASURES,
    MOST_KL,
    MOST_UNSEEN,
    MOVEMENT_COLUMNS,
    TRAINING,
    KeptRun,
    compare,
    evenly_spaced,
    load_runs,
    measure_first_tokens,
    movement,
    save_run,
    snapshot,
    trajectories,
)
from drolab.dro.token_drift import as_embeddings, drift_from_text, token_drift
from drolab.dro.training import HISTORY_COLUMNS, PromptTraining, Training, check_probes, train_dro

__all__ = [
    "DAMAGE_COLUMNS",
    "DEPTHS",
    "GROUPS",
    "HISTORY_COLUMNS",
    "MEASURED_COLUMNS",
    "MEASURES",
    "MOST_KL",
    "MOST_REPEATS",
    "MOST_SURPRISE",
    "MOST_UNSEEN",
    "MOVEMENT_COLUMNS",
    "STRENGTHS",
    "TRAINING",
    "TUNING_COLUMNS",
    "Contender",
    "Contenders",
    "KeptRun",
    "Losses",
    "PromptTraining",
    "PromptTuning",
    "PromptTuningConfig",
    "PromptTuningRun",
    "RefusalMeter",
    "Training",
    "TuningLosses",
    "as_embeddings",
    "carried",
    "check_probes",
    "compare",
    "cut_short",
    "damage",
    "drift_from_text",
    "evenly_spaced",
    "fit_contenders",
    "forensics",
    "goes_round",
    "load_runs",
    "losses",
    "measure_first_tokens",
    "moved",
    "movement",
    "nearest_tokens",
    "random_like",
    "rounded_to_text",
    "runs",
    "save_run",
    "snapshot",
    "surprise",
    "text_contender",
    "token_drift",
    "train_dro",
    "train_prompt_tuning",
    "trajectories",
    "unlikelihood_losses",
    "without_each_token",
]
