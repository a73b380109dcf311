"""What a machine computes with: the versions and sources on which the bytes of a run depend.

`describe` also runs on machines where this project is missing or of another version: it is sent
there as code, so this module imports nothing but the standard library.
"""

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

# What the workers import: llvmlite makes the machine code, pyarrow packs the states.
PACKAGES = ("hugefleet", "numba", "llvmlite", "numpy", "pyarrow", "ray")
SOURCES = ("hostsim", "guestsim", "fleet", "scenarios")
SUFFIXES = (".py", ".toml", ".json")
NOT_COMPUTED_WITH = "groundtruth"  # recordings of real kernels: large, and read by tests alone


class Machine(NamedTuple):
    """One machine, as far as results depend on it."""

    must_agree: dict[str, str]  # python, packages, C library, architecture, sources
    cpu: str  # model; libraries choose instructions by it


def describe() -> Machine:
    """Describe the machine this runs on, as its Python would import things."""
    must_agree = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            must_agree[package] = version(package)
        except PackageNotFoundError:
            must_agree[package] = "not installed"
    must_agree["C library"] = " ".join(platform.libc_ver()).strip()
    must_agree["architecture"] = platform.machine()
    must_agree["hugefleet sources"] = digest_sources()
    return Machine(must_agree, _cpu_model())


def digest_sources() -> str:
    """Digest names and bytes of the source files, wherever they are installed."""
    digest = hashlib.sha256()
    for package in SOURCES:
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            for folder, folders, files in os.walk(root):
                folders[:] = sorted(
                    f for f in folders if f not in ("__pycache__", NOT_COMPUTED_WITH)
                )
                for name in sorted(files):
                    if name.endswith(SUFFIXES):
                        path = Path(folder, name)
                        digest.update(f"{package}/{path.relative_to(root).as_posix()}\n".encode())
                        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown"
    )


def differences(here: Machine, there: Machine) -> str:
    """Name what differs there from here, or nothing."""
    return ", ".join(
        f"{name} {there.must_agree.get(name, 'unknown')}, not {wanted}"
        for name, wanted in here.must_agree.items()
        if there.must_agree.get(name) != wanted
    )
