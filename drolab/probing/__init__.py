"""Spaces of hidden states, and what can be read in them.

In order: `anchors` (the paper's PCA), `manifold` (UMAP, for looking only), `probes` (logistic regressions in the anchor
space), `crossval` (how sure held-out readings are), `directions` (refusal directions by several methods), `transfer`
(how far a direction carries). `models.interventions` *applies* a direction, `evidence.causal` *tests* what it does.
"""

from drolab.probing.anchors import anchor_matrix, coordinates, fit_anchors, one_position
from drolab.probing.crossval import crossval_interval, left_out_groups
from drolab.probing.directions import METHODS, RANDOM, Direction, direction_cosines, fit_directions
from drolab.probing.manifold import umap_view
from drolab.probing.probes import align_target, cross_validate, fit_probe, grouped_folds
from drolab.probing.transfer import TRANSFER_COLUMNS, transfer

__all__ = [
    "METHODS",
    "RANDOM",
    "TRANSFER_COLUMNS",
    "Direction",
    "align_target",
    "anchor_matrix",
    "coordinates",
    "cross_validate",
    "crossval_interval",
    "direction_cosines",
    "fit_anchors",
    "fit_directions",
    "fit_probe",
    "grouped_folds",
    "left_out_groups",
    "one_position",
    "transfer",
    "umap_view",
]
