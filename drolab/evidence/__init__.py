"""What the numbers are worth: tables with intervals, and a null beside each claim.

In order: `shift_products` (mean shifts without the bias of noise), `separability`, `shifts`, `sweep` (layers and
positions), `comparison` (rates, paired tests), `claims` (the paper's claims, decided), `causal` (what a direction
does), `places` (before a thought and after it), `attacks` (derived queries beside their parents), `capability` (what a
prompt or an edit costs in ability), `release_tables` (the paper's released results and XSTest's labels).
"""

from drolab.evidence import causal, claims, comparison, release_tables, sweep
from drolab.evidence.attacks import attack_margins, attack_shifts, broken_by, margin_aucs
from drolab.evidence.capability import ABILITY_LOST, capability, win_rates
from drolab.evidence.places import compare_places
from drolab.evidence.separability import auc_change, separability, shuffled_aucs
from drolab.evidence.shifts import Shifts, null_directions, shift_cosines, shift_report, shift_similarity, shifts
from drolab.intervals import mean_interval, rate_interval, rate_table

__all__ = [
    "ABILITY_LOST",
    "Shifts",
    "attack_margins",
    "attack_shifts",
    "auc_change",
    "broken_by",
    "capability",
    "causal",
    "claims",
    "compare_places",
    "comparison",
    "margin_aucs",
    "mean_interval",
    "null_directions",
    "rate_interval",
    "rate_table",
    "release_tables",
    "separability",
    "shift_cosines",
    "shift_report",
    "shift_similarity",
    "shifts",
    "shuffled_aucs",
    "sweep",
    "win_rates",
]
