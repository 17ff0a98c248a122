"""Trains m2-tiny with transformers' MiniMaxM2ForCausalLM on a wall-clock budget.

    python train.py --work DIR --minutes 80.5      # again with the same line: resumes

The schedule follows the share of the time budget that is used up, so a slower machine trains on
fewer tokens but still ends with a small learning rate. Matrices are trained with Muon
(orthogonalised momentum), the rest with AdamW. Experts are balanced without an auxiliary loss:
after each step the correction bias of an expert moves a little up if it had less than the mean
load, else down. The last part of training sees longer rows and weights rounded as they will be
stored (FP8 blocks, BF16).

Each core runs a worker of its own on its share of the rows, and gradients are summed once a step.
That is much faster than threads inside one process when other programs use the machine: threads
would wait for each other thousands of times a step.
"""

import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import time

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import AttentionInterface

import data
import model as tiny

SEED = 20261122
ROWS, ROW_TOKENS = (12, 512)  # rows of a step, halves as many of twice the length at the end
KINDS = ("code", "docs", "tool", "question")
MIXES = (  # (up to this share of the time budget, shares of rows): language first, then tasks
    (0.34, (0.36, 0.13, 0.36, 0.15)),
    (1.00, (0.18, 0.02, 0.46, 0.34)),
)
WARM_UP_STEPS = 40
ASSISTANT_WEIGHT = 5.0  # of a token of an assistant turn in the loss; every other weighs 1
DECAY_FROM = 0.45  # share of the budget after which the rate falls linearly to zero
LAST_PHASE = 0.84  # from here on: long rows, weights as stored
MUON_RATE, ADAM_RATE, WEIGHT_DECAY = 0.02, 3e-3, 0.01
BIAS_RATE = 4e-3
SAVE_SECONDS = 150
ATTENTION_BLOCK, HEAD_CHUNK = 128, 256


