"""lcm doctor: check what is installed and what works."""

from collections.abc import Iterator
from typing import Any

from lcm_cli import console
from lcm_cli.errors import LcmError

from ._options import Json

EPILOG = """\
lcm doctor
lcm doctor --json > machine.json
"""


def main(json: Json = False) -> None:
    """Check the installation, devices, caches and checkpoints."""
    from lcm_cli.doctor import examine

    report = examine()
    if json:
        console.emit(report)
    else:
        console.table("", ("what", "found"), _rows(report))
    if report["problems"]:
        hint = "reinstall lcm from its source folder: pip install --force-reinstall ."
        raise LcmError("; ".join(report["problems"]), hint)


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "lcm", report["lcm"]
    yield "python", f"{report['python']}, {report['platform']}"
    for name, version in report["packages"].items():
        state = f", {_sonar(report['sonar_space'])}" if name == "sonar-space" and version else ""
        yield name, (version or "not installed") + state
    memory = report["memory"]
    yield "memory", f"{_gib(memory['total'])}, {_gib(memory['available'])} available"
    for device in report["devices"]:
        yield "device", _device(device)
    for cache in report["caches"]:
        state = "" if cache["writable"] else ", not writable"
        yield "cache", f"{cache['path']}, {_gib(cache['free'])} free{state}"
    yield "network", "off" if report["offline"] else "allowed"
    yield "config file", report["config"] or "none"
    for checkpoint in report["checkpoints"]:
        name, licence = checkpoint["name"], checkpoint["licence"]
        here = "here" if checkpoint["present"] else f"not here; to download it: lcm pull {name}"
        yield checkpoint["kind"], f"{name} ({licence}): {here}"


def _sonar(state: dict[str, Any]) -> str:
    works = "can be imported"
    return works if state["works"] else f"not usable, but optional: {state['error']}"


def _device(device: dict[str, Any]) -> str:
    if "threads" in device:
        facts = [f"{device['threads']} threads", *device["instructions"]]
        return f"cpu, {', '.join(facts)}; --precision auto is {device['precision']}"
    if "memory" not in device:
        return f"{device['device']}, {device['name']}"
    memory = f"{_gib(device['memory'])}, {_gib(device['free'])} free"
    need = device["kernels_need"]
    kernels = f"no Triton kernels: they need {need}" if need else "Triton kernels can be built"
    return f"{device['device']}, {device['name']}, {memory}; {kernels}"


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.1f} GiB"
