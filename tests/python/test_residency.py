"""Memory and processor time at rest: the weights stay in the file's pages.

Each case is measured in a process of its own, from /proc, on two layers of the full width.
"""

import json
import re
import subprocess
import sys

import pytest
from minimax2.synth import synth

MB = 1 << 20
PROMPT = 512  # tokens

PROGRAM = """
import json, sys, time
import minimax2 as mm

def tell(**facts):
    print(json.dumps(facts), flush=True)
    sys.stdin.readline()

tell()
model = mm.load({path!r}, threads=2)
tell()
session = model.session(context=4096, chunk={prompt})
session.feed([7 * i % 2000 for i in range({prompt})]).run()
tell()
session.feed([1]).run()
before = time.process_time()
time.sleep(0.5)
tell(idle=time.process_time() - before)
"""


SESSIONS = """
import sys
import minimax2 as mm

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

model = mm.load({path!r}, threads=2)
def idle():
    session = model.session(context=4096)
    session.feed([7 * i % 2000 for i in range(1024)]).run()
    return session

sessions = [idle()]
before = resident()
sessions += [idle() for _ in range(4)]
print((resident() - before) // 4)
forks = [sessions[0].fork() for _ in range(1000)]
forked = resident()
print((forked - before) // 4)
forks[7].feed([1]).run()
print(resident() - forked)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Two layers of full width with few experts and few tokens: 310 MB of Q4_K."""
    file = tmp_path_factory.mktemp("residency") / "wide.gguf"
    synth(file, layers=2, format="q4_k", experts=16, vocab=2048)
    yield file
    file.unlink()


class Runner:
    """A process that runs PROGRAM one stage at a time."""

    def __init__(self, path):
        self.path = str(path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(path=self.path, prompt=PROMPT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.communicate()

    def stage(self):
        """What the next stage tells when it has been reached."""
        return json.loads(self.process.stdout.readline())

    def go_on(self):
        """Lets it run to its next stage."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.stage()

    def status(self, field):
        """Bytes: a field of /proc/PID/status."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", file.read(), re.M)[1])

    def map(self):
        """Field -> bytes, summed over the maps of the checkpoint."""
        fields, ours = {}, False
        with open(f"/proc/{self.process.pid}/smaps") as file:
            for line in file:
                if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    ours = self.path in line
                elif ours and (found := re.match(r"(\w+):\s+(\d+) kB", line)):
                    fields[found[1]] = fields.get(found[1], 0) + 1024 * int(found[2])
        return fields


def test_opening_reads_no_weights(path):
    with Runner(path) as runner:
        runner.stage()
        runner.go_on()
        opened = runner.map()
        assert opened["Size"] > 280 * MB
        assert opened["Rss"] < 4 * MB
        runner.go_on()
        assert runner.map()["Rss"] > 200 * MB  # the measure works


def test_memory_beyond_the_map(path):
    """At 4,096 positions of context, a prompt of 512 in one chunk, against the interpreter alone.

    The promise is 300 MB with the real vocabulary; without one 82 MB are touched.
    """
    with Runner(path) as runner:
        runner.stage()
        before = runner.status("RssAnon")
        runner.go_on()
        assert runner.status("RssAnon") - before < 20 * MB
        runner.go_on()
        used = runner.status("RssAnon") - before
        assert 10 * MB < used < 100 * MB, f"{used / MB:.0f} MB"
        assert runner.map()["Anonymous"] == 0  # nothing of the file was copied


def test_idle_sessions_hold_their_pages_and_forks_hold_nothing(path):
    """Of 1,024 positions; the buffers that evaluated them serve every session of the model."""
    out = subprocess.run([sys.executable, "-c", SESSIONS.format(path=str(path))], check=True,
                         capture_output=True, text=True).stdout
    session, forked, branch = (int(line) for line in out.split())
    pages = 2 * 1024 * 2 * 8 * 128 * 2  # layers, positions, keys and values, heads, bf16
    assert pages <= session < pages + 1 * MB
    assert (forked - session) * 4 < 3000 * 1000  # three kilobytes a fork: its tables
    assert branch < 1 * MB  # the page behind 1,024 positions is new, nothing is copied


def test_processes_share_the_weights(path):
    with Runner(path) as one, Runner(path) as other:
        for runner in (one, other):
            runner.stage()
            runner.go_on()
            runner.go_on()
        for runner in (one, other):
            fields = runner.map()
            assert fields["Rss"] > 200 * MB
            assert fields["Private_Clean"] + fields["Private_Dirty"] < fields["Rss"] / 20
            assert fields["Pss"] < 0.55 * fields["Rss"]


def test_an_idle_model_uses_no_cpu(path):
    with Runner(path) as runner:
        runner.stage()
        runner.go_on()
        runner.go_on()
        assert runner.go_on()["idle"] < 0.005  # of half a second
