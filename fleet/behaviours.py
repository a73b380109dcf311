"""Reading the classes of guests: one TOML file a class, built in."""

import functools
import tomllib
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import Field

from fleet.sections import MIB_PAGES, Duration, Ratio, Section
from guestsim.spec import Behaviour
from hostsim.core.units import NS_PER_MIN

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class BehaviourSection(Section):
    """A class of guests; shares are of what a VM grows to beyond its boot footprint."""

    heap_ratio: Ratio
    heap_advice: Literal["none", "huge", "nohuge"] = "none"
    growth_ratio: Rate
    free_ratio: Rate
    small_ratio: Ratio
    jobs_per_hour: Rate
    job_ratio: Ratio
    job_life: Duration
    cache_reads_per_hour: Rate
    cache_drops_per_hour: Rate
    restart: Duration | None = None
    period: Duration = 5 * NS_PER_MIN
    workload: str
    load: Ratio = 1.0
    hot_ratio: Ratio
    dirty_mib_per_s: Rate
    zero_ratio: Ratio = 0.0
    alike_ratio: Ratio = 0.0
    image_ratio: Ratio = 0.0


@functools.cache
def behaviour_names() -> tuple[str, ...]:
    """Return the classes of guests that there are."""
    folder = files("scenarios").joinpath("guests")
    return tuple(
        sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name[-5:] == ".toml")
    )


@functools.cache
def behaviour(name: str, weight: float) -> Behaviour:
    """Return a class of guests by its name."""
    text = files("scenarios").joinpath("guests", f"{name}.toml").read_text(encoding="utf-8")
    section = BehaviourSection.model_validate(tomllib.loads(text))
    return Behaviour(
        name=name,
        weight=weight,
        heap_ratio=section.heap_ratio,
        heap_advice=section.heap_advice,
        growth_ratio=section.growth_ratio,
        free_ratio=section.free_ratio,
        small_ratio=section.small_ratio,
        jobs_per_hour=section.jobs_per_hour,
        job_ratio=section.job_ratio,
        job_life_ns=section.job_life,
        cache_reads_per_hour=section.cache_reads_per_hour,
        cache_drops_per_hour=section.cache_drops_per_hour,
        restart_ns=section.restart or 0,
        period_ns=section.period,
        workload=section.workload,
        load=section.load,
        hot_ratio=section.hot_ratio,
        dirty_pages_per_s=section.dirty_mib_per_s * MIB_PAGES,
        zero_ratio=section.zero_ratio,
        alike_ratio=section.alike_ratio,
        image_ratio=section.image_ratio,
    )
