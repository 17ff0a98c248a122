"""Many tasks on one model under asyncio: python tests/bench/asyncio_load.py [--tasks 64] ...

Prints tokens per second of one task and of all together, how evenly they get on, how late the event
loop is, how soon a cancelled task has left the batch, and, after --load seconds of random
generations, scores, priorities, deadlines and cancelled tasks, what memory has grown by.
"""

import argparse
import array
import asyncio
import gc
import math
import random
import statistics
import time

import minimax2 as mm

PROMPTS = ["import os\n", "def fibonacci(n):", "class Reader:\n    ", "The sum of 2 and 3 is",
           "for line in file:\n"]
ENDLESS = {"max_new_tokens": 3500, "context": 4000}
ROUNDS = 20  # of the random load; the first five warm up


def percentile(values, share):
    """A value that this share of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


class Last:
    """The last numbers of many, in memory that does not grow."""

    def __init__(self, room=1 << 18):
        self._numbers = array.array("d", [math.nan]) * room
        self._count = 0

    def append(self, number):
        self._numbers[self._count % len(self._numbers)] = number
        self._count += 1

    def values(self):
        """In any order."""
        return self._numbers[:self._count].tolist()


async def lateness(found):
    """Keep how late the loop comes to a task that sleeps for a millisecond, in seconds."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.001
        await asyncio.sleep(0.001)
        found.append(loop.time() - due)


async def read(job):
    """What most tasks do."""
    async for _ in job:
        pass


async def endless(engine, count):
    """Jobs that do not end by themselves, all of them past their prompts."""
    forbidden = {token: -1e9 for token in engine.model.end_tokens}
    jobs = [engine.agenerate(PROMPTS[i % len(PROMPTS)], seed=i, bias=forbidden, **ENDLESS)
            for i in range(count)]
    tasks = [asyncio.create_task(read(job)) for job in jobs]
    while not all(job.tokens for job in jobs):
        await asyncio.sleep(0.001)
    return jobs, tasks


async def stop(tasks):
    """Cancel them and wait."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def speeds(engine, count, seconds):
    """Tokens of each of `count` tasks in that time, and the loop's lateness meanwhile."""
    jobs, tasks = await endless(engine, count)
    late = Last()
    ticker = asyncio.create_task(lateness(late))
    before, start = [len(job.tokens) for job in jobs], time.perf_counter()
    await asyncio.sleep(seconds)
    spent = time.perf_counter() - start
    made = [len(job.tokens) - had for job, had in zip(jobs, before)]
    assert not any(job.done for job in jobs), "some reached their end: fewer seconds, please"
    await stop([*tasks, ticker])
    return [n / spent for n in made], late.values()


async def cancels(engine, count, times):
    """Seconds from cancelling a task until it has left the batch, for each of `times`."""
    found = []
    while times > 0:
        jobs, tasks = await endless(engine, count)
        for task in random.sample(tasks, min(times, count // 2)):
            left, start = engine.running - 1, time.perf_counter()
            task.cancel()
            while engine.running > left:
                await asyncio.sleep(0.0005)
            found.append(time.perf_counter() - start)
            times -= 1
            await asyncio.sleep(0.005)
        await stop(tasks)
    return found


async def one_of_many(engine, chance):
    """A task of the random load."""
    prompt = "".join(chance.choice(PROMPTS) for _ in range(chance.choice((1, 1, 1, 4, 40))))
    deadline = chance.choice((None, None, None, chance.uniform(0, 0.5)))
    priority = chance.randrange(3)
    kind = chance.random()
    if kind < 0.1:
        try:
            await engine.ascore(prompt, priority=priority, deadline=deadline)
        except TimeoutError:
            pass  # what was asked for
        return
    job = engine.agenerate(prompt, priority=priority, deadline=deadline,
                           max_new_tokens=chance.randrange(1, 100),
                           stop=chance.choice((None, "\n")))
    if kind < 0.5:
        await job
        return
    async for _ in job:
        if kind > 0.9:
            break  # and nobody holds it any more


async def random_load(engine, count, seconds):
    """(tasks that came, lateness, bytes of growth after the warm-up) of a random load.

    Memory is looked at in pauses between rounds, when nothing is under way.
    """
    chance, late, came, sizes = random.Random(1), Last(), 0, []
    for _ in range(ROUNDS):
        tasks = set()
        ticker = asyncio.create_task(lateness(late))
        end = time.perf_counter() + seconds / ROUNDS
        while time.perf_counter() < end:
            while len(tasks) < 2 * count:
                task = asyncio.create_task(one_of_many(engine, chance))
                task.add_done_callback(tasks.discard)
                tasks.add(task)
                came += 1
            if chance.random() < 0.3:
                chance.choice(tuple(tasks)).cancel()
            await asyncio.sleep(0.01)
        await stop([*tasks, ticker])
        while engine.running or engine.waiting:
            await asyncio.sleep(0.01)
        gc.collect()
        sizes.append(resident())
    return came, late.values(), sizes[-1] - sizes[4]


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", help="a checkpoint; the embedded one")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each speed")
    parser.add_argument("--cancels", type=int, default=200)
    parser.add_argument("--load", type=float, default=30.0, help="seconds of random load")
    options = parser.parse_args()
    model = mm.load(options.model, threads=options.threads)
    print(f"{mm.cpu()}; {model}; {options.tasks} tasks")
    with model.engine(max_sessions=options.tasks) as engine:
        if options.seconds:
            (one,), late = await speeds(engine, 1, min(options.seconds, 2.0))
            print(f"one task: {one:.0f} tokens/s")
            each, late = await speeds(engine, options.tasks, options.seconds)
            mean = statistics.mean(each)
            print(f"all tasks: {sum(each):.0f} tokens/s, {sum(each) / one:.2f} times as many; "
                  f"least over mean {min(each) / mean:.3f}")
            print_late(late)
        if options.cancels:
            found = await cancels(engine, options.tasks, options.cancels)
            print(f"cancel until out of the batch: median {1e3 * statistics.median(found):.2f} ms, "
                  f"p99 {1e3 * percentile(found, 0.99):.2f} ms, most {1e3 * max(found):.2f} ms")
        if options.load:
            came, late, growth = await random_load(engine, options.tasks, options.load)
            print(f"random load: {came} tasks in {options.load:.0f} s, memory "
                  f"{growth / 2**20:+.2f} MiB")
            print_late(late)


def print_late(late):
    print(f"event loop late: median {1e3 * statistics.median(late):.2f} ms, "
          f"p99 {1e3 * percentile(late, 0.99):.2f} ms, most {1e3 * max(late):.2f} ms")


if __name__ == "__main__":
    asyncio.run(main())