def keep_memory():
    """glibc maps and unmaps every large tensor afresh; keeping the pages is worth a quarter."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        mmap_max, trim_threshold, top_pad = -4, -1, -2
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20)):
            libc.mallopt(option, value)


# ---- rows ----------------------------------------------------------------------------------------


class Rows:
    """Rows of tokens: crops of the code and documentation streams, and packed dialogues."""

    def __init__(self, work, pad):
        self.streams = {k: np.load(work / f"{k}.npy") for k in ("code", "docs")}
        self.dialogues = {}
        for kind in ("tool", "question"):
            with np.load(work / f"{kind}.npz") as file:
                self.dialogues[kind] = file["tokens"], file["offsets"]
        self.pad = pad

    def pick(self, rng, kind):
        tokens, offsets = self.dialogues[kind]
        i = rng.integers(len(offsets) - 1)
        return tokens[offsets[i] : offsets[i + 1]]

    def packed(self, rng, kind, length):
        """Whole dialogues: of the kind until one does not fit, then questions, then padding."""
        row, used, misses = np.full(length, self.pad, np.int64), 0, 0
        while misses < 4:
            item = self.pick(rng, kind)
            if used + len(item) <= length:
                row[used : used + len(item)] = item
                used += len(item)
            else:
                kind, misses = "question", misses + 1
        return row

    def batch(self, step, worker, mix, rows, length):
        """(kinds, tokens of rows x (length + 1)), the same for the same arguments."""
        rng = np.random.default_rng((SEED, step, worker))
        kinds = rng.choice(KINDS, rows, p=mix)
        out = np.empty((rows, length + 1), np.int64)
        for i, kind in enumerate(kinds):
            if kind in self.streams:
                stream = self.streams[kind]
                start = rng.integers(len(stream) - length - 1)
                out[i] = stream[start : start + length + 1]
            else:
                out[i] = self.packed(rng, kind, length + 1)
        return kinds, torch.from_numpy(out)


def emphasis(tokens, tokenizer, pad):
    """Weight of each token's loss: none for padding, more for what the assistant says.

    Those are the tokens that must be right, and they are few: without this the loss on code, which
    stays high for good, drowns them.
    """
    turn, ai, *_ = tokenizer.encode("]~b]ai\n", add_special_tokens=False).ids
    tokens = tokens.numpy()
    index = np.arange(tokens.shape[1])
    begins = np.zeros(tokens.shape, bool)
    begins[:, 1:] = (tokens[:, :-1] == turn) & (tokens[:, 1:] == ai)
    ended = np.zeros(tokens.shape, bool)
    ended[:, 1:] = tokens[:, :-1] == tokenizer.token_to_id(data.EOS)
    last_begin, last_end = (
        np.maximum.accumulate(np.where(x, index, -1), axis=1) for x in (begins, ended)
    )
    weights = np.where(last_begin > last_end, ASSISTANT_WEIGHT, 1.0) * (tokens != pad)
    return torch.from_numpy(weights.astype(np.float32))


# ---- optimisers ----------------------------------------------------------------------------------


def orthogonalised(matrices, rounds=5):
    """Drives the singular values of a stack of matrices towards one (Newton-Schulz, in BF16)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; a parameter may be a stack of matrices (experts).

    Every worker keeps all averages but orthogonalises only its share of the parameters.
    """

    def __init__(self, matrices, momentum=0.95):
        super().__init__(matrices, {"lr": MUON_RATE, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        todo = [(group, weight) for group in self.param_groups for weight in group["params"]]
        sizes = [weight.numel() for _, weight in todo]
        updates = torch.zeros(sum(sizes), dtype=torch.bfloat16)
        for i, ((group, weight), update) in enumerate(zip(todo, updates.split(sizes))):
            average = self.state[weight].setdefault("average", torch.zeros_like(weight))
            average.lerp_(weight.grad, 1 - group["momentum"])
            if i % dist.get_world_size() == dist.get_rank():
                ahead = weight.grad.lerp(average, group["momentum"])
                rows, cols = group["matrix"] or weight.shape
                update.copy_(orthogonalised(ahead.reshape(-1, rows, cols)).flatten())
        dist.all_reduce(updates)
        for (group, weight), update in zip(todo, updates.split(sizes)):
            rows, cols = group["matrix"] or weight.shape
            weight.mul_(1 - group["lr"] * WEIGHT_DECAY)
            weight.add_(update.view_as(weight), alpha=-group["lr"] * max(1, rows / cols) ** 0.5)


def optimisers(net):
    wide, hidden = tiny.SHAPE["intermediate_size"], tiny.SHAPE["hidden_size"]
    plain, gate_up, down, rest = [], [], [], []
    for name, weight in net.named_parameters():
        if "_proj.weight" in name:
            plain.append(weight)
        elif "gate_up_proj" in name:
            gate_up.append(weight)
        elif "down_proj" in name:
            down.append(weight)
        else:
            rest.append(weight)
    muon = Muon(
        [
            {"params": plain, "matrix": None},
            {"params": gate_up, "matrix": (wide, hidden)},
            {"params": down, "matrix": (hidden, wide)},
        ]
    )
    adam = torch.optim.AdamW(rest, ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return muon, adam


def rate(progress, step):
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm * min(1.0, max(0.0, (1 - progress) / (1 - DECAY_FROM)))


# ---- routers -------------------------------------------------------------------------------------


class Routers:
    """Counts what each expert is given, keeps the routers in F32 and moves the correction bias."""

    def __init__(self, net):
        self.blocks = [layer.mlp for layer in net.model.layers]
        self.load = torch.zeros(len(self.blocks), tiny.SHAPE["num_local_experts"])
        for i, block in enumerate(self.blocks):
            block.gate.forward = self.watched(i, block.gate.forward)

    def watched(self, i, forward):
        def routed(*arguments):
            with torch.autocast("cpu", enabled=False):
                logits, scores, chosen = forward(*arguments)
            self.load[i] += torch.bincount(chosen.flatten(), minlength=self.load.shape[1])
            return logits, scores, chosen

        return routed

    def balance(self, amount):
        """One step of the bias; returns the worst load of a step as a share of the mean."""
        dist.all_reduce(self.load)
        mean = self.load.mean(1, keepdim=True)
        for block, load, middle in zip(self.blocks, self.load, mean):
            block.e_score_correction_bias += amount * torch.sign(middle - load)
        worst = (self.load / mean).min().item()
        self.load.zero_()
        return worst


# ---- two products that torch does slowly on CPUs -------------------------------------------------


def causal_attention(module, query, key, value, mask, scaling, **_):
    """Causal attention in BF16, a block of queries at a time against the keys up to it.

    The query heads that share a key head are stacked, so no key is repeated.
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    mixed = []
    with torch.autocast("cpu", enabled=False):
        query, key, value = (x.bfloat16() for x in (query * scaling, key, value))
        query = query.view(batch, groups, -1, length, width)
        future = torch.full((ATTENTION_BLOCK, ATTENTION_BLOCK), float("-inf")).triu(1).bfloat16()
        for start in range(0, length, ATTENTION_BLOCK):
            end = min(start + ATTENTION_BLOCK, length)
            part = query[:, :, :, start:end].reshape(batch, groups, -1, width)
            scores = (part @ key[:, :, :end].mT).view(batch, groups, -1, end - start, end)
            scores[..., start:] += future[: end - start, : end - start]
            weights = torch.softmax(scores, -1).view(batch, groups, -1, end)
            out = weights @ value[:, :, :end]
            mixed.append(out.view(batch, heads, end - start, width))
    return torch.cat(mixed, 2).transpose(1, 2), None


