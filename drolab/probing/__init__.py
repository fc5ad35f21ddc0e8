"""Spaces of hidden states, and what can be read in them.

In order: `anchors` (the paper's PCA), `manifold` (UMAP, for looking only), `probes` (logistic regressions in the anchor
space), `crossval` (what held-out readings are worth), `readouts` and `directions` (refusal directions by several
methods), `transfer` (a direction on other categories and prompts). `models.interventions` *applies* a direction,
`evidence.causal` *tests* what it does.
"""

from drolab.probing import anchors, directions, probes
from drolab.probing.anchors import anchor_matrix, coordinates, fit_anchors, one_position
from drolab.probing.crossval import N_GROUPS, left_out_groups, limits
from drolab.probing.directions import RANDOM, Direction, direction_cosines, fit, fit_directions
from drolab.probing.manifold import umap_view
from drolab.probing.probes import align_target, cross_validate, fit_probe, grouped_folds
from drolab.probing.readouts import METHODS, RIDGE_GRID, Features, take
from drolab.probing.transfer import TRANSFER_COLUMNS, transfer

__all__ = [
    "METHODS",
    "N_GROUPS",
    "RANDOM",
    "RIDGE_GRID",
    "TRANSFER_COLUMNS",
    "Direction",
    "Features",
    "align_target",
    "anchor_matrix",
    "anchors",
    "coordinates",
    "cross_validate",
    "direction_cosines",
    "directions",
    "fit",
    "fit_anchors",
    "fit_directions",
    "fit_probe",
    "grouped_folds",
    "left_out_groups",
    "limits",
    "one_position",
    "probes",
    "take",
    "transfer",
    "umap_view",
]
