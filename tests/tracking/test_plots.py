"""DVC's pages of plots, opened in a browser."""

import subprocess
from pathlib import Path

import pytest

from dfganext.tracking import plots

CURVES = {"epoch": [1, 2, 3], "loss": [0.7, 0.4, 0.2]}


@pytest.fixture
def curves(tmp_path, monkeypatch) -> Path:
    """A DVC repository with one plot in two commits, whose template is ours."""
    monkeypatch.chdir(tmp_path)
    for line in ("git init --quiet", "git config user.name a", "git config user.email a@b", "dvc init --quiet"):
        subprocess.run(line.split(), check=True)
    Path("dvc.yaml").write_text("plots:\n  - Loss of {2}:\n      x: {loss.csv: epoch}\n      y: {loss.csv: loss}\n")
    for change in (0, 0.1):
        rows = (f"{epoch},{loss + change}" for epoch, loss in zip(*CURVES.values(), strict=True))
        Path("loss.csv").write_text("\n".join([",".join(CURVES), *rows, ""]))
        subprocess.run("git add --all && git commit --quiet -m loss", shell=True, check=True)
    Path(".dvc/plots.html").write_text(plots.page())
    subprocess.run(["dvc", "config", "--local", "plots.html_template", "plots.html"], check=True)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("command", ["show", "diff HEAD~1"])
def test_the_charts_need_no_network(curves, browser, command):
    subprocess.run(f"dvc plots {command} --out pages".split(), check=True)
    page = browser.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto((curves / "pages" / "index.html").as_uri())
    chart = page.locator("canvas, svg.marks").first
    chart.wait_for()
    assert chart.bounding_box()["height"] > 100
    assert not errors and all(url.startswith(("file:", "data:")) for url in requests), (errors, requests)
    page.close()


@pytest.mark.slow
def test_dvc_fills_all_places_of_the_template():
    from dvc_render.html import PAGE_HTML

    for place in ("{plot_divs}", "{refresh_tag}"):
        assert place in PAGE_HTML and plots.page().count(place) == 1
    assert "{scripts}" in PAGE_HTML and "{scripts}" not in plots.PAGE  # DVC's own, on another host