class HeadLoss(torch.autograd.Function):
    """Cross entropy behind the output matrix, in chunks that stay in the cache.

    Its gradients are made on the way forward, for the weighted mean of the targets' losses.
    """

    @staticmethod
    def forward(ctx, hidden, head, targets, weights):
        matrix = head.bfloat16()
        to_hidden, to_head = torch.empty_like(hidden), torch.zeros_like(head)
        loss = torch.empty(len(targets))
        weight = weights / weights.sum()
        for rows in torch.arange(len(targets)).split(HEAD_CHUNK):
            part, aims = hidden[rows].bfloat16(), targets[rows]
            scores = (part @ matrix.T).float()
            scale = scores.logsumexp(1)
            loss[rows] = scale - scores.gather(1, aims[:, None])[:, 0]
            slope = scores.sub_(scale[:, None]).exp_()
            slope[torch.arange(len(aims)), aims] -= 1
            slope = slope.mul_(weight[rows, None]).bfloat16()
            to_hidden[rows] = (slope @ matrix).float()
            to_head += (slope.T @ part).float()
        ctx.save_for_backward(to_hidden, to_head)
        loss = loss * (weights > 0)
        ctx.mark_non_differentiable(loss)
        return (loss * weight).sum(), loss

    @staticmethod
    def backward(ctx, gradient, _):
        to_hidden, to_head = ctx.saved_tensors
        return gradient * to_hidden, gradient * to_head, None, None


# ---- the loop ------------------------------------------------------------------------------------


