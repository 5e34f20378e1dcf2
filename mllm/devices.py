"""What devices multiply and hold: accelerators by name, this machine's by trying."""

import re
import statistics
import time
from typing import NamedTuple

import torch

from mllm.errors import UserError

GIB = 2**30


class Device(NamedTuple):
    """Peak operations per second of dense matrix products, by precision, and memory in bytes."""

    memory: int
    flops: dict[str, float]


# Makers' data sheets, dense (without sparsity). fp32 is what `torch` multiplies with by default:
# without TF32. V100 and its successors: SXM. V100 has no bf16.
#   V100     NVIDIA V100 data sheet (January 2020): 125 / 15.7 TFLOP/s
#   A100     NVIDIA A100 data sheet (June 2021): 312 / 19.5
#   H100     NVIDIA H100 data sheet (2023): 1,979 with sparsity, 989 dense / 67
#   H200     NVIDIA H200 data sheet (2024): as H100, 141 GB
#   B200     NVIDIA DGX B200 data sheet (2024): 36 PFLOP/s bf16 with sparsity over 8 GPUs, 2,250
#            dense each / 75; 180 GB
#   L4       NVIDIA L4 data sheet (2023): 242 with sparsity, 121 dense / 30.3
#   RTX 4090 NVIDIA Ada architecture white paper (2022): 165.2 with fp32 accumulation / 82.6
#   cpu      the two cores with AVX-512 that this project is tested on: products of 2048^3 ran at
#            85 to 420 GFLOP/s by load and precision; 24 GiB. Others: `make bench ROWS=mfu`.
DEVICES = {
    "V100": Device(32 * GIB, {"fp16": 125e12, "fp32": 15.7e12}),
    "A100-40": Device(40 * GIB, {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12}),
    "A100-80": Device(80 * GIB, {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12}),
    "H100": Device(80 * GIB, {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12}),
    "H200": Device(141 * 10**9, {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12}),
    "B200": Device(180 * 10**9, {"bf16": 2250e12, "fp16": 2250e12, "fp32": 75e12}),
    "L4": Device(24 * GIB, {"bf16": 121e12, "fp16": 121e12, "fp32": 30.3e12}),
    "RTX4090": Device(24 * GIB, {"bf16": 165.2e12, "fp16": 165.2e12, "fp32": 82.6e12}),
    "cpu": Device(24 * GIB, {"bf16": 300e9, "fp32": 130e9}),
}


def device_named(name: str) -> Device:
    """
    Raises:
        UserError: there is none of that name here.
    """
    if name not in DEVICES:
        raise UserError(f"--device {name}: unknown; one of {', '.join(DEVICES)}")
    return DEVICES[name]


def peak_of(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of dense products that MFU is a share of.

    A known GPU's is its maker's; any other device's is that of the product it is seen to do, which
    a CPU shares among the ranks on it.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        is_other = re.search(r"PCIe|NVL|Laptop", name)  # slower than the sheet's
        words = re.split(r"[\s-]+", name.replace("RTX ", "RTX"))
        names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
        for known_name, known in DEVICES.items():
            is_it = known_name.split("-")[0] in words and not is_other
            if is_it and names[dtype] in known.flops:
                return known.flops[names[dtype]]
        return measured_product(device, dtype, 8192)
    # A CPU that emulates bf16 does a 2048-cubed product in seconds.
    return measured_product(device, dtype, 1024 if dtype == torch.float32 else 256)


def measured_product(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations per second of a product of two square matrices, median of five."""
    generator = torch.Generator(device).manual_seed(0)  # none of the run's
    a = torch.randn(side, side, device=device, generator=generator).to(dtype)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / statistics.median(seconds[1:])
