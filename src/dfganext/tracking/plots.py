"""The page of `dvc plots show` and `dvc plots diff`, with the chart libraries in it: DVC's own loads them from a network.

python -m dfganext.tracking.plots .dvc/plots.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

import vl_convert

VEGA_LITE = "5.21"
"""The last version of the major one that DVC's charts are written for."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh_tag}
<title>DF-GANeXt: plots</title>
<style>
body { font: 14px/1.5 system-ui, sans-serif; margin: 1rem }
img { max-width: 100% }
</style>
<script>LIBRARIES</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""
"""DVC fills the places in braces."""


def page() -> str:
    """The template for DVC's setting `plots.html_template`."""
    return PAGE.replace(
        "LIBRARIES", vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the template of DVC's pages of plots.")
    parser.add_argument("file", type=Path)
    parser.parse_args().file.write_text(page(), encoding="utf-8")
