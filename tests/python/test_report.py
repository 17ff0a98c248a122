"""The report of a machine, on a small model."""

import json

import minimax2 as mm
import pytest
from minimax2 import machine, plan, report
from test_cli import good, run


@pytest.fixture(scope="module")
def reported(blank_path, tmp_path_factory):
    base = tmp_path_factory.mktemp("report") / "made"
    patch = pytest.MonkeyPatch()
    patch.setattr(report, "DEPTHS", (0, 40, 10**6))
    patch.setattr(report, "PROMPTS", (16,))
    patch.setattr(report, "SESSIONS", (1, 3))
    patch.setattr(report, "_output", lambda command: "a table of kernels\n")
    patch.setattr(report.importlib.util, "find_spec", lambda name: None)
    made = report.report(f"{base}.md", str(blank_path), threads=2)
    patch.undo()
    return base, made


def test_every_part(reported):
    base, made = reported
    assert json.loads(base.with_name("made.json").read_text(encoding="utf-8")) == made
    parts = made["parts"]
    assert list(parts) == list(report.PARTS)
    assert all(part["seconds"] >= 0 and part["at"] for part in parts.values())
    assert [run["depth"] for run in parts["decode"]["runs"]] == [0, 40]
    assert parts["decode"]["excluded"][0].startswith("decode at 1,000,000: the model has ")
    assert [run["tokens"] for run in parts["prefill"]["runs"]] == [16]
    assert list(parts["batch"]["tokens_per_second"]) == ["1", "3"]
    assert {row["what"] for row in parts["plan"]["rows"]} == {"decode", "prompt"}
    assert made["conditions"]["threads"] == 2 and made["conditions"]["version"] == mm.__version__
    text = base.with_name("made.md").read_text(encoding="utf-8")
    for words in ("## limits", "| best read |", "decode at 40", "prefill 16", "a table of kernels",
                  "| 3 |", "predicted", "Left out: llama", "commit", "went to other machines"):
        assert words in text, words


def test_plan_takes_it(reported):
    base, made = reported
    facts = machine.parse_machine(f"{base}.json")
    assert facts["read"] == made["parts"]["limits"]["read"]
    made = json.loads(good("plan", "--json", "--machine", f"{base}.json", "--depth", 0))
    assert made["basis"] in ("report", "described") and made["machine"]["name"] == facts["name"]


def test_parts_are_measured_anew_and_others_kept(reported, blank_path):
    base, made = reported
    good("bench", "-m", blank_path, "--report", base, "--only", "limits", "-t", 2)
    again = json.loads(base.with_name("made.json").read_text(encoding="utf-8"))
    assert again["parts"]["decode"] == made["parts"]["decode"]
    assert again["parts"]["limits"] != made["parts"]["limits"]


def test_patience(tiny, monkeypatch):
    monkeypatch.setattr(report, "PATIENCE", 1e-9)
    left_out = []
    assert report._patient(tiny, (0, 100), (50,), left_out.append) == ([0], [])
    assert len(left_out) == 2 and "would take" in left_out[0]


def test_what_programs_do_wrong():
    assert report._output(["echo", "yes"]) == "yes\n"
    with pytest.raises(report._LeftOut, match="false failed: nothing was said"):
        report._output(["false"])
    with pytest.raises(report._LeftOut, match="ls failed: .*gone"):
        report._output(["ls", "/gone"])


def test_refusals(tmp_path):
    for arguments, sentence in (
            (("--report", tmp_path / "x", "--only", "speed"), "'speed' is none of limits"),
            (("--report", tmp_path / "gone" / "x"), "no such directory")):
        code, output, errors = run("bench", *arguments)
        assert (code, output) == (1, "") and sentence in errors
    (tmp_path / "x.json").write_text("[]", encoding="utf-8")
    code, _, errors = run("bench", "--report", tmp_path / "x", "--only", "limits")
    assert code == 1 and "is no report" in errors
    assert plan.seconds(59) == "59 s" and plan.seconds(61.2) == "1 min 1 s"
    assert plan.seconds(7300) == "2 h 1 min"
