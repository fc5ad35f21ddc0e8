"""Taking results away: figures with their tables and a manifest, and prompts and directions for other programs.

Every file appears whole or not at all, no name leads out of its folder, and nothing that is written needs a network to
be read. drolab uploads nothing.

In order: `bundles` (single files, what a notebook finds, figures for a paper), `cards` (the model card beside what
leaves), `prompts` (a soft prompt for PEFT and vLLM), `directions` (a direction for llama.cpp, and as safetensors).
"""

from drolab.errors import ExportError
from drolab.export.bundles import (
    BUNDLE_FORMATS,
    FORMATS,
    IMAGE_FORMATS,
    Results,
    Saved,
    Section,
    about,
    bundle,
    commit,
    manifest,
    render_images,
    save_figure,
    save_figures,
    save_numbers,
    save_table,
    versions,
)
from drolab.export.directions import DIRECTION_FORMATS, load_directions, save_directions
from drolab.export.prompts import to_peft, to_vllm

__all__ = [
    "BUNDLE_FORMATS",
    "DIRECTION_FORMATS",
    "FORMATS",
    "IMAGE_FORMATS",
    "ExportError",
    "Results",
    "Saved",
    "Section",
    "about",
    "bundle",
    "commit",
    "load_directions",
    "manifest",
    "render_images",
    "save_directions",
    "save_figure",
    "save_figures",
    "save_numbers",
    "save_table",
    "to_peft",
    "to_vllm",
    "versions",
]
