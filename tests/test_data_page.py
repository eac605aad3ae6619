"""docs/data.md: what a licence holder copies from the page works."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml

from aupipe.check import LAYOUTS
from aupipe.config import Corpus, build
from aupipe.datasets import dataset_of, known_layouts

PAGE = (Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("layout", known_layouts())
def test_the_page_for_licence_holders_names_every_option(layout):
    kind = importlib.import_module(f"aupipe.datasets.{layout}").Dataset
    options = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in set(options) - {"landmarks", "mask_lost"}:  # those are set by keys of the corpus
        assert re.search(rf"`{name}\b", PAGE), name


def test_corpora_on_the_page_can_be_copied_into_the_params():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    corpora = {name: values for block in blocks for name, values in yaml.safe_load(block).items()}
    assert corpora.keys() == {"bp4dplus", "disfaplus", "my-videos", "cross"}
    for name, values in corpora.items():
        corpus = build(Corpus, values, name)
        dataset_of(corpus)
        assert "face112" in corpus.align, "what the recipe of the demo reads"
        assert name == "disfaplus" or not corpus.folds.published


def test_checks_on_the_page_are_of_layouts_with_published_counts():
    commands = re.findall(r"`aupipe check data/raw/(\w+) --layout (\w+)`", PAGE)
    assert {layout for _, layout in commands} == set(LAYOUTS)
    assert all(corpus == layout for corpus, layout in commands)
