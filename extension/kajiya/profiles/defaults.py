"""The profiles of a machine that nobody has configured."""

from typing import Any

from kajiya.profiles.model import ProfileSet
from kajiya.types import Capacity, GiB, MiB


def defaults(capacity: Capacity) -> ProfileSet:
    """The default profiles, made to fit this machine: small, medium, large, and one for each kind of GPU."""
    cpus, memory = max(1, int(capacity.cpu.total)), int(capacity.memory.total)
    half = max(1, cpus // 2)

    def size(n: int) -> str:
        return f"{max(256 * MiB, n // MiB * MiB) // MiB}M"

    raw: list[dict[str, Any]] = [
        {
            "slug": "small",
            "name": "Small",
            "description": "For looking around, writing, and light models.",
            "resources": {"cpu": 1, "memory": size(min(2 * GiB, memory // 2))},
        }
    ]
    if memory >= 6 * GiB:
        raw.append(
            {
                "slug": "medium",
                "name": "Medium",
                "description": "Half of this machine, for training on tables.",
                "resources": {"cpu": half, "memory": size(min(16 * GiB, memory // 3))},
            }
        )
    if cpus >= 2 and memory >= 6 * GiB:
        raw.append(
            {
                "slug": "large",
                "name": "Large",
                "description": "Most of this machine. Others wait while you use it.",
                "resources": {"cpu": cpus, "memory": size(memory * 2 // 3)},
            }
        )
    for i, gpu in enumerate(capacity.gpus):
        counts = [n for n in (1, 2, 4, 8) if n <= gpu.total]
        raw.append(
            {
                "slug": "gpu" if len(capacity.gpus) == 1 else f"gpu-{i + 1}",
                "name": f"GPU: {gpu.kind}"[:100],
                "description": "Whole GPUs, yours alone while you have them.",
                "resources": {
                    "cpu": max(1, cpus // max(1, gpu.total)),
                    "memory": size(memory * 2 // 3 // max(1, gpu.total)),
                    "gpus": 1,
                    "gpu_kind": gpu.kind,
                },
                "options": [
                    {
                        "slug": "gpus",
                        "name": "GPUs",
                        "choices": [
                            {"slug": str(n), "name": str(n), "default": n == 1, "resources": {"gpus": n}}
                            for n in counts
                        ],
                    }
                ]
                if len(counts) > 1
                else [],
            }
        )
    return ProfileSet.model_validate({"profiles": raw})
