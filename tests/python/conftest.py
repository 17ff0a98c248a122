"""Models that the tests share."""

import minimax2 as mm
import pytest
from minimax2.synth import synth

TALLY = pytest.StashKey()


class BitTally:
    """Comparisons of test_same_bits.py: which configurations, how many differing bits."""

    def __init__(self):
        self.configurations = set()
        self.differing = 0

    def add(self, configuration, differing):
        self.configurations.add(configuration)
        self.differing += differing


def pytest_configure(config):
    config.stash[TALLY] = BitTally()
    config.addinivalue_line("markers", "only_if(wanted=f): leaves out parameters that f refuses")


def pytest_collection_modifyitems(config, items):
    """Deselects what a mark only_if leaves out."""
    def wanted(item):
        params = item.callspec.params if hasattr(item, "callspec") else {}
        return all(mark.kwargs["wanted"](**params) for mark in item.iter_markers("only_if"))
    left_out = [item for item in items if not wanted(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if wanted(item)]


def pytest_terminal_summary(terminalreporter, config):
    tally = config.stash[TALLY]
    if tally.configurations:
        terminalreporter.write_line(f"{len(tally.configurations)} configurations, "
                                    f"{tally.differing} differing bits")


@pytest.fixture
def bit_tally(pytestconfig):
    """The tally that the terminal summary prints."""
    return pytestconfig.stash[TALLY]


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
