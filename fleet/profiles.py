"""Reading workload profiles: one TOML file a program, built in or the user's own."""

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from fleet.hardware import Bytes, Positive, Section, read_description, validated
from guestsim.workload import ANY_STEP, Component, Law, Workload, compile_workload
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import PAGE_BYTES, PAGE_SHIFT, parse_bytes

FOLDER: Final = "workloads"
Share = Annotated[float, Field(ge=0, le=1)]
Above = Annotated[float, Field(gt=0)]


def _extent(value: object) -> float | int:
    """Return bytes (an int) for text, or a share of the footprint."""
    if isinstance(value, str):
        return parse_bytes(value)
    if isinstance(value, (int, float)) and 0 < value <= 1:
        return float(value)
    raise ValueError(f"{value!r} is neither a share of the footprint nor a size such as '2GiB'")


Extent = Annotated[float | int, BeforeValidator(_extent)]


class ComponentSection(Section):
    """One kind of access."""

    law: Literal["uniform", "zipf", "tree", "sequential", "phase"]
    weight: Above = 1.0
    start: Share = 0.0  # of the footprint
    size: Extent = 1.0
    step: Annotated[int, Field(ge=-1)] = ANY_STEP
    exponent: Above = 0.99
    objects_per_page: Positive = 1
    fanout: Annotated[int, Field(gt=1)] = 64
    depth: Positive = 1
    stride: Bytes = 64
    window: Bytes = PAGE_BYTES
    window_accesses: Positive = 1


class WorkloadFile(Section):
    """A workload profile."""

    title: str
    source: str
    footprint: Bytes
    steps: Positive = 1
    instructions: Above
    cycles: Above
    overlap: Annotated[float, Field(ge=1)]
    thp_ratio: Share = 1.0
    madvise: bool = False
    component: tuple[ComponentSection, ...]


def _components(section: ComponentSection, pages: int) -> list[Component]:
    """Return a profile's component, a tree as one component a level."""
    first = min(int(section.start * pages), pages - 1)
    if isinstance(section.size, int):
        nr = section.size >> PAGE_SHIFT
    else:
        nr = int(section.size * pages)
    nr = max(1, min(nr, pages - first))
    if section.law != "tree":
        return [
            Component(
                Law[section.law.upper()],
                section.weight,
                first,
                nr,
                section.step,
                section.objects_per_page,
                section.exponent if section.law == "zipf" else 0.0,
                section.stride,
                max(1, section.window >> PAGE_SHIFT),
                section.window_accesses,
            )
        ]
    levels = [max(1, nr // section.fanout**above) for above in range(section.depth)][::-1]
    levels[-1] = max(1, nr - sum(levels[:-1]))  # the leaves are what is left
    found = []
    for i, level_pages in enumerate(levels):
        at = min(first + sum(levels[:i]), first + nr - 1)
        level_pages = min(level_pages, first + nr - at)
        found.append(
            Component(Law.CHILD, section.weight, at, level_pages, max(section.step, 0) + i)
        )
    return found


def build_workload(name: str, file: WorkloadFile, footprint_bytes: int | None) -> Workload:
    """Return the workload of a profile.

    Raises
    ------
    ScenarioError
        With every problem found.
    """
    pages = (footprint_bytes if footprint_bytes is not None else file.footprint) >> PAGE_SHIFT
    if pages < 1:
        raise ScenarioError([Problem(f"{name}: footprint", "is less than a page")])
    workload = Workload(
        name=name,
        pages=pages,
        steps=file.steps,
        components=tuple(c for s in file.component for c in _components(s, pages)),
        instructions=file.instructions,
        cycles=file.cycles,
        overlap=file.overlap,
        huge_ratio=file.thp_ratio,
        madvised=file.madvise,
    )
    try:
        compile_workload(workload)
    except ValueError as error:
        raise ScenarioError([Problem(f"{name}: component", str(error))]) from None
    return workload


def load_workload(name: str, footprint_bytes: int | None = None) -> Workload:
    """Return a workload by the name of its profile, or from a TOML file.

    Parameters
    ----------
    footprint_bytes
        In place of the profile's footprint.

    Raises
    ------
    ScenarioError
        There is none, or it is wrong; with every problem found.
    """
    return build_workload(*load_profile(name), footprint_bytes)


def load_profile(name: str) -> tuple[str, WorkloadFile]:
    """Return a profile and its name, by that name or from a TOML file.

    Raises
    ------
    ScenarioError
        There is none, or it is wrong.
    """
    stem, raw = read_description(name, FOLDER, "workload")
    file: WorkloadFile = validated(WorkloadFile, stem, raw)
    return stem, file
