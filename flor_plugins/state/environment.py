"""What this process runs on, as far as it decides about bits.

Imports no torch: it asks one that is there.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from operator import attrgetter
from typing import Any

from flor_plugins.state.packages import installed

VARIABLES = re.compile(
    r"(PYTHONHASHSEED|PYTHONPATH|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR|MASTER_PORT)$"
    r"|(OMP|MKL|OPENBLAS|NUMEXPR|CUDA|CUBLAS|NCCL|PYTORCH)_|TORCH"
    r"|(PL|HF|TRANSFORMERS|TOKENIZERS|ACCELERATE)_"
)
SECRET_WORDS = re.compile(r"(TOKENS?|KEYS?|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?)(_|$)")
URL_WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@")

# Where torch keeps each switch; the first place that can be read counts. Places differ between
# versions, and the older switches of tf32 raise RuntimeError once a newer one was set.
SWITCHES: dict[str, tuple[str, ...]] = {
    "num_threads": ("get_num_threads",),
    "num_interop_threads": ("get_num_interop_threads",),
    "default_dtype": ("get_default_dtype",),
    "deterministic_algorithms": ("are_deterministic_algorithms_enabled",),
    "deterministic_warn_only": ("is_deterministic_algorithms_warn_only_enabled",),
    "float32_matmul_precision": ("get_float32_matmul_precision",),
    "cpu_capability": ("backends.cpu.get_cpu_capability",),
    "mkldnn": ("backends.mkldnn.enabled",),
    "mkldnn_deterministic": ("backends.mkldnn.deterministic",),
    "mkldnn_matmul_precision": ("backends.mkldnn.matmul.fp32_precision",),
    "cuda_version": ("version.cuda",),
    "hip_version": ("version.hip",),
    "cudnn": ("backends.cudnn.enabled",),
    "cudnn_benchmark": ("backends.cudnn.benchmark",),
    "cudnn_deterministic": ("backends.cudnn.deterministic",),
    "cudnn_tf32": ("backends.cudnn.fp32_precision", "backends.cudnn.allow_tf32"),
    "cuda_matmul_tf32": ("backends.cuda.matmul.fp32_precision", "backends.cuda.matmul.allow_tf32"),
    "cuda_matmul_fp16_reduction": ("backends.cuda.matmul.allow_fp16_reduced_precision_reduction",),
    "cuda_matmul_bf16_reduction": ("backends.cuda.matmul.allow_bf16_reduced_precision_reduction",),
    "flash_sdp": ("backends.cuda.flash_sdp_enabled",),
    "mem_efficient_sdp": ("backends.cuda.mem_efficient_sdp_enabled",),
    "math_sdp": ("backends.cuda.math_sdp_enabled",),
    "cudnn_sdp": ("backends.cuda.cudnn_sdp_enabled",),
}


def environment() -> dict[str, Any]:
    """What this process runs on: python, platform, packages, devices and what decides about bits.

    devices and determinism are empty where torch is not loaded. every_package: packages holds all
    that are installed (earlier recordings name eight at most). A switch that this torch does not
    have is left out. Takes some milliseconds; starts no process, initialises no device.
    """
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "every_package": True,
        "packages": installed(),
        "devices": _devices(),
        "determinism": _determinism(),
    }


def variables() -> dict[str, str]:
    """The variables of this process that can change a result; never one that may hold a secret."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if VARIABLES.match(name)
        and not SECRET_WORDS.search(name.upper())
        and not URL_WITH_PASSWORD.search(value)
    }


def _cpu() -> str:
    """The processor as Linux names it, else "". `platform.processor` would start a process."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            found = re.search(r"^model name\s*:\s*(.+)$", file.read(4_096), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _devices() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    if torch.cuda.is_initialized():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    # Names would initialise CUDA, after which the user's processes can't fork any more.
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [*devices, "mps"] if torch.backends.mps.is_available() else devices


def _determinism() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    switches = dict(SWITCHES)
    if (
        torch.cuda.is_initialized()
    ):  # asked before, it would initialise CUDA to learn the device's generation
        switches["cudnn_version"] = ("backends.cudnn.version",)
    values = {name: _first_readable(torch, places) for name, places in switches.items()}
    # torch.set_flush_denormal sets the processor's own switch, which python's floats obey, too.
    values["flush_denormal"] = sys.float_info.min / 2 == 0.0
    return {name: value for name, value in values.items() if value is not None}


def _first_readable(torch: Any, places: tuple[str, ...]) -> bool | int | float | str | None:
    for place in places:
        try:
            value = attrgetter(place)(torch)
            value = value() if callable(value) else value
        except (AttributeError, RuntimeError):
            continue
        return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
    return None
