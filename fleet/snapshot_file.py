"""The file of a host's snapshot: what it holds, reading and writing it.

JSON with a versioned format, a checksum and no secrets: no command lines, and the host's name
only if asked for.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleet.snapshot_text import ZoneText, parse_buddyinfo, parse_pagetypeinfo
from hostsim.core.errors import Problem, ResultsError, ScenarioError

FORMAT: Final = "hugefleet snapshot"
VERSION: Final = 1
_NOT_ONE: Final = "is no snapshot of a host"
_HINT: Final = "fleet snapshot capture -o host.json writes one"

Natural = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    """A part of the file; keys of later writers of the same version are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Zone(_Part):
    """A zone as /proc/zoneinfo has it, in pages."""

    node: Natural
    name: str
    free_pages: Natural
    min_pages: Natural
    low_pages: Natural
    high_pages: Natural
    boost_pages: Natural
    spanned_pages: Natural
    present_pages: Natural
    managed_pages: Natural
    pcp_pages: Natural

    @classmethod
    def of(cls, zone: ZoneText) -> "Zone":
        """Return the part of the file for a zone."""
        return cls(**zone._asdict())


class NumaNode(_Part):
    """A NUMA node."""

    node: Natural
    cpus: Natural
    memory_kb: Natural


class VmProcess(_Part):
    """A QEMU process; what it was given is known only where its command line could be read."""

    comm: str
    rss_kb: Natural
    anon_huge_kb: Natural | None = None  # None: smaps_rollup could not be read
    swap_kb: Natural | None = None
    memory_mib: Natural | None = None
    vcpus: Natural | None = None


class Unread(_Part):
    """Something that could not be read."""

    what: str
    why: str
    cost: str  # what cannot be said without it


class HostSnapshot(_Part):
    """All that was read of a host."""

    captured_at: str
    hostname: str | None = None
    kernel_release: str
    cpu_model: str
    nr_cpus: Annotated[int, Field(ge=1)]
    virtualised: bool
    uptime_s: Annotated[float, Field(ge=0)]
    consistent: bool  # buddyinfo, pagetypeinfo and zoneinfo are of one moment
    nodes: tuple[NumaNode, ...] = Field(strict=False)
    zones: tuple[Zone, ...] = Field(strict=False)
    buddyinfo: tuple[str, ...] = Field(strict=False, min_length=1)
    pagetypeinfo: tuple[str, ...] = Field(strict=False)  # none: it could not be read
    vmstat: dict[str, int]
    meminfo_kb: dict[str, int]
    thp: dict[str, str]  # files below transparent_hugepage
    khugepaged: dict[str, int]
    hugetlb: dict[str, int]  # pages by size and file: "1048576kB/nr_hugepages"
    ksm: dict[str, int]
    vm: dict[str, int]  # files of /proc/sys/vm
    unusable_index: tuple[str, ...] = Field(default=(), strict=False)
    extfrag_index: tuple[str, ...] = Field(default=(), strict=False)
    kvm: dict[str, int] = {}
    processes: tuple[VmProcess, ...] = Field(default=(), strict=False)
    unread: tuple[Unread, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _readable(self) -> "HostSnapshot":
        parse_buddyinfo(self.buddyinfo)
        if self.pagetypeinfo:
            parse_pagetypeinfo(self.pagetypeinfo)
        return self


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def to_json(snapshot: HostSnapshot) -> str:
    """Return the text of a snapshot's file."""
    content = {"format": FORMAT, "version": VERSION, **snapshot.model_dump(mode="json")}
    return json.dumps({**content, "sha256": _checksum(content)}, indent=1) + "\n"


def write_snapshot(snapshot: HostSnapshot, path: str | Path) -> None:
    """Write a snapshot.

    Raises
    ------
    ResultsError
        The file cannot be written.
    """
    try:
        Path(path).write_text(to_json(snapshot), encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None


def read_json_file(path: str | Path, format_name: str, version: int, what: str, hint: str) -> Any:
    """Return the content of a JSON file of a format of ours.

    Raises
    ------
    ScenarioError
        It cannot be read, is no JSON, is of another format, of a newer version or damaged.
    """
    place = str(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ScenarioError([Problem(place, f"cannot be read: {reason}", hint)]) from None
    except json.JSONDecodeError as error:
        message = f"{what}, or is damaged: not JSON, line {error.lineno}: {error.msg}"
        raise ScenarioError([Problem(place, message, hint)]) from None
    if not isinstance(content, dict) or content.get("format") != format_name:
        raise ScenarioError([Problem(place, what, hint)])
    found = content.get("version")
    if not isinstance(found, int) or found > version or found < 1:
        message = f"has format version {found!r}; this program reads versions 1 to {version}"
        raise ScenarioError([Problem(place, message, "update hugefleet")])
    checksum = content.pop("sha256", None)
    if checksum is not None and checksum != _checksum(content):
        message = "is damaged or was edited: its checksum is wrong"
        edited = 'take the line "sha256" out if you changed it on purpose'
        raise ScenarioError([Problem(place, message, edited)])
    return content


def read_snapshot(path: str | Path) -> HostSnapshot:
    """Read a snapshot's file.

    Raises
    ------
    ScenarioError
        It is none, of a newer format or damaged; every wrong part is named.
    """
    content = read_json_file(path, FORMAT, VERSION, _NOT_ONE, _HINT)
    try:
        return HostSnapshot.model_validate(content)
    except ValidationError as error:
        problems = []
        for found in error.errors(include_url=False):
            steps = ".".join(map(str, found["loc"]))
            message = str(found["msg"]).removeprefix("Value error, ")
            problems.append(Problem(f"{path}: {steps}" if steps else str(path), message, _HINT))
        raise ScenarioError(problems) from None
