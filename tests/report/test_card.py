"""The model card: its metadata, its numbers, and its length."""

import dataclasses

import pytest
import yaml
from made_up import all_rows, evidence_of, map_statistics

from dfganext.report import card, text


@pytest.fixture(scope="module")
def facts(fine_tuned):
    evidence = evidence_of(fine_tuned, all_rows(fine_tuned), map_statistics(0.0))
    return card.Facts(
        version="7",
        settings=evidence.settings,
        split=evidence.split,
        split_sha256="ab" * 32,
        sample=False,
        scores=evidence.evaluate["convnext"],
        robustness=evidence.robustness,
        external=evidence.external,
        promotion="There was no champion.",
        run_id="run",
        commit="c" * 40,
    )


def changed(facts, **scores):
    return dataclasses.replace(facts, scores=facts.scores | scores)


def cells_of(text: str) -> dict[str, list[str]]:
    """The rows of all tables, by their first cell."""
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|"))
    return {first: rest for first, *rest in rows}


def test_the_metadata_are_those_of_the_hub(facts):
    _, metadata, body = card.render(facts).split("---\n", 2)
    values = yaml.safe_load(metadata)
    assert values["pipeline_tag"] == "image-classification" and values["library_name"] == "timm"
    (result,) = values["model-index"][0]["results"]
    assert {one["type"]: one["value"] for one in result["metrics"]} == {
        name: facts.scores[name] for name in ("accuracy", "f1", "roc_auc")
    }
    assert card.body(card.render(facts)) == body.lstrip() == card.body(body.lstrip())
    licences = [yaml.safe_load(card.render(one).split("---\n")[1])["license"] for one in (facts, with_sample(facts))]
    assert licences == ["other", "apache-2.0"]


BOMB = "\n".join(
    [
        "---",
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)),
        "model-index:",
        "- results:",
        "  - metrics: [{type: accuracy, value: 1}]",
        "    dataset: {name: *a11}",
        "---",
        "",
    ]
)
"""As text, the name of the data would have 10¹² letters."""


def test_what_a_card_says_is_read_back(facts):
    found = card.known(card.render(facts))
    assert found.data == facts.settings.report.data or not facts.settings.report.data
    assert found.accuracy == facts.scores["accuracy"] and not found.sample
    assert card.known(card.render(with_sample(facts))).sample
    for other in (
        "",
        "# A card",
        "---\ntags: [a]\n---\n",
        "---\n[\n---\n",
        "---\nmodel-index: [{results: [{}]}]\n---\n",
        BOMB,
    ):
        assert card.known(other) is None


def test_the_summary_has_the_worst_and_the_best_copy(facts):
    degraded = facts.robustness[facts.robustness["transform"] != "none"]
    worst, best = (degraded.loc[index()] for index in (degraded.accuracy.idxmin, degraded.accuracy.idxmax))
    summary = card.render(facts).partition("## Use and limits")[0]
    low, high = (f"{100 * one['accuracy']:.2f} %" for one in (worst, best))
    assert f"{low} ({worst['transform']} {worst['strength']:g}) to {high}." in summary


def test_a_card_of_the_sample_begins_with_a_warning(facts):
    assert text.SAMPLE_WARNING in card.render(with_sample(facts)).partition("## Use and limits")[0]
    assert text.SAMPLE_WARNING not in card.render(facts)


def with_sample(facts):
    return dataclasses.replace(facts, sample=True)


def test_numbers_are_those_of_the_evaluation(facts):
    rows = cells_of(card.render(facts))
    low, high = facts.scores["intervals"]["accuracy"]
    assert rows["accuracy"] == [f"{facts.scores['accuracy']:.3f}", f"{low:.3f} … {high:.3f}"]
    counts = facts.split[facts.split.split == "test"].label.value_counts()
    assert rows["test"] == [str(counts["real"]), str(counts["fake"])]
    for name, found in facts.external.items():
        assert rows[name][0] == str(found["images"])
    degraded = facts.robustness[facts.robustness["transform"] != "none"]
    for row in degraded.itertuples():
        assert rows[f"{row.transform} {row.strength:g}"][0] == f"{row.accuracy:.3f}"
    for part in ("There was no champion.", "c" * 12, "abab", "`run`"):
        assert part in card.render(facts)


def test_a_class_without_a_threshold_is_never_called(facts):
    for real, fake in ((None, 0.75), (0.25, None), (None, None), (0.25, 0.75)):
        text = card.render(
            changed(facts, decisions=facts.scores["decisions"] | {"real_up_to": real, "fake_above": fake})
        )
        for name, threshold in (("real", real), ("fake", fake)):
            assert (f"No image is called {name}" in text) == (threshold is None)
            assert (f"are called {name}: at most 5 %" in text) == (threshold is not None)


def test_only_augmentations_that_are_on_are_listed_and_no_folder(facts):
    convnext = dataclasses.replace(facts.settings.convnext, weights="/home/someone/weights/mine.safetensors")
    text = card.render(dataclasses.replace(facts, settings=dataclasses.replace(facts.settings, convnext=convnext)))
    values = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert values["convnext"]["weights"] == "mine.safetensors" and "/home" not in text
    assert values["convnext"]["augment"]["horizontal_flip"] == 0.5 and "blur" not in values["convnext"]["augment"]


def test_a_url_has_no_password_and_no_query(facts):
    url = "https://user:secret@host/faces.zip?signature=secret"
    download = dataclasses.replace(facts.settings.download, source="url", url=url, sha256="0" * 64)
    report = dataclasses.replace(facts.settings.report, data=None)
    text = card.render(
        dataclasses.replace(facts, settings=dataclasses.replace(facts.settings, download=download, report=report))
    )
    assert "images from https://host/faces.zip" in text and "secret" not in text


def test_text_of_others_ends_no_cell(facts):
    one = next(iter(facts.external.values()))
    text = card.render(dataclasses.replace(facts, external={"a | b\nc": one}, promotion="one\n\n# two"))
    assert "| a \\| b c |" in text and "\none # two\n" in text


def test_a_description_has_whole_sections_and_says_where_the_rest_is(facts):
    whole = card.render(facts)
    text = card.body(whole)
    assert card.description(whole, len(text)) == text
    for limit in (len(text) - 1, 1500, 300):
        short = card.description(whole, limit)
        assert len(short) <= limit and short.endswith("README.md among the files of this version.")
        kept = short.rpartition("\n\n")[0]
        assert text.startswith(kept)
    assert text[len(card.description(whole, 1500).rpartition("\n\n")[0]) :].startswith("\n\n## ")
