"""Types of the fields of scenario files: sizes, durations, ratios, and the base of all tables."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from hostsim.core.units import (
    HPAGE_PMD_BYTES,
    HPAGE_PMD_NR,
    NS_PER_DAY,
    NS_PER_HOUR,
    NS_PER_MIN,
    NS_PER_MS,
    NS_PER_S,
    NS_PER_US,
    PAGE_SHIFT,
    parse_duration_ns,
    parse_pages,
)

MIB_PAGES = (1 << 20) >> PAGE_SHIFT
GIB_PAGES = (1 << 30) >> PAGE_SHIFT
_PAGE_UNITS = (("TiB", GIB_PAGES << 10), ("GiB", GIB_PAGES), ("MiB", MIB_PAGES))
_TIME_UNITS = (
    ("d", NS_PER_DAY),
    ("h", NS_PER_HOUR),
    ("min", NS_PER_MIN),
    ("s", NS_PER_S),
    ("ms", NS_PER_MS),
    ("us", NS_PER_US),
)


def _exact(value: int, units: tuple[tuple[str, int], ...], smallest: str) -> str:
    for name, scale in units:
        if value and value % scale == 0:
            return f"{value // scale}{name}"
    return f"{value}{smallest}"


def pages_text(pages: int) -> str:
    """Print base pages exactly, in the largest unit that leaves a whole number."""
    text = _exact(pages, _PAGE_UNITS, "")
    return text if text[-1] == "B" else f"{pages << (PAGE_SHIFT - 10)}KiB"


def duration_text(duration_ns: int) -> str:
    """Print nanoseconds exactly, in the largest unit that leaves a whole number."""
    return _exact(duration_ns, _TIME_UNITS, "ns")


def _text(value: object, example: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{value!r} has no unit; write text such as "{example}"')
    return value


def _pages(value: object) -> int:
    text = _text(value, "64GiB")
    pages = parse_pages(text)
    if pages < 0:
        raise ValueError(f"{text} is negative")
    return pages


def _hugepages(value: object) -> int:
    pages = _pages(value)
    if pages % HPAGE_PMD_NR:
        raise ValueError(f"{value} is not a multiple of {HPAGE_PMD_BYTES >> 20}MiB")
    if pages == 0:
        raise ValueError(f"{value} is not more than 0")
    return pages


def _duration(value: object) -> int:
    text = _text(value, "5min")
    duration_ns = parse_duration_ns(text)
    if duration_ns <= 0:
        raise ValueError(f"{text} is not more than 0")
    return duration_ns


_SIZE_SCHEMA = WithJsonSchema({"type": "string", "examples": ["64GiB", "512MiB"]})
_TIME_SCHEMA = WithJsonSchema({"type": "string", "examples": ["5min", "1.5h"]})
Pages = Annotated[int, BeforeValidator(_pages), PlainSerializer(pages_text), _SIZE_SCHEMA]
HugePages = Annotated[int, BeforeValidator(_hugepages), PlainSerializer(pages_text), _SIZE_SCHEMA]
Duration = Annotated[int, BeforeValidator(_duration), PlainSerializer(duration_text), _TIME_SCHEMA]
Ratio = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """One table of a scenario file: frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )
