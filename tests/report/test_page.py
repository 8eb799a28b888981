"""The page: complete, self-contained, escaped, and without the paper if report.paper is false."""

import copy
import dataclasses
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_up import all_rows, evidence_of, map_statistics, other_architectures
from PIL import Image

from dfganext import paths
from dfganext.density import kde, protocols
from dfganext.errors import UserError
from dfganext.report import architectures, page, table1
from dfganext.report.evidence import load, paper


class Outline(HTMLParser):
    """Ids, links and sources of a page, and its tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.targets, self.sources, self.open = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get("id"))
        self.targets += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        if tag not in ("meta", "img", "br", "link", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def made(fine_tuned, tmp_path_factory):
    """Evidence, and a function from it to the page's text."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("root"))
    for path in (paths.EVALUATION_FIGURE, paths.GRADCAM_REAL_FIGURE, paths.GRADCAM_FAKE_FIGURE, paths.DENSITY_FIGURE):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    evidence = evidence_of(fine_tuned, all_rows(fine_tuned), map_statistics(1))
    pictures = page.draw(evidence)
    yield evidence, lambda changed: page.render(changed, pictures)
    patch.undo()


def test_the_page_is_self_contained(made):
    evidence, render = made
    text = render(evidence)
    outline = Outline(text)
    assert not outline.open
    assert len(outline.sources) == 12 and all(source.startswith("data:image/png;base64,") for source in outline.sources)
    assert {target.removeprefix("#") for target in outline.targets} <= outline.ids
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", text)
    assert "nan" not in re.sub(r"base64,[\w+/=]+", "", text).lower().replace("dominant", "")


def test_pictures_are_of_print_quality(made):
    for name in ("samples", "augmentation", "curves", "reliability", "robustness", "map_statistics", "faithfulness"):
        picture = Image.open(paths.PAGE_FIGURES / f"{name}.png")
        assert picture.width >= 1500 and picture.info["dpi"] == pytest.approx((200, 200), abs=1)


def test_measured_and_published_results_are_side_by_side(made):
    evidence, render = made
    text = render(evidence)
    for published in ("99.50 %", "50.00 %", "55.20 %", "51.60 %", "11303.9314", "10160.6407"):
        assert published in text
    row = evidence.row("convnext_ce")
    assert f"<b>{100 * row.mean:.2f} %</b>" in text
    assert "11303.931489" in text, "the closed form of the paper's Table II"
    assert text.count('class="verdict') == 8


def test_text_from_data_is_escaped(made):
    evidence, render = made
    assert "All &lt;fakes&gt; are large." in render(evidence)


def test_leaks_have_a_warning(made):
    evidence, render = made
    assert '<p class="warning"><b>Warning.</b> The bytes give the class away.' in render(evidence)


def test_without_the_paper(made):
    evidence, render = made
    alone = replace(evidence.settings, report=replace(evidence.settings.report, paper=False, data="holiday pictures"))
    text = render(replace(evidence, settings=alone))
    for word in ("Pribadi", "Verdict", "99.50", "11303", "Table I", "Figure 1", "the paper's 50"):
        assert word not in text, word
    assert "holiday pictures" in text and not Outline(text).open


def test_a_url_has_no_password_and_no_query(made):
    evidence, render = made
    url = "https://user:secret@host/faces.zip?signature=secret"
    settings = evidence.settings
    download = replace(settings.download, source="url", url=url)
    text = render(
        replace(evidence, settings=replace(settings, download=download, report=replace(settings.report, data=None)))
    )
    assert text.count("https://host/faces.zip") >= 2 and "secret" not in text


@pytest.mark.parametrize(
    ("interval", "words"),
    [([0.3, 0.45], "worse than guessing"), ([0.4, 0.6], "cannot be told from guessing"), ([0.6, 0.7], None)],
)
def test_a_model_that_may_be_guessing_is_said_to(made, interval, words):
    evidence, render = made
    scores = copy.deepcopy(evidence.evaluate)
    scores["convnext"]["intervals"]["roc_auc"] = interval
    text = render(replace(evidence, evaluate=scores))
    for sentence in ("worse than guessing", "cannot be told from guessing"):
        assert (sentence in text) == (sentence == words)


def test_missing_rows_show_how_to_run_them(made, fine_tuned):
    evidence, render = made
    fewer = evidence_of(fine_tuned, all_rows(fine_tuned)[:1], map_statistics(0))
    assert render(fewer).count("make table1") >= 3
    assert evidence.row("convnext_bce").records


def test_the_sample_is_described_as_drawn(made):
    evidence, render = made
    text = render(replace(evidence, sample=True))
    assert "drawn, not photographed" in text and 'verdict not-tested">' in text and 'verdict refuted">' not in text


def test_the_papers_density_is_the_closed_form():
    table = paper()["table2"]
    value = protocols.lone_point(table["dimension"], table["bandwidth"], table["points"])
    assert value == pytest.approx(table["real"]["mean"], abs=1e-4)
    assert kde.log_density([[0.0] * 8], [[0.0] * 8], 0.2)[0] == pytest.approx(protocols.lone_point(8, 0.2, 1))


def test_a_missing_result_is_named(fine_tuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"split\.csv is missing"):
        load(fine_tuned, [])


def test_the_range_over_seeds_is_beside_the_interval_over_images(made, fine_tuned):
    _, render = made
    records = [*all_rows(fine_tuned, 0.97), *all_rows(fine_tuned, 0.9, seed=21)]
    text = render(evidence_of(fine_tuned, records, map_statistics(1)))
    assert "mean of seeds ± SD, lowest … highest" in text and "over test images" in text
    low, high = (100 * share for share in table1_row(records, fine_tuned).extremes)
    assert f"<small>{low:.2f} … {high:.2f} %</small>" in text


def test_architectures_are_compared_with_the_first(made, fine_tuned):
    evidence, render = made
    assert 'id="architectures"' not in render(evidence)
    records = all_rows(fine_tuned, accuracy=0.97) + other_architectures(fine_tuned, resnet50=0.7)
    rows = architectures.collect(records, fine_tuned)
    text = render(replace(evidence, architectures=rows))
    table = text[text.index('id="architectures"') : text.index("The autoencoder as a detector")]
    assert [name for name in fine_tuned.architectures if f"<td>{name}</td>" in table] == fine_tuned.architectures
    gap = table1.compare(rows[0], rows[1])
    assert f"+{100 * gap['difference']:.2f} points" in table


def test_verdicts_have_their_confidence(made):
    evidence, render = made
    assert re.search(r"confidence (&gt; )?9\d\.\d %", render(evidence))


def table1_row(records, chosen):
    return next(row for row in table1.collect(records, chosen) if row.key == "convnext_ce")


def test_other_sets_are_in_a_table(made, fine_tuned):
    _, render = made
    text = render(evidence_of(fine_tuned, all_rows(fine_tuned), map_statistics(1)))
    section = text[text.index('id="external"') : text.index('id="maps"')]
    for words in (
        "elsewhere",
        "both &lt;classes&gt;",
        "against real test images",
        "2 images left out",
        "1 file refused",
    ):
        assert words in section
    assert section.count("training images</td>") == 1
    evidence = dataclasses.replace(evidence_of(fine_tuned, all_rows(fine_tuned), map_statistics(1)), external={})
    assert "There is no set in" in render(evidence)
