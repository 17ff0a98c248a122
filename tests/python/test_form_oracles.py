"""What the packages that write quantised safetensors make of those of golden/safetensors_file.py,
and of those of test_convert.py.

The tests of the library compare with the latter, in numpy; these show that it says the right thing.
They need torch and one of the packages, which the project does not install: without them they are
skipped. tests/README.md says how to run them.
"""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
import safetensors_file as forms  # noqa: E402
import test_convert as transposed  # noqa: E402
from make_hashes import CASE  # noqa: E402

SHAPE = 72, 256
OTHERS = ("fp8 blocks", "fp8 blocks f16", "fp8 blocks 4-D", "fp8 rows flat", "fp8 tensor bf16",
          "nvfp4 modelopt")  # not the spelling of compressed-tensors


def package(name, wanted):
    return pytest.importorskip(name, reason=f"no {wanted} here: see tests/README.md")


def tensor(torch, dtype, array):
    whole = torch.from_numpy(np.array(array))
    views = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
    return whole.view(views[dtype]) if dtype in views else whole


def arguments(form):
    """(compressor's name, keywords of QuantizationArgs) of a form."""
    kind, group, *more = form.split()
    if kind == "fp8":
        strategy = {"blocks": dict(strategy="block", block_structure=[128, 128]),
                    "rows": dict(strategy="channel"), "tensor": dict(strategy="tensor")}[group]
        return "float-quantized", dict(num_bits=8, type="float", symmetric=True, **strategy)
    if kind in ("nvfp4", "mxfp4"):
        strategy, size = ("tensor_group", 16) if kind == "nvfp4" else ("group", 32)
        return f"{kind}-pack-quantized", dict(num_bits=4, type="float", strategy=strategy,
                                              group_size=size, symmetric=True)
    size = dict(strategy="channel") if group == "rows" else dict(strategy="group",
                                                                 group_size=int(group))
    return "pack-quantized", dict(num_bits=int(kind[3:]), type="int", symmetric="zeros" not in more,
                                  **size)


@pytest.mark.parametrize("form", [form for form in forms.FORMS if form not in OTHERS])
def test_compressed_tensors(form):
    package("compressed_tensors", "compressed-tensors")
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    parts, values = forms.FORMS[form](CASE, "module", SHAPE, 0.06)
    name, keywords = arguments(form)
    tensors = {ending[1:]: tensor(torch, dtype, array) for ending, (dtype, array) in parts.items()}
    if form == "mxfp4 quark":
        tensors["weight_packed"] = tensors.pop("weight")
    if tensors["weight_scale"].dtype in (torch.bfloat16, torch.float16):
        tensors["weight_scale"] = tensors["weight_scale"].float()  # or the product is rounded
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**keywords),
                                format=name)
    theirs = BaseCompressor.get_value_from_registry(name).decompress(tensors, scheme)["weight"]
    assert torch.equal(theirs, torch.from_numpy(values).to(theirs.dtype))  # FP4 comes as bf16


def test_modelopt():
    package("modelopt", "nvidia-modelopt")
    import torch
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
    parts, values = forms.nvfp4_modelopt(CASE, "module", SHAPE, 0.06)
    packed, scale, factor = (tensor(torch, *parts[ending]) for ending in (
        ".weight", ".weight_scale", ".weight_scale_2"))
    theirs = NVFP4QTensor(torch.Size(SHAPE), torch.float32, packed).dequantize(
        torch.float32, scale=scale, double_scale=factor, block_sizes={-1: 16})
    assert torch.equal(theirs, torch.from_numpy(values))


@pytest.mark.parametrize("layout, bits", [
    (name, bits) for name in transposed.LAYOUTS if "round" in name
    for bits in ((4,) if "awq" in name else (4, 8))])
def test_auto_round(layout, bits):
    """A product with the unit matrix is the matrix."""
    package("auto_round", "auto-round")
    import torch
    from auto_round.inference.backend import AWQ_FORMAT, BackendInfos
    config, offset = transposed.LAYOUTS[layout]
    matrix = transposed.Matrix(bits, *SHAPE, bits=bits)
    codes, zeros, scales = (
        torch.from_numpy(array.view(np.int32) if array.dtype == np.uint32 else array)
        for array in matrix.tensors("m", offset, "awq" in layout).values())
    if "awq" in layout:
        from auto_round.export.export_to_awq.utils import dequantize_gemm
        assert config["packing_format"] in AWQ_FORMAT
        theirs = dequantize_gemm(codes, zeros, scales.float(), bits, matrix.group)
    else:
        from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp
        module, name = (qlinear_torch_zp, "torch_zp") if offset else (qlinear_torch, "torch")
        assert config["packing_format"] in BackendInfos["auto_round:" + name].packing_format
        layer = module.QuantLinear(bits, matrix.group, SHAPE[1], SHAPE[0], False)
        layer.qweight, layer.qzeros, layer.scales = codes, zeros, scales.float()
        theirs = layer(torch.eye(SHAPE[1]))
    assert torch.equal(theirs.T, torch.from_numpy(matrix.values()))
