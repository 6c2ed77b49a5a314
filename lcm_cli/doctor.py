"""Examination of an installation: versions, devices, caches, checkpoints, and problems.

torch and sonar-space are imported in separate processes, because a broken one may crash or hang.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from lcm_cli import settings
from lcm_cli.errors import LcmError, NotFoundError
from lcm_cli.paths import cache_dir
from lcm_cli.version import __version__

NEEDED = (
    *("torch", "numpy", "safetensors", "sentencepiece", "huggingface-hub", "pyarrow"),
    *("pydantic", "typer", "rich"),
)
OPTIONAL = ("sonar-space", "fairseq2")
# Processor instructions that matter for speed, and torch's functions (undocumented) that find them.
INSTRUCTIONS = {
    "AVX2": "_is_avx2_supported",
    "AVX512": "_is_avx512_supported",
    "AVX512-VNNI": "_is_vnni_supported",
    "AVX512-BF16": "_is_avx512_bf16_supported",
    "AMX": "_is_amx_tile_supported",
}
TIMEOUT = 120.0  # seconds for one import, which takes most of a minute from a cold disk

Findings = dict[str, Any]


def examine() -> Findings:
    """Return a report on the installation; `problems` lists what keeps lcm from working."""
    with ThreadPoolExecutor() as pool:
        devices = pool.submit(_in_process, "devices")
        sonar = pool.submit(_in_process, "try_sonar")
    versions = {name: _version(name) for name in NEEDED + OPTIONAL}
    caches = [_describe_cache(what, path) for what, path in _cache_places().items()]
    checkpoints, broken = _list_checkpoints()
    problems = [f"{name} is not installed" for name in NEEDED if versions[name] is None]
    if "error" in devices.result():
        problems.append(f"torch cannot be imported: {devices.result()['error']}")
    problems += [f"cannot write to {cache['path']}" for cache in caches if not cache["writable"]]
    config = settings.find_settings()
    return {
        "lcm": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "memory": _memory(),
        "devices": devices.result().get("devices", []),
        "caches": caches,
        "offline": _offline(),
        "config": str(config) if config else None,
        "checkpoints": checkpoints,
        "sonar_space": {"works": "error" not in sonar.result(), **sonar.result()},
        "problems": problems + broken,
    }


def devices() -> Findings:
    """Return the devices that torch can use; memory is in bytes."""
    import torch

    found: list[Findings] = [
        {
            "device": "cpu",
            "threads": torch.get_num_threads(),
            "instructions": _instructions(torch.cpu),
            "precision": "float32",  # of --precision auto
        }
    ]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        memory = {"memory": facts.total_memory, "free": torch.cuda.mem_get_info(number)[0]}
        kernels = _missing_for_kernels(facts.major)
        found.append(
            {"device": f"cuda:{number}", "name": facts.name, **memory, "kernels_need": kernels}
        )
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    return {"devices": found}


def _missing_for_kernels(major: int) -> str | None:
    """Return what the Triton kernels of attention and decoding need that is not here."""
    from lcm_cli.space.row_attention import missing

    # The GPU comes first: with another one, nothing else may be missing.
    return "a GPU of the Ampere generation or newer" if major < 8 else missing()


def _instructions(cpu: ModuleType) -> list[str]:
    absent = bool  # a function that returns False
    return [name for name, found in INSTRUCTIONS.items() if getattr(cpu, found, absent)()]


def try_sonar() -> Findings:
    """Import sonar-space; return {"error": reason} if that fails."""
    if _version("sonar-space") is None:
        return {"error": "not installed"}
    from lcm_cli.space.sonar_package import import_sonar

    try:
        import_sonar()
    except LcmError as error:
        return {"error": error.message}
    return {}


def _in_process(function: str) -> Mapping[str, Any]:
    """Run a function of this module in a new Python; return {"error": reason} if that fails."""
    code = f"import json; from lcm_cli import doctor; print(json.dumps(doctor.{function}()))"
    here = Path(__file__).resolve().parent.parent  # a checkout need not be installed
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {TIMEOUT:.0f} s"}
    if done.returncode < 0:
        return {"error": f"it crashed with signal {-done.returncode}"}
    if done.returncode:
        return {"error": _last_line(done.stderr)}
    result: Mapping[str, Any] = json.loads(_last_line(done.stdout))
    return result


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> Mapping[str, int | None]:
    """Return the machine's total and available memory in bytes, None if unknown."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total: int | None = page * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        total = None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known = dict(line.split(":") for line in lines)
        available: int | None = int(known["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        available = None
    return {"total": total, "available": available}


def _cache_places() -> Mapping[str, Path]:
    from lcm_cli.hub.snapshot import hub_cache

    return {"lcm": cache_dir(), "hub": hub_cache()}


def _describe_cache(what: str, path: Path) -> Findings:
    """Describe a cache folder, or its nearest existing parent."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    writable = there.is_dir() and os.access(there, os.W_OK)
    free = shutil.disk_usage(there).free
    return {"what": what, "path": str(path), "writable": writable, "free": free}


def _list_checkpoints() -> tuple[Sequence[Findings], list[str]]:
    """Return the checkpoints that have cards, and the problems of those on this machine."""
    from lcm_cli.hub import cards, locate

    found, problems = [], []
    for name, card in cards.cards().items():
        present = False
        try:
            locate.WAYS[card.kind](name)
            present = True
        except NotFoundError as error:
            problems += [f"{name}: {error.message}"] if card.files else []
        except LcmError as error:
            problems.append(f"{name}: {error.message}")
        if card.family and not present:
            continue
        found.append({"name": name, "kind": card.kind, "licence": card.licence, "present": present})
    return found, problems


def _offline() -> bool:
    from lcm_cli.hub.http import offline

    return offline()
