"""Ends of all kinds: whatever is under way, dropping it, collecting it in a cycle or ending the
interpreter is safe. Finalisers run in any order, so each of these is a process of its own that must
end with 0 and say nothing on the side."""

import itertools
import subprocess
import sys
import textwrap

import pytest

SETTING = """
import gc, sys
import minimax2 as mm

def fresh():
    \"\"\"One of everything, half-way through what it does.\"\"\"
    model = mm.load(threads=1)
    session, traced, batched = (model.session(context=64) for _ in range(3))
    session.feed("import os").run()
    taps = traced.trace("import os", "resid_post")
    tap = next(taps)
    stream = model.generate("import os", max_new_tokens=9, seed=1, stream=True)
    next(stream)
    chat = model.chat(max_new_tokens=9, seed=1)
    answer = chat.send("hi", stream=True)
    answer.poll(0)
    batch = model.batch([batched.feed("import os")])
    batch.run(seconds=0)
    return {"model": model, "session": session, "traced": traced, "taps": taps, "tap": tap,
            "stream": stream, "chat": chat, "answer": answer, "batch": batch, "batched": batched,
            "sampler": mm.Sampler(model), "tokenizer": model.tokenizer, "logits": session.logits}
"""


def ends_well(code, says="", setting=SETTING):
    """Run a program in a setting."""
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c",
                           setting + textwrap.dedent(code)],
                          capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, says, "")


@pytest.mark.parametrize("where", [
    "globals().update(made)",
    "globals().update(reversed(made.items()))",
    "sys.kept = made",
    "mm.kept = made",
    "made['self'] = made",
    "def later(tensor, tap): pass\nlater.made = made",
    "import threading; threading.main_thread().kept = made",
    "import atexit; atexit.register(made.clear)",
    "import atexit; atexit.register(lambda: [made['session'].sample(), next(made['taps'])])",
    "import weakref; kept = weakref.finalize(made['model'], made.clear)",
    "gc.freeze(); globals().update(made)",
    "gc.disable(); made['self'] = made; del made",
    "kept = iter(made['taps']); kept = map(str, kept); next(kept)",
    "kept = (tap for tap in made['taps']); next(kept)",
    "sys.modules.clear()",
    "import os; os._exit(0)",
])
def test_the_end_of_the_interpreter(where):
    ends_well("made = fresh()\n" + where)


def test_an_exit_inside_of_everything():
    ends_well("""
        made = fresh()
        def hook(tensor, tap):
            sys.exit(0)
        with made["traced"], made["taps"], made["chat"], made["batch"]:
            made["model"].generate("x", max_new_tokens=3, hooks=[("resid_post", hook)])
    """)


def test_daemons_in_the_middle_of_it():
    ends_well("""
        import threading, time
        made = fresh()
        def work():
            while True:
                for tap in made["model"].trace("import os", "resid_post"):
                    pass
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
    """)


def test_cycles_in_every_order():
    """The collector takes what was made first, first: so each thing comes before each other."""
    names = ("model", "traced", "taps", "tap", "batch", "stream")
    orders = list(itertools.permutations(range(len(names))))[::17]
    ends_well(f"""
        names = {names}
        for order in {orders}:
            made = fresh()
            kept = [made[names[i]] for i in order]
            del made
            kept.append(kept)
            del kept
            gc.collect()
        print("alive")
    """, "alive\n")


def test_cycles_of_generators_that_use_what_they_hold():
    ends_well("""
        said = []
        def look(session, taps, key):
            try:
                for tap in taps:
                    yield tap
            finally:  # in a collected cycle, too, all of this must still be there
                said.append(key)
                taps.close()
                assert tap.tensor.tolist() and session.model["model.norm.weight"].tolist()
                session.run()
                assert session.top(1) and session.sample() >= 0
        for turn in range(8):
            made = fresh()
            session = made["traced"]
            made["taps"].close()
            looking = look(session, session.trace(None, "resid_mid"), turn)
            next(looking)
            parts = [session, looking, made["model"], made["taps"]]
            parts = parts[turn % 4:] + parts[:turn % 4]
            if turn >= 4:
                parts.reverse()
            parts.append(parts)
            del made, session, looking, parts
            gc.collect()
        print(*sorted(said))
    """, "0 1 2 3 4 5 6 7\n")


def test_finalisers_of_a_script_may_use_everything():
    ends_well("""
        class Last:
            def __init__(self, made):
                self.made, self.me = made, self
            def __del__(self):
                made = self.made
                made["taps"].close()
                made["traced"].run()
                made["batch"].run()
                made["stream"].result()
                made["answer"].cancel()
                print(made["model"].threads, len(made["logits"].tolist()), len(made["tap"].tensor))
        Last(fresh())
        gc.collect()
        kept = Last(fresh())
    """, "1 4096 2\n1 4096 2\n")


def test_a_coroutine_that_is_never_finished():
    ends_well("""
        import asyncio
        async def read(stream):
            async for piece in stream:
                await asyncio.sleep(0)
                break
        async def main():
            made = fresh()
            await read(made["stream"])
            kept = read(made["answer"])
            kept.close()
        asyncio.run(main())
    """)


def test_closing_in_every_order():
    orders = list(itertools.permutations(("model", "traced", "taps", "batch", "chat", "batched")))
    ends_well(f"""
        for order in {orders[::29]}:
            made = fresh()
            for name in order:
                made[name].close()
            assert made["tap"].tensor.tolist() and made["logits"].tolist()
        print("alive")
    """, "alive\n")
