"""How far calls of a session's run go beyond their time budget: units of work are not interrupted.

    python tests/bench/units.py MODEL [--threads N] [--budget MS]

MODEL: a checkpoint of full width; two layers of random weights are enough:
    minimax2 synth m.gguf --layers 2 --vocab 2048 --format q4_k_m

Prints a histogram of milliseconds over the budget, for a prompt of 1,024 tokens, for decoding, and
behind forks, whose first token copies the cells that it writes into. A busy machine shows in it:
`chrt -f 5` keeps others away, but for the 50 ms in each second that Linux gives them nevertheless.
"""

import argparse
import time

import minimax2 as mm

EDGES = (0.5, 1, 2, 3, 4, 5, 10, 20, float("inf"))  # ms
PROMPT, TOKENS, FORKS, BRANCH, BRANCHES = 1024, 60, 40, 64, 8


def run(session, budget, late):
    """Run to the end in calls of `budget` ms; appends how far each went beyond it, in ms."""
    done = False
    while not done:
        start = time.perf_counter()
        done = session.run(budget / 1e3)
        late.append((time.perf_counter() - start) * 1e3 - budget)


def show(what, late):
    late = sorted(late)
    counts = [sum(lower <= ms < upper for ms in late)
              for lower, upper in zip((float("-inf"), *EDGES), EDGES)]
    bars = "  ".join(f"<{edge:g}: {count}" for edge, count in zip(EDGES, counts) if count)
    print(f"{what:24} {len(late):5} calls, ms over: median {late[len(late) // 2]:.2f}, "
          f"99 % {late[len(late) * 99 // 100]:.2f}, most {late[-1]:.2f}   {bars}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=1.0, metavar="MS")
    given = parser.parse_args()
    model = mm.load(given.model, threads=given.threads)
    ids = [7919 * i % model.config.vocab_size for i in range(PROMPT)]
    model(ids[:PROMPT])  # the file is in memory from here on
    prompt, decode, fork, branch = [], [], [], []
    with model.session(context=2 * PROMPT) as session:
        run(session.feed(ids), given.budget, prompt)
        for token in ids[:TOKENS]:
            run(session.feed([token]), given.budget, decode)
        for count, n, late in ((1, FORKS, fork), (BRANCH, BRANCHES, branch)):
            for i in range(n):
                with session.fork() as other:
                    run(other.feed(ids[i:i + count]), given.budget, late)
    show(f"prompt of {PROMPT}", prompt)
    show("decode", decode)
    show("first token of a fork", fork)
    show(f"{BRANCH} tokens of a fork", branch)


if __name__ == "__main__":
    main()
