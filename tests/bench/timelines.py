"""Forks, batches, files: what sharing and saving cost, and what flowing together gives.

    python tests/bench/timelines.py -m model.gguf [--fork] [--batch] [--wait] [--save]

--fork  a session of 32,768 positions is forked: microseconds a fork, and the memory of 1,000 forks
        alive, before and after they go on by a token. The positions are evaluated first, which
        takes a while: --depth asks for fewer.
--batch tokens a second of 1 to 16 sessions that decode together.
--wait  one session's prompt of 4,096 tokens flows through a batch in which others decode: the time
        between two tokens of these, and how fast the prompt goes, for several sizes of a pass.
--save  a session of --depth positions is saved, restored and goes on: the time for each of these,
        and the size of the file, which is written to --folder and removed.

All of them by default. Medians; memory is what the system says is resident.
"""

import argparse
import os
import statistics
import tempfile
import time

import minimax2 as mm


def resident():
    """Bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def prompt(model, length, start=0):
    """Ids that no row of a padded vocabulary spoils."""
    vocabulary = min(model.config.vocab_size, 2000)
    return [(17 * i + start) % vocabulary for i in range(length)]


def forks(model, depth, count=1000):
    session = model.session(context=depth + 16)
    session.feed(prompt(model, depth)).run()
    times, alive, before = [], [], resident()
    for _ in range(count):
        start = time.perf_counter()
        alive.append(session.fork())
        times.append((time.perf_counter() - start) * 1e6)
    forked = resident()
    print(f"fork at {depth:,}: median {statistics.median(times):.1f} us, "
          f"{(forked - before) / count / 1024:.2f} KiB a fork resident", flush=True)
    some = alive[:16]
    start = time.perf_counter()
    for fork in some:
        fork.feed([5]).run()
    print(f"  then a token each: {(time.perf_counter() - start) / len(some) * 1e3:.2f} ms, "
          f"{(resident() - forked) / len(some) / 2**20:.2f} MiB a branch")
    start = time.perf_counter()
    for fork in alive:
        fork.close()
    print(f"  closed in {(time.perf_counter() - start) / count * 1e6:.1f} us each")


def seconds(call, count=1):
    """The median, and what the last call returned."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def saving(model, depth, repeat, folder):
    session = model.session(context=depth + 64)
    session.feed(prompt(model, depth)).run()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = os.path.join(place, "session")
        spent, _ = seconds(lambda: session.save(path), repeat)
        size = os.path.getsize(path)
        print(f"save at {depth:,}: {spent:.2f} s for {size / 2**20:,.0f} MiB, "
              f"{size / spent / 1e9:.2f} GB/s", flush=True)
        for mapped in (True, False):
            spent, restored = seconds(lambda: model.restore(path, mapped=mapped), repeat)
            first, _ = seconds(lambda: restored.feed([5]).run())
            later, _ = seconds(lambda: restored.feed([6]).run(), 16)
            print(f"  restored {'mapped' if mapped else 'in memory'}: {spent * 1e3:.2f} ms; the "
                  f"first token {first * 1e3:.1f} ms, later ones {later * 1e3:.2f}", flush=True)
            restored.close()
    later, _ = seconds(lambda: session.feed([6]).run(), 16)
    print(f"  never saved: {later * 1e3:.2f} ms a token")


def decode(batch, sessions, tokens):
    """Seconds for `tokens` more of each member."""
    start = time.perf_counter()
    for i in range(tokens):
        for session in sessions:
            session.feed([7 + i])
        batch.run()
    return time.perf_counter() - start


def throughput(model, repeat, tokens=24):
    counts = (1, 2, 4, 8, 16)
    sessions = [model.session(context=2048) for _ in range(max(counts))]
    for i, session in enumerate(sessions):
        session.feed(prompt(model, 16, 31 * i)).run()
    rates = {count: [] for count in counts}
    for _ in range(repeat):
        for count in counts:
            with model.batch(sessions[:count]) as batch:
                rates[count].append(count * tokens / decode(batch, sessions[:count], tokens))
            for session in sessions:
                session.rewind(16)
                session.feed([3]).run()
    for count in counts:
        print(f"{count:2} sessions: {statistics.median(rates[count]):7.1f} tokens/s in all",
              flush=True)


def waiting(model, sizes, length=4096):
    for rows in sizes:
        long, short = model.session(context=length), model.session(context=length)
        short.feed(prompt(model, 16)).run()
        with model.batch([long, short], rows=rows) as both:
            short.feed([5])
            long.feed(prompt(model, length))
            gaps, start = [], time.perf_counter()
            last = start
            while session := both.next():
                now = time.perf_counter()
                if session is long:
                    break
                gaps.append(now - last)
                last = now
                short.feed([len(gaps) % 1000])
            spent = time.perf_counter() - start
            print(f"passes of {rows:4}: prompt {length / spent:7.1f} tokens/s; between two tokens "
                  f"{statistics.median(gaps) * 1e3:.0f} ms, at most {max(gaps) * 1e3:.0f}",
                  flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True, metavar="PATH")
    parser.add_argument("-t", "--threads", type=int, metavar="N")
    parser.add_argument("--depth", type=int, default=32768, metavar="N", help="(32768)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="(5)")
    parser.add_argument("--folder", metavar="PATH", help="for --save (the system's temporary one)")
    for name in ("fork", "batch", "wait", "save"):
        parser.add_argument(f"--{name}", action="store_true")
    arguments = parser.parse_args()
    every = not (arguments.fork or arguments.batch or arguments.wait
                 or arguments.save)
    with mm.load(arguments.model, threads=arguments.threads) as model:
        print(mm.cpu(), f"{model.threads} threads, {model.info('quantization')}", sep=", ")
        if arguments.batch or every:
            throughput(model, arguments.repeat)
        if arguments.wait or every:
            waiting(model, (64, 128, 256, 512, 1024))
        if arguments.fork or every:
            forks(model, arguments.depth)
        if arguments.save or every:
            saving(model, arguments.depth, arguments.repeat, arguments.folder)


if __name__ == "__main__":
    main()
