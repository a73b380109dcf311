"""Reading CPU descriptions: one TOML file a CPU, built in or the user's own."""

import difflib
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fleet.loading import path_text
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import parse_bytes
from hostsim.mmu.cpus import (
    CacheSpec,
    Cpu,
    LatencySpec,
    TlbSpec,
    WalkCacheSpec,
    check_tlb,
    new_mmu,
)

Size = Literal["4K", "2M", "1G"]
Positive = Annotated[int, Field(gt=0)]
Cycles = Annotated[float, Field(ge=0)]


def _bytes(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text such as '32KiB'")
    return parse_bytes(value)


Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]


class Section(BaseModel):
    """A table of a description: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InstructionTlbSection(Section):
    """An instruction TLB, listed only."""

    name: str
    sizes: tuple[Size, ...]
    entries: Positive
    ways: Positive
    source: str


class TlbSection(InstructionTlbSection):
    """A data or unified TLB."""

    level: Literal[1, 2]
    group_ways: tuple[Positive, ...] = ()
    holds_tables: bool = False


class StoreSection(Section):
    """Entries and ways."""

    entries: Positive
    ways: Positive


class WalkCachesSection(Section):
    """Paging-structure caches."""

    pde: StoreSection | None = None
    pdpte: StoreSection | None = None
    pml4e: StoreSection | None = None
    pml5e: StoreSection | None = None
    source: str


class NestedTlbSection(StoreSection):
    """The nested TLB."""

    source: str


class WalkersSection(Section):
    """Page walks at a time."""

    count: Positive
    source: str


class LatencySection(Section):
    """Load latencies."""

    l1_cycles: Cycles
    l2_cycles: Cycles
    llc_cycles: Cycles
    dram_cycles: Cycles
    l2_tlb_cycles: Cycles
    walk_cycles: Cycles
    source: str


class RemoteSection(Section):
    """Memory of another NUMA node."""

    ratio: Annotated[float, Field(ge=1)]  # latency of remote memory over that of local
    source: str


class CacheSection(Section):
    """Data caches."""

    l1: Bytes
    l2: Bytes
    llc: Bytes
    fill_lines: Positive
    source: str


class CpuFile(Section):
    """A CPU description."""

    title: str
    levels: tuple[Literal[4, 5], ...]
    sizes: tuple[Size, ...]
    tlb: tuple[TlbSection, ...]
    instruction_tlb: tuple[InstructionTlbSection, ...] = ()
    walk_caches: WalkCachesSection
    nested_tlb: NestedTlbSection | None = None
    walkers: WalkersSection
    latency: LatencySection
    remote: RemoteSection
    cache: CacheSection


FOLDER: Final = "cpus"


def builtin_names(folder: str = FOLDER) -> list[str]:
    """Return the names of the descriptions in the package."""
    found = files("scenarios").joinpath(folder)
    return sorted(e.name[:-5] for e in found.iterdir() if e.name.endswith(".toml"))


def read_description(name: str, folder: str, what: str) -> tuple[str, dict[str, Any]]:
    """Return name and parsed text of a built-in description, or of a TOML file.

    Raises
    ------
    ScenarioError
        There is none of that name, or the file is not TOML.
    """
    known = builtin_names(folder)
    try:
        if name in known:
            text = files("scenarios").joinpath(folder, f"{name}.toml").read_text(encoding="utf-8")
            return name, tomllib.loads(text)
        if name.endswith(".toml"):
            return Path(name).stem, tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ScenarioError([Problem(name, f"cannot be read: {reason}")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError([Problem(name, f"is not TOML: {error}")]) from None
    nearest = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = "nearest: " + ", ".join(nearest) if nearest else "known: " + ", ".join(known)
    raise ScenarioError([Problem(name, f"is no {what}", hint)])


def validated(model: type[BaseModel], name: str, raw: dict[str, Any]) -> Any:
    """Validate a parsed description.

    Raises
    ------
    ScenarioError
        With every problem found.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ScenarioError(
            [
                Problem(f"{name}: {path_text(found['loc'])}", str(found["msg"]))
                for found in error.errors(include_url=False)
            ]
        ) from None


def load_cpu(name: str) -> Cpu:
    """Return a CPU by the name of its description, or from a TOML file.

    Raises
    ------
    ScenarioError
        There is none, or it is wrong; with every problem found.
    """
    stem, raw = read_description(name, FOLDER, "CPU")
    file: CpuFile = validated(CpuFile, name, raw)
    caches = [
        (level, store)
        for level, store in enumerate(
            (
                file.walk_caches.pde,
                file.walk_caches.pdpte,
                file.walk_caches.pml4e,
                file.walk_caches.pml5e,
            ),
            2,
        )
        if store is not None
    ]
    nested = file.nested_tlb
    cpu = Cpu(
        name=stem,
        title=file.title,
        levels=file.levels,
        sizes=file.sizes,
        tlbs=tuple(_tlb(section, section.level) for section in file.tlb),
        instruction_tlbs=tuple(_tlb(section, 1) for section in file.instruction_tlb),
        walk_caches=WalkCacheSpec(
            {level: store.entries for level, store in caches},
            {level: store.ways for level, store in caches},
            nested.entries if nested else 0,
            nested.ways if nested else 0,
        ),
        walkers=file.walkers.count,
        latency=_latency(file),
        cache=CacheSpec(file.cache.l1, file.cache.l2, file.cache.llc, file.cache.fill_lines),
    )
    problems = [
        Problem(f"{name}: tlb[{i}]", text)
        for i, tlb in enumerate(cpu.tlbs)
        for text in check_tlb(tlb)
    ]
    if not problems:
        try:
            new_mmu(cpu)
        except ValueError as error:
            problems.append(Problem(name, str(error)))
    if problems:
        raise ScenarioError(problems)
    return cpu


def _latency(file: CpuFile) -> LatencySpec:
    values = file.latency.model_dump(exclude={"source"})
    return LatencySpec(**values, remote_cycles=file.latency.dram_cycles * file.remote.ratio)


def _tlb(section: InstructionTlbSection, level: int) -> TlbSpec:
    return TlbSpec(
        section.name,
        level,
        section.sizes,
        section.entries,
        section.ways,
        getattr(section, "group_ways", ()),
        getattr(section, "holds_tables", False),
        section.source,
    )
