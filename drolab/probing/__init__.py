"""Spaces of hidden states, and what can be read in them.

In order: `anchors` (the paper's PCA), `manifold` (UMAP, for looking only), `targets` (what readouts are fitted to, and
folds), `crossval` (held-out readings: how sure they are, and whether there is anything to read), `probes` (logistic
regressions in the anchor space), `directions` (refusal directions by several methods), `transfer`
(how far a direction carries). `models.interventions` *applies* a direction, `evidence.causal` *tests* what it does.
"""

from drolab.probing.anchors import anchor_matrix, coordinates, fit_anchors, one_position
from drolab.probing.crossval import (
    FLAT,
    READOUT_ADVICE,
    check_readout,
    left_out_groups,
    ridge_predictions,
    root_mean_square,
    too_few,
)
from drolab.probing.directions import (
    METHODS,
    RANDOM,
    Direction,
    Directions,
    as_direction,
    direction_cosines,
    fit_directions,
    taken_apart,
)
from drolab.probing.manifold import umap_view
from drolab.probing.probes import check_table, cross_validate, fit_probe, try_probe
from drolab.probing.targets import Target, align_target, grouped_folds, n_of_rarer_kind
from drolab.probing.transfer import TRANSFER_COLUMNS, transfer

__all__ = [
    "FLAT",
    "METHODS",
    "RANDOM",
    "READOUT_ADVICE",
    "TRANSFER_COLUMNS",
    "Direction",
    "Directions",
    "Target",
    "align_target",
    "anchor_matrix",
    "as_direction",
    "check_readout",
    "check_table",
    "coordinates",
    "cross_validate",
    "direction_cosines",
    "fit_anchors",
    "fit_directions",
    "fit_probe",
    "grouped_folds",
    "left_out_groups",
    "n_of_rarer_kind",
    "one_position",
    "ridge_predictions",
    "root_mean_square",
    "taken_apart",
    "too_few",
    "transfer",
    "try_probe",
    "umap_view",
]
