"""Models that the tests share."""

import minimax2 as mm
import pytest
from minimax2.synth import synth


@pytest.fixture(scope="session")
def tiny():
    """The embedded model, on two threads."""
    with mm.load(threads=2) as model:
        yield model


@pytest.fixture(scope="session")
def blank_path(tmp_path_factory):
    """A checkpoint of random weights, two layers, vocabulary 512, without a tokenizer."""
    path = tmp_path_factory.mktemp("synth") / "blank"
    synth(path, like="tiny", layers=2)
    return path


@pytest.fixture(scope="session")
def blank(blank_path):
    """That checkpoint, open."""
    with mm.load(blank_path, threads=2) as model:
        yield model


@pytest.fixture
def session(tiny):
    """A fresh session with room for 256 tokens."""
    with tiny.session(context=256) as made:
        yield made
