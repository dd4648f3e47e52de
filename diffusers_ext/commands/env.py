"""Print what a result depends on, for a report: versions, machine, accelerators; and whether torch and torchvision fit.

diffusers-ext env
"""

from dataclasses import dataclass

PACKAGES = (
    *("diffusers_ext", "torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "open_clip_torch"),
    *("timm", "huggingface_hub", "safetensors", "datasets", "tokenizers", "numpy"),
)


@dataclass
class Options:
    pass


def main(options: Options) -> None:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from ..errors import InputError

    lines = [("python", platform.python_version()), ("system", platform.platform())]
    for name in PACKAGES:
        try:
            lines.append((name, version(name)))
        except PackageNotFoundError:
            lines.append((name, "not installed"))
    lines += [(name, os.environ[name]) for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME") if name in os.environ]
    print("\n".join(f"{name:<16} {value}" for name, value in [*lines, *_machine()]))
    fault = _torchvision_fault()
    if fault:
        raise InputError(fault)


def _machine() -> list[tuple[str, str]]:
    import os

    import torch

    found = [("processors", str(os.cpu_count())), ("threads", str(torch.get_num_threads()))]
    found.append(
        ("cpu bfloat16", "products in hardware" if torch.cpu._is_avx512_bf16_supported() else "emulated, slow")
    )
    for at in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(at)
        found.append((f"cuda:{at}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"))
    if torch.backends.mps.is_available():
        found.append(("mps", "available"))
    return found


def _torchvision_fault() -> str | None:
    """Builds of different sources import apart and fail together, each library with a message of its own."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        return f"torchvision does not fit torch ({error}); install both in one command: pip install --force-reinstall torch torchvision"
    return None