def losses(net, tokens, weights):
    """(weighted mean loss, loss of each token but the first, whether it counts)."""
    inputs, targets, weights = tokens[:, :-1], tokens[:, 1:], weights[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = net.model(input_ids=inputs, use_cache=False).last_hidden_state
    mean, each = HeadLoss.apply(
        hidden.flatten(0, 1), net.lm_head.weight, targets.flatten(), weights.flatten()
    )
    return mean, each.view(targets.shape), weights > 0


class Run:
    """Everything that a checkpoint holds."""

    def __init__(self, work, net):
        self.path = work / "checkpoint.pt"
        self.net = net
        self.optimisers = optimisers(net)
        self.step, self.seconds, self.tokens, self.history = 0, 0.0, 0, []
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            net.load_state_dict(saved["model"])
            for optimiser, state in zip(self.optimisers, saved["optimisers"]):
                optimiser.load_state_dict(state)
            for key in ("step", "seconds", "tokens", "history"):
                setattr(self, key, saved[key])

    def save(self):
        fresh = self.path.with_suffix(".new")
        state = {k: getattr(self, k) for k in ("step", "seconds", "tokens", "history")}
        state["model"] = self.net.state_dict()
        state["optimisers"] = [o.state_dict() for o in self.optimisers]
        torch.save(state, fresh)
        os.replace(fresh, self.path)

    def set_rates(self, share):
        for optimiser, top in zip(self.optimisers, (MUON_RATE, ADAM_RATE)):
            for group in optimiser.param_groups:
                group["lr"] = top * share


def sum_gradients(net):
    """Mean of the workers' gradients, in one message."""
    gradients = [p.grad for p in net.parameters()]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


def one_step(run, rows, routers, tokenizer, progress):
    """A step of all workers; returns what this one has to say about it."""
    share = rate(progress, run.step)
    last = progress >= LAST_PHASE
    count, length = (ROWS // 2, 2 * ROW_TOKENS) if last else (ROWS, ROW_TOKENS)
    mix = next(shares for until, shares in MIXES if progress < until)
    kinds, tokens = rows.batch(
        run.step, dist.get_rank(), mix, count // dist.get_world_size(), length
    )
    run.set_rates(share)
    with tiny.stored_precision(run.net) if last else contextlib.nullcontext():
        mean, loss, counted = losses(run.net, tokens, emphasis(tokens, tokenizer, rows.pad))
        mean.backward()
    sum_gradients(run.net)
    for optimiser in run.optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    worst = routers.balance(BIAS_RATE * max(share, 0.02))
    by_kind = {
        k: (loss[kinds == k].sum() / counted[kinds == k].sum()).item() for k in set(kinds.tolist())
    }
    return counted.sum(), {"worst": worst, **by_kind}


def train(run, rows, routers, tokenizer, budget):
    first = dist.get_rank() == 0
    bar = tqdm(
        total=round(budget), initial=round(run.seconds), unit="s", disable=None if first else True
    )
    saved = time.monotonic()
    while run.seconds < budget:
        begun = time.monotonic()
        counted, notes = one_step(run, rows, routers, tokenizer, run.seconds / budget)
        # The first worker's clock is everybody's, so that all follow the same schedule.
        sums = torch.tensor([counted, (time.monotonic() - begun) * first], dtype=torch.float64)
        dist.all_reduce(sums)
        run.step += 1
        run.tokens += int(sums[0])
        run.seconds += sums[1].item()
        if not first:
            continue
        run.history.append(
            {"step": run.step, "seconds": run.seconds, "tokens": run.tokens, **notes}
        )
        bar.update(round(run.seconds) - bar.n)
        if run.step % 20 == 0:
            tqdm.write(summary(run))
        if time.monotonic() - saved > SAVE_SECONDS:
            run.save()
            saved = time.monotonic()
    if first:
        run.save()


def summary(run):
    then, now = run.history[-min(20, len(run.history))], run.history[-1]
    pace = (now["tokens"] - then["tokens"]) / (now["seconds"] - then["seconds"] + 1e-9)
    show = " ".join(f"{k} {recent(run.history, k):.3f}" for k in (*KINDS, "worst"))
    return f"step {run.step} {run.seconds:.0f}s {run.tokens / 1e6:.2f}M tokens {pace:.0f}/s {show}"


def recent(history, kind, count=20):
    values = [h[kind] for h in history[-count:] if kind in h]
    return sum(values) / max(1, len(values))


def work_on(rank, arguments):
    """One worker; the first one also keeps the checkpoint and the log."""
    keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    meeting = (arguments.work / f"meeting-{os.getppid()}").absolute()
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=arguments.workers
    )
    tokenizer = Tokenizer.from_file(str(arguments.work / "tokenizer.json"))
    bos, eos, pad = (tokenizer.token_to_id(t) for t in (data.BOS, data.EOS, data.PAD))
    net = tiny.new_model(bos, eos)
    AttentionInterface.register("causal", causal_attention)
    net.set_attn_implementation("causal")
    run = Run(arguments.work, net)
    train(run, Rows(arguments.work, pad), Routers(net), tokenizer, 60 * arguments.minutes)
    if rank == 0:
        facts = {
            "steps": run.step,
            "minutes": round(run.seconds / 60, 1),
            "tokens": run.tokens,
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in net.parameters()),
        }
        document = {"run": facts, "history": run.history}
        (arguments.work / "train.json").write_text(json.dumps(document))
        print(json.dumps(facts))
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder made by data.py")
    parser.add_argument("--minutes", type=float, default=80.5, help="training time in all")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    arguments = parser.parse_args()
    torch.multiprocessing.spawn(work_on, (arguments,), nprocs=arguments.workers)


if __name__ == "__main__":
    main()
