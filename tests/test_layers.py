"""Imports go one way, Ray stays in its place, and only fleet touches files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {  # package: what it may import of ours; the longest matching prefix counts
    "hostsim.core": ("hostsim.core",),
    "hostsim.mm": ("hostsim.core", "hostsim.mm"),
    "hostsim.mmu": ("hostsim.core", "hostsim.mmu"),
    "hostsim": ("hostsim",),
    "guestsim": ("guestsim", "hostsim.core", "hostsim.mm"),
    "fleet": ("fleet", "guestsim", "hostsim", "scenarios"),
}
OURS = ("hostsim", "guestsim", "fleet", "scenarios")
FILE_CALLS = {
    "open",
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "mkdir",
    "unlink",
    "rename",
    "replace_file",
    "fromfile",
    "tofile",
    "load_npz",
    "savez",
}
READS_OWN_SOURCE = "hostsim/core/jit.py"  # digests the kernels' sources, to key their cache


def modules():
    for package in ("hostsim", "guestsim", "fleet"):
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            yield pytest.param(name, relative.as_posix(), ast.parse(path.read_text()), id=name)


MODULES = list(modules())


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def is_one_way(module, imported):
    """Say whether a module may import a name of ours."""
    layer = max((p for p in LAYERS if within(module, [p])), key=len)
    return within(imported, LAYERS[layer])


@pytest.mark.parametrize(("module", "path", "tree"), MODULES)
def test_imports_go_one_way(module, path, tree):
    ours = [name for name in imports(tree) if within(name, OURS)]
    assert [name for name in ours if not is_one_way(module, name)] == []


@pytest.mark.parametrize(("module", "path", "tree"), MODULES)
def test_only_actors_cluster_metrics_and_cli_import_ray(module, path, tree):
    allowed = module in ("fleet.actors", "fleet.cluster", "fleet.metrics") or module.startswith(
        "fleet.cli"
    )
    assert allowed or not any(within(name, ["ray"]) for name in imports(tree))


@pytest.mark.parametrize(("module", "path", "tree"), MODULES)
def test_only_fleet_touches_files(module, path, tree):
    if module.startswith("fleet") or path == READS_OWN_SOURCE:
        return
    called = {
        getattr(node.func, "attr", getattr(node.func, "id", ""))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert called & FILE_CALLS == set()


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("hostsim.mm.buddy", "hostsim.core.units", True),
        ("hostsim.mm.buddy", "hostsim.host", False),
        ("hostsim.core.units", "hostsim.mm", False),
        ("hostsim.host", "guestsim.guest", False),
        ("guestsim.guest", "hostsim.mm.buddy", True),
        ("guestsim.guest", "hostsim.mmu.tlb", False),
        ("guestsim.guest", "hostsim.ept", False),
        ("fleet.node", "hostsim.host", True),
    ],
)
def test_the_rule_itself(module, imported, allowed):
    assert is_one_way(module, imported) == allowed
