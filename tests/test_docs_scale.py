"""docs/scale.md says what the layout of the files says."""

from __future__ import annotations

import re

import pytest

from benchmarks.planning import NETWORKS, disk_table, time_table
from jacli.commands.inspect import inspect
from tests.readme import ROOT

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", [disk_table, time_table])
def test_tables_are_those_of_today(table) -> None:
    assert table() in PAGE, "make bench-scale, or python -m benchmarks.planning --markdown docs/scale.md"


def test_figures_of_a_thousand_shards_keep_the_limits_and_are_those_of_the_results() -> None:
    section = re.search(r"<!-- scale: begin -->\n.*<!-- scale: end -->", PAGE, flags=re.S)
    assert section is not None and section[0] in RESULTS
    figures = re.findall(r"^\| jacli .* \| ([\d.]+) \| (\d+) \|$", section[0], flags=re.M)
    assert len(figures) >= 5
    assert all(float(seconds) < 60 and int(peak) < 1024 for seconds, peak in figures)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("torchvision:resnet18", 512), ("torchvision:vit_b_16", 768)])
def test_widths_of_the_cuts(name: str, width: int) -> None:
    found = inspect(name, inputs="random:1x3x224x224")
    assert re.search(rf"\b{width} wide\b", str(found["cuts"]))
    assert width in {network.width for network in NETWORKS}


def test_the_page_names_the_widths() -> None:
    widths = ", ".join(f"{network.width}" for network in NETWORKS if network.width)
    assert widths == "512, 768" and "512 of 1,000 for ResNet-18, 768 for ViT-B/16" in PAGE
