"""Figures: a table in, a `plotly.graph_objects.Figure` out.

Nothing here computes a statistic, reads a file or changes a global setting. Every text that comes from data is
escaped before plotly sees it. A class is told by symbol *and* colour or pattern, never by colour alone.

In order: `style` (colours, template, text), `plane` (hidden states in two components, with boundaries and arrows),
`heatmaps` (matrices and grids of cells), `curves` (layers, steps, doses), `rates` (bars, tradeoffs, forests),
`sizes` (for print and slides). `tables` is for what is no picture: a table in, the same in words out. `export` writes
what they make.
"""

from drolab.figures import plane, rates, sizes, style, tables
from drolab.figures.curves import (
    calibration,
    dose_response,
    first_token_curves,
    layer_sweep,
    token_lines,
    training_curves,
)
from drolab.figures.heatmaps import cosine_heatmap, layer_position_map, query_grid, rate_grid, token_strip
from drolab.figures.plane import (
    Boundary,
    Box,
    PlaneLook,
    boundary,
    mean_shifts,
    movement,
    movement_content,
    probe_boundaries,
    projection,
)
from drolab.figures.rates import (
    VERDICT_LOOKS,
    attack_margins,
    forest,
    rate_bars,
    rate_change,
    tradeoff,
    tradeoff_content,
)
from drolab.figures.sizes import COLUMNS, Sheet, caption, sheet
from drolab.figures.style import (
    BIDIRECTIONAL,
    CONFIG,
    DARK,
    PALETTE,
    THEMES,
    FigureError,
    class_names,
    escape,
    show,
    template,
    template_content,
)
from drolab.figures.tables import show_table
from drolab.figures.terms import TERMS, explained

__all__ = [
    "BIDIRECTIONAL",
    "COLUMNS",
    "CONFIG",
    "DARK",
    "PALETTE",
    "TERMS",
    "THEMES",
    "VERDICT_LOOKS",
    "Boundary",
    "Box",
    "FigureError",
    "PlaneLook",
    "Sheet",
    "attack_margins",
    "boundary",
    "calibration",
    "caption",
    "class_names",
    "cosine_heatmap",
    "dose_response",
    "escape",
    "explained",
    "first_token_curves",
    "forest",
    "layer_position_map",
    "layer_sweep",
    "mean_shifts",
    "movement",
    "movement_content",
    "plane",
    "probe_boundaries",
    "projection",
    "query_grid",
    "rate_bars",
    "rate_change",
    "rate_grid",
    "rates",
    "sheet",
    "show",
    "show_table",
    "sizes",
    "style",
    "tables",
    "template",
    "template_content",
    "token_lines",
    "token_strip",
    "tradeoff",
    "tradeoff_content",
    "training_curves",
]
