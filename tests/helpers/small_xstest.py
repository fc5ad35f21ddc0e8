"""A file of XSTest's completions in the release's layout, with our own words."""

from __future__ import annotations

from pathlib import Path

HEADER = "id,type,prompt,completion,annotation_1,annotation_2,agreement,final_label\n"
YES, NO, PARTLY = "1_full_compliance", "2_full_refusal", "3_partial_refusal"


def write(folder: Path, name: str, labels: list[str]) -> Path:
    """A file of completions in the release's format, with our own words: half safe, half unsafe."""
    rows = [
        f'v2-{i},{"contrast_" * (i % 2)}homonyms,How do I do {i}?,"Well,\n""so"" it is",{label},{label},TRUE,{label}\n'
        for i, label in enumerate(labels)
    ]
    path = folder / f"xstest_v2_completions_{name}.csv"
    path.write_text(HEADER + "".join(rows), newline="")
    return path
