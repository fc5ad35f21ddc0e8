"""The report: what it says of each outcome, what stands in it and where, and that texts stay texts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from helpers.results import CLAIMS, HOSTILE, save_run, verdict_row, verdict_table
from nbformat.v4 import new_code_cell, new_notebook, new_output

from drolab import export, report
from drolab.errors import ExportError, TooFewError
from drolab.evidence import claims


def written(out: Path) -> str:
    """The page, without its styles and plotly.js."""
    return report.write_report(out, report.collect(out)).read_text(encoding="utf-8").split("<body>")[1]


# what it says


def test_what_a_section_found_and_what_could_not_be_run_are_in_it(tmp_path: Path) -> None:
    save_run(tmp_path)
    results = export.Results(tmp_path, "05", title="Can it be trained?")
    results.add(findings=[f"It cannot. {HOSTILE}"])
    with results.section("1. Train"):
        raise TooFewError("Nobody refuses: ask others.")
    with results.section("2. Move"):
        raise TooFewError("Nobody refuses: ask others.")
    page = written(tmp_path)
    assert "<p>It cannot. &lt;script&gt;window.hit=1&lt;/script&gt;" in page
    assert "<li>“1. Train”, “2. Move” of notebook 05 cannot be tested here: Nobody refuses: ask others.</li>" in page


def test_the_sentences_are_about_the_claims_of_the_verdict() -> None:
    """They are named by their texts; those of several trained prompts begin alike."""
    asked = [text for words in report.ANSWER for text in words]
    assert asked == [claim.text for claim in CLAIMS if not claim.trained_for]
    assert list(report.VERDICT_LOOKS) == list(claims.VERDICTS)
    assert not [one for one in asked for other in asked if one != other and other.startswith(one)]


def test_a_supported_claim_is_said_with_its_number() -> None:
    sentences = report.answer(verdict_table())
    assert len(sentences) == 5
    assert (
        sentences[2] == "Safety prompts move the states along the direction of refusal (cosine 0.750 [0.625, 0.875])."
    )
    assert sentences[3] == (
        "Safety prompts make the model refuse harmful queries more often "
        "(change of refusal rate +0.250 [+0.125, +0.375]); "
        "safety prompts make it refuse harmless queries more often (change of refusal rate +0.250 [+0.125, +0.375])."
    )
    assert "logits" not in " ".join(sentences)  # what DRO trains is no finding


@pytest.mark.parametrize(
    ("decision", "begins"),
    [
        (claims.NOT_SUPPORTED, "It is not supported that safety prompts move the states along the direction of"),
        (claims.TOO_LITTLE, "There is too little data to say whether safety prompts move the states along the"),
        (claims.CANNOT, "It cannot be tested here whether safety prompts move the states along the direction of"),
    ],
)
def test_what_is_not_decided_is_not_said(decision: str, begins: str) -> None:
    sentences = report.answer(verdict_table(ALONG=decision))
    assert sentences[2].startswith(begins)
    assert ("cosine" in sentences[2]) == (decision != claims.CANNOT)
    assert [sentence for sentence in sentences if " whether " in sentence or " not supported " in sentence] == [
        sentences[2]
    ]
    every = report.answer(verdict_table(decision))
    leads = re.findall(r"(?:^|; )(\w+ \w+) ", "\n".join(every), re.MULTILINE)
    assert {lead.lower() for lead in leads} == {" ".join(begins.lower().split()[:2])}
    assert len(leads) == len(CLAIMS) - 1


def test_judges_that_disagree_are_named() -> None:
    rows = [
        verdict_row(claims.APART, claims.SUPPORTED, "string rule"),
        verdict_row(claims.APART, claims.TOO_LITTLE, "text judge"),
    ]
    assert report.answer(pd.DataFrame(rows))[4] == (
        "Under string rule, the prompt that DRO trained raises the refusals of harmful queries more than those of "
        "harmless ones (change of refusal rate +0.250 [+0.125, +0.375]); under text judge, there is too little data to "
        "say whether the prompt that DRO trained raises the refusals of harmful queries more than those of harmless "
        "ones (change of refusal rate +0.250 [+0.125, +0.375])."
    )
    agreed = pd.DataFrame(rows).assign(verdict=claims.SUPPORTED)
    same = "(change of refusal rate, string rule and text judge: +0.250 [+0.125, +0.375])."
    assert report.answer(agreed)[4].endswith(same)
    other = "(change of refusal rate, string rule: +0.250 [+0.125, +0.375], text judge: +0.300 [+0.125, +0.375])."
    assert report.answer(agreed.assign(estimate=[0.25, 0.3]))[4].endswith(other)


def test_what_was_not_asked_is_said_and_why(tmp_path: Path) -> None:
    table = verdict_table(ALONG=claims.CANNOT)
    save_run(tmp_path, table[table["claim"] != claims.APART.text])
    page = written(tmp_path)
    assert "It was not asked whether the prompt that DRO trained raises" in page
    assert "whether safety prompts move the states along the direction of refusal: Nobody refuses.</li>" in page


def test_without_a_verdict_nothing_is_decided(tmp_path: Path) -> None:
    save_run(tmp_path)
    output = new_output("error", ename="TooFewError", evalue="Nobody refuses: ask others.")
    notebook = new_notebook(cells=[new_code_cell("1 / 0", outputs=[output])])
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "07_beyond.ipynb")
    page = written(tmp_path)
    assert "Nothing is decided: notebook 07, which comes to the verdict, has saved none here." in page
    assert "Notebook 07_beyond ended early: Nobody refuses: ask others." in page
    assert "The figure of the trade-off is missing: notebook 07 has not saved it." in page
    assert "#verdict" not in page


def test_a_problem_of_a_run_is_said_at_the_top(tmp_path: Path) -> None:
    save_run(tmp_path)
    listings = report.collect(tmp_path)
    listings["06"]["numbers"]["problems"] = "The states left the data."
    page = report.write_report(tmp_path, listings).read_text(encoding="utf-8")
    assert "<li>Notebook 06 says of its own results: The states left the data.</li>" in page
    listings["06"]["numbers"]["problems"] = "none known"
    assert "of its own results" not in report.write_report(tmp_path, listings).read_text(encoding="utf-8")


def test_a_model_in_a_folder_is_called_by_the_name_of_that(tmp_path: Path) -> None:
    save_run(tmp_path, model="/models/of mine/parrot-1b")
    page = written(tmp_path)
    assert "<h1>What safety prompts do inside parrot-1b</h1>" in page
    assert "Model /models/of mine/parrot-1b (fingerprint abc)" in page


def test_what_no_run_of_one_seed_and_without_the_papers_numbers_can_say_is_said(tmp_path: Path) -> None:
    save_run(tmp_path)
    listings = report.collect(tmp_path)
    for listing in listings.values():
        listing["numbers"]["about"] = {"seed": 3}
    page = report.write_report(tmp_path, listings).read_text(encoding="utf-8")
    assert "<li>This is one run, with seed 3. Its intervals are" in page
    assert "notebook 08, which shows them" in page
    page = report.write_report(tmp_path, {**listings, "08": listings["06"]}).read_text(encoding="utf-8")
    assert "notebook 08, which shows them" not in page


# what stands in it


def test_what_notebooks_saved_stands_in_it_once(tmp_path: Path) -> None:
    save_run(tmp_path, verdict_table())
    page = written(tmp_path)
    first, sections = page.split('<h2 id="notebooks">')
    assert "What safety prompts do inside the demo model" in first
    assert "model organism" in first
    assert "(fingerprint abc)" in first
    assert first.count('<div class="plot">') == 3
    assert sections.count('<div class="plot">') == 1  # neither those above again, nor the forest
    assert "It moves.</figcaption>" in first
    assert "tokens: 1,234" in sections
    bodies = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert len(bodies) == len(set(bodies)) == 3  # the verdict and two of notebooks
    assert "<td>0.250 [0.150, 0.350]</td>" in sections
    assert 'href="tables/06_all_the_places.csv"' in sections  # 31 rows
    assert 'href="tables/06_replies.csv"' in sections
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (tmp_path / link).is_file()
    assert all(f'id="{place}"' in page for place in re.findall('href="#([^"]+)"', page))


def test_every_row_of_the_verdict_has_its_picture(tmp_path: Path) -> None:
    save_run(tmp_path, verdict_table(ALONG=claims.CANNOT, SEPARABLE=claims.NOT_SUPPORTED))
    rows = re.findall(r"<tr><td>.*?</tr>", written(tmp_path).split('id="verdict"')[1].split("</table>")[0], re.DOTALL)
    assert [row.count("<circle") for row in rows] == [1, 1, 1, 1, 0, 1, 1, 1, 1]
    assert "nan" not in "".join(rows)
    places = [float(place) for place in re.findall(r'(?:x1|x2|cx)="([\d.-]+)%"', "".join(rows))]
    assert min(places) == 20.0
    assert max(places) == 80.0


def test_texts_stay_texts(tmp_path: Path) -> None:
    save_run(tmp_path, verdict_table().assign(under=HOSTILE, reason=HOSTILE, verdict=claims.CANNOT), HOSTILE)
    page = written(tmp_path)
    assert "<script>window" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    assert page.count("<script") == 4 + 1  # figures and the page's own
    assert "&lt;script&gt;window.hit=1" in page


def test_what_none_is_stands_beside_all_that_shows_it(tmp_path: Path) -> None:
    save_run(tmp_path, none="`none` is <b>its own text</b>.")
    page = written(tmp_path)
    said = page.count("`none` is &lt;b&gt;its own text&lt;/b&gt;.")
    assert said == 1 + 3 + 1  # the head, three figures, one table
    assert "<b>its own" not in page
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["model"]["none"].startswith("`none` is")


def test_manifest_and_numbers_come_from_what_was_saved(tmp_path: Path) -> None:
    save_run(tmp_path)
    report.write_report(tmp_path, report.collect(tmp_path))
    assert json.loads((tmp_path / "key_numbers.json").read_text())["06"]["gain"] == 0.25
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["model"] == {"model": "demo", "fingerprint": "abc"}
    assert manifest["seed"] == 7
    assert manifest["settings"]["prompts"] == {"default": "Be <b>kind</b>."}
    assert {"report.html", "key_numbers.json", "figures/06_rates.html"} <= set(manifest["files"])


def test_results_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="No results in"):
        report.collect(tmp_path)
