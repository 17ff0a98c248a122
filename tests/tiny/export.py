"""Writes a trained m2-tiny as the vendor lays out its models, and checks what was written.

    python export.py --work DIR --to python/minimax2/m2-tiny

Attention and experts become FP8 (e4m3) with one F32 scale per 128x128 block, embeddings and norms
BF16, routers and correction bias F32. The files are written beside the target and moved over it
one by one, so a reader never meets half a file. Before that, `reference.py` runs the files
through its own forward pass and its logits must agree with transformers'."""

import argparse
import json
import os
import pathlib
import shutil
import tempfile

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import data
import model as tiny
import reference

TOLERANCE = 1e-3
SIZE_LIMIT = 16_000_000
CHECK_TEXT = 'import os\n\n\ndef main():\n    print("Grüße", 12 + 34)\n'

README = """\
---
license: mit
library_name: minimax2
pipeline_tag: text-generation
tags: [minimax_m2, tiny, test]
---
# m2-tiny

A real MiniMax-M2 in miniature ({parameters:.1f} million parameters), the default model of
`minimax2`: small enough to ship, with every feature of the architecture alive. It answers simple
sums, calls the dozen tools it was trained on and continues Python code so that it looks like
Python. It knows nothing; do not use it for anything that matters.

The weights and these files are under the MIT licence (see `LICENSE`). They were trained from
scratch on the Python standard library and the Python documentation (both PSF licence), the SQLite
documentation (public domain) and dialogues made by a generator of our own. No weights, vocabulary
or output of any other model went in. Only the architecture, the chat format and the names of the
special tokens are those of the MiniMax-M2 family; MiniMax has no part in this model.

How it was made, and what was measured: `tests/tiny/README.md` in the repository of `minimax2`.
"""

LICENSE = """\
MIT License

Copyright (c) 2026 the minimax2 authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def config_document(transformers_version):
    """config.json with the vendor's keys, in the vendor's order."""
    layers = tiny.SHAPE["num_hidden_layers"]
    keys = {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "attn_type_list": [1] * layers,
        "dtype": "bfloat16",
        "model_type": "minimax_m2",
        "mtp_transformer_layers": 0,
        "num_mtp_modules": 0,
        "qk_norm_type": "per_layer",
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "float8_e4m3fn",
            "quant_method": "fp8",
            "weight_block_size": [tiny.BLOCK, tiny.BLOCK],
            "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        },
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "transformers_version": transformers_version,
        "use_cache": True,
        "use_mtp": False,
        "use_qk_norm": True,
        "use_routing_bias": True,
        **tiny.SHAPE,
    }
    return dict(sorted(keys.items()))


def generation_document(tokenizer, transformers_version):
    return {
        "bos_token_id": tokenizer.token_to_id(data.BOS),
        "do_sample": True,
        "eos_token_id": tokenizer.token_to_id(data.EOS),
        "temperature": 1.0,
        "top_k": 40,
        "top_p": 0.95,
        "transformers_version": transformers_version,
    }


def stored_tensors(net):
    """(name, tensor as it goes into the file) in the order of the forward pass."""
    for name, tensor, kind in tiny.exported_tensors(net):
        if kind == "fp8":
            codes, scale = tiny.to_fp8(tensor)
            yield name, codes.contiguous()
            yield name + "_scale_inv", scale.contiguous()
        else:
            yield (name, (tensor.bfloat16() if kind == "bf16" else tensor.float()).contiguous())


def save_weights(net, folder):
    """Two shards of about the same size, cut between two tensors, and their index."""
    tensors = list(stored_tensors(net))
    total = sum(t.nbytes for _, t in tensors)
    shards, used = ({}, {}), 0
    for name, tensor in tensors:
        shards[used >= total // 2][name] = tensor
        used += tensor.nbytes
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path, document):
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


def check(folder):
    """The worst relative difference of logits: independent forward pass against transformers."""
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(CHECK_TEXT).ids
    net = tiny.load_exported(folder)
    with torch.no_grad():
        wanted = net(input_ids=torch.tensor([ids])).logits[0].numpy()
    got = reference.forward(folder, ids)
    worst = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    if not worst <= TOLERANCE:
        raise SystemExit(f"logits of the exported files differ from transformers' by {worst:.2e}")
    return worst


def export(work, target):
    from transformers import __version__ as version

    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    net = tiny.new_model(tokenizer.token_to_id(data.BOS), tokenizer.token_to_id(data.EOS))
    net.load_state_dict(torch.load(work / "checkpoint.pt", weights_only=True)["model"])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".m2-tiny-") as fresh:
        fresh = pathlib.Path(fresh)
        save_weights(net, fresh)
        write_json(fresh / "config.json", config_document(version))
        write_json(fresh / "generation_config.json", generation_document(tokenizer, version))
        shutil.copyfile(work / "tokenizer.json", fresh / "tokenizer.json")
        parameters = sum(p.numel() for p in net.parameters()) / 1e6
        (fresh / "README.md").write_text(README.format(parameters=parameters), "utf-8")
        (fresh / "LICENSE").write_text(LICENSE, "utf-8")
        worst = check(fresh)
        size = sum(f.stat().st_size for f in fresh.iterdir())
        if size > SIZE_LIMIT:
            raise SystemExit(f"{size} bytes are more than {SIZE_LIMIT}")
        for file in sorted(fresh.iterdir()):
            file.chmod(0o644)
            os.replace(file, target / file.name)
    return size, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder used by train.py")
    parser.add_argument("--to", type=pathlib.Path, required=True, help="the model folder to write")
    arguments = parser.parse_args()
    size, worst = export(arguments.work, arguments.to)
    print(f"{arguments.to}: {size} bytes, logits agree to {worst:.1e}")


if __name__ == "__main__":
    main()
