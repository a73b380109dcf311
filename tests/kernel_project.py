"""A tiny project with this project's compiler and kernels of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make_project(folder, modules):
    """Write a package ``hostsim`` of the compiler and some modules' texts."""
    core = folder / "hostsim" / "core"
    core.mkdir(parents=True)
    for package in (core.parent, core):
        (package / "__init__.py").touch()
    for name in ("ahead", "bitcode", "byref", "front_end", "jit", "jit_options"):
        shutil.copy(ROOT / f"hostsim/core/{name}.py", core)
    for name, text in modules.items():
        (core.parent / f"{name}.py").write_text(text)
    return folder


def start_python(project, code):
    """Start code in a new process with the project's kernel cache."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(project), "FLEET_CACHE_DIR": str(project / "cache")},
        cwd=project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(project, code, timeout_s=300):
    """Run code in a new process with the project's kernel cache; return the lines it prints."""
    with start_python(project, code) as process:
        try:
            printed, problems = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
    assert process.returncode == 0, problems
    return printed.splitlines()
