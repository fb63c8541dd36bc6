"""The GPUs of this machine, by NVML where there is one; the variable KAJIYA_FAKE_GPUS puts others in their place."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

FAKE_VARIABLE = "KAJIYA_FAKE_GPUS"
"""For tests and demonstrations: such as `2xFake H100:80G,1xFake T4:16G`."""


class Gpu(NamedTuple):
    """One GPU, or one MIG slice: what CUDA_VISIBLE_DEVICES calls it, its model's name, bytes of memory.

    `busy` says that some process computes on it now, whoever started that.
    """

    uuid: str
    kind: str
    memory: int
    busy: bool = False


def gpus() -> list[Gpu]:
    """All GPUs that this process may see; none where there is no driver or no NVML binding."""
    fake = os.environ.get(FAKE_VARIABLE)
    return parse_fake(fake) if fake else list(_by_nvml())


def parse_fake(text: str) -> list[Gpu]:
    """GPUs from `COUNTxKIND:MEMORY`, several by commas. Raises `ValueError`."""
    from kajiya.sizes import parse_size

    out: list[Gpu] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        found = re.fullmatch(r"(\d+)\s*x\s*([^:]+):\s*(\S+)", part)
        if found is None:
            raise ValueError(f"{FAKE_VARIABLE}: {part!r} is not like 2xFake H100:80G")
        for _ in range(int(found[1])):
            out.append(Gpu(f"GPU-fake-{len(out)}", found[2].strip(), parse_size(found[3])))
    return out


def choose(free: Iterable[Gpu], count: int, kind: str | None) -> list[Gpu] | None:
    """GPUs for an allocation, all of one kind if one kind has enough; None where there are too few.

    Where any kind will do, the one with the least memory is taken, so that the large ones stay for who asks for them.
    """
    fitting = [gpu for gpu in free if kind in (None, gpu.kind)]
    if len(fitting) < count:
        return None
    by_kind: dict[str, list[Gpu]] = {}
    for gpu in fitting:
        by_kind.setdefault(gpu.kind, []).append(gpu)
    enough = [group for group in by_kind.values() if len(group) >= count]
    best = min(enough, key=lambda group: (group[0].memory, group[0].kind)) if enough else fitting
    return best[:count]


_nvml: Any = None


def _load() -> Any:
    # Kept open: each start of NVML may wake the driver, which takes seconds where no persistence daemon runs.
    global _nvml
    if _nvml is None:
        try:
            nvml: Any = import_module("pynvml")
            nvml.nvmlInit()
            _nvml = nvml
        except Exception:
            _nvml = False
    return _nvml or None


def _by_nvml() -> Iterator[Gpu]:
    nvml = _load()
    if nvml is None:
        return
    with contextlib.suppress(nvml.NVMLError):
        for index in range(nvml.nvmlDeviceGetCount()):
            # One broken GPU must not hide the others.
            with contextlib.suppress(nvml.NVMLError):
                yield from _device(nvml, nvml.nvmlDeviceGetHandleByIndex(index))


def _device(nvml: Any, device: Any) -> list[Gpu]:
    slices: list[Any] = []
    with contextlib.suppress(nvml.NVMLError):
        if nvml.nvmlDeviceGetMigMode(device)[0] == nvml.NVML_DEVICE_MIG_ENABLE:
            for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(device)):
                with contextlib.suppress(nvml.NVMLError):
                    slices.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index))
            if not slices:
                return []
    return [_facts(nvml, handle) for handle in slices or [device]]


def _facts(nvml: Any, handle: Any) -> Gpu:
    memory = 0
    # Machines whose GPU shares the main memory do not tell the GPU's.
    with contextlib.suppress(nvml.NVMLError):
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    busy = False
    with contextlib.suppress(nvml.NVMLError):
        busy = bool(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    return Gpu(_text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle)), memory, busy)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
