"""The built-in churn: arrivals, flavours and lifetimes as in Azure's public trace of 2017.

Statistics: AzurePublicDataset V1, CC-BY 4.0 (Cortez et al., SOSP 2017), in the form of
huaweicloud/trace_generation_rnn (Bergsma et al., SOSP 2021); tables in
``fleet.azure_v1``.

Batches arrive as a Poisson process whose rate follows the hour of the day, a factor per day and
noise per five minutes; a batch has a size, one flavour or two, and shares one lifetime quantile.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.azure_v1 import AzureV1, azure_v1
from fleet.trace import I16, I64, Trace, make_trace
from hostsim.core.rng import Stream, stream
from hostsim.core.units import NS_PER_DAY, NS_PER_HOUR, NS_PER_S

F64 = NDArray[np.float64]

BIN_NS = 300 * NS_PER_S  # resolution of the trace
BINS_PER_HOUR = NS_PER_HOUR // BIN_NS
BINS_PER_DAY = NS_PER_DAY // BIN_NS
BIN_NOISE_SHAPE = 66.0  # gamma noise per bin: brings the variance/mean of batches from 4.8 to 5.9
DAY_NOISE_RATIO = 0.08  # sigma of the log-normal noise per day: the ACF(24 h) falls to 0.83
MONTH_DAYS = 30
DAY_FACTORS = 1  # VM slot of the stream that holds a month's day factors
LARGE_BATCH_VMS = 10  # from here on, batches (58 % of the VMs) arrive with weaker daily rhythm:
LARGE_EXPONENT = 0.4  # 0.8 to 1.2 instead of 0.6 to 1.4, so VMs 0.73 to 1.3
SHARED_RATIO = 0.88  # VMs that share the batch's lifetime; squared, plus 17 % by chance: 81 %
SHARED_WIDTH = 0.005  # how far from the batch's quantile: same or adjacent lifetime bin
# Roberts' R2 sequence: the plastic number's inverse powers spread points evenly over a square
R2_ALPHA = (1 / 1.324717957244746, 1 / 1.324717957244746**2)


def _pick(cdf: F64, u: F64) -> I64:
    """Return the index that each quantile falls on."""
    return np.minimum(np.searchsorted(cdf, u, "right"), cdf.size - 1).astype(np.int64)


def _pick_by(pmf: F64, row: I16 | I64, u: F64) -> tuple[I64, F64]:
    """Return the bin that each quantile falls on in its row's table, and how far into the bin."""
    cdf = np.cumsum(pmf / pmf.sum(axis=1, keepdims=True), axis=1)
    cdf[:, -1] = 1.0
    flat = (cdf + np.arange(len(pmf))[:, None]).ravel()
    at = np.searchsorted(flat, u + row, "right") - row.astype(np.int64) * pmf.shape[1]
    at = np.clip(at, 0, pmf.shape[1] - 1)
    mass = pmf[row, at]
    into = 1 - (cdf[row, at] - u) / np.where(mass > 0, mass, 1)
    return at, np.clip(into, 0.0, 1.0)


def _lifetime_ns(model: AzureV1, flavour: I16, u: F64, tail: F64) -> I64:
    """Return the lifetimes at quantiles `u` of the flavours' tables, linear inside a bin.

    Simplified: the open bin is exponential, and there the VMs of a batch end independently
    (`tail`: standard exponentials).
    """
    at, into = _pick_by(model.lifetime_pmf, flavour, u)
    lower_s, upper_s = model.edge_s[at], model.edge_s[np.minimum(at + 1, model.edge_s.size - 1)]
    is_tail = at == model.edge_s.size - 1
    lifetime_s = lower_s + into * (upper_s - lower_s)
    lifetime_s[is_tail] = model.edge_s[-1] + model.tail_s[flavour[is_tail]] * tail[is_tail]
    return np.rint(lifetime_s * NS_PER_S).astype(np.int64)


class Batches(NamedTuple):
    """One day's batches in order of start."""

    start_ns: I64
    size_vms: I64
    first: I16  # flavour of the first VMs
    second: I16  # flavour of the rest
    nr_first: I64  # VMs of the first flavour
    life_u: F64  # lifetime quantile that the batch shares


def _day_factor(seed: int, day: int) -> float:
    """Return the factor on one day's rate: log-normal, mean 1, spread evenly over a month.

    Thirty days get one factor from each of thirty equally likely ranges, in random order, so
    that months are alike and days are not.
    """
    month, of_month = divmod(day, MONTH_DAYS)
    rng = stream(seed, Stream.TRACE_ARRIVALS, month, DAY_FACTORS)
    u = (rng.permutation(MONTH_DAYS)[of_month] + rng.random(MONTH_DAYS)[of_month]) / MONTH_DAYS
    normal = NormalDist(-(DAY_NOISE_RATIO**2) / 2, DAY_NOISE_RATIO)
    return math.exp(normal.inv_cdf(min(max(u, 1e-9), 1 - 1e-9)))


def _starts(model: AzureV1, seed: int, rng: np.random.Generator, day: int, scale: float) -> I64:
    """Draw the starts of a day's batches, uniform inside their five minutes."""
    bin_factor = rng.gamma(BIN_NOISE_SHAPE, 1 / BIN_NOISE_SHAPE, BINS_PER_DAY)
    rate = model.batches_per_hour / BINS_PER_HOUR * scale * bin_factor * _day_factor(seed, day)
    nr_batches = rng.poisson(rate * np.repeat(model.hour_factor, BINS_PER_HOUR))
    bins = np.repeat(np.arange(BINS_PER_DAY), nr_batches)
    into_ns = np.floor(rng.random(bins.size) * BIN_NS).astype(np.int64)
    return np.sort(day * NS_PER_DAY + bins * BIN_NS + into_ns)


def _sizes(model: AzureV1, rng: np.random.Generator, start_ns: I64) -> I64:
    """Draw the sizes of a day's batches; large ones follow the hour less than small ones.

    The places of large batches are drawn by an exponential race with weights
    ``hour_factor ** (LARGE_EXPONENT - 1)``.
    """
    n = start_ns.size
    size_vms = np.sort(model.size_vms[_pick(model.size_cdf, (np.arange(n) + rng.random(n)) / n)])
    nr_small = int(np.searchsorted(size_vms, LARGE_BATCH_VMS))
    hour = start_ns % NS_PER_DAY // NS_PER_HOUR
    race = rng.standard_exponential(n) * model.hour_factor[hour] ** (1 - LARGE_EXPONENT)
    place = np.argsort(race)
    placed = np.empty(n, np.int64)
    placed[place[: n - nr_small]] = rng.permutation(size_vms[nr_small:])
    placed[place[n - nr_small :]] = rng.permutation(size_vms[:nr_small])
    return placed


def _flavours(
    model: AzureV1, rng: np.random.Generator, size_vms: I64, u: F64
) -> tuple[I16, I16, I64]:
    """Draw first and second flavour of batches and how many VMs have the first.

    Simplified: a mixed batch has two flavours (of the trace's, one in four has more), one
    after the other.
    """
    first = np.zeros(size_vms.size, np.int16)
    second = np.zeros(size_vms.size, np.int16)
    nr_first = size_vms.copy()
    is_mixed_u, round_u = rng.random((2, size_vms.size))
    group = np.searchsorted([c.min_vms for c in model.classes], size_vms, "right") - 1
    for number, size_class in enumerate(model.classes):
        rows = np.flatnonzero(group == number)
        first[rows] = second[rows] = _pick(size_class.single_cdf, u[rows])
        rows = rows[is_mixed_u[rows] < size_class.mixed_ratio]
        pair = _pick(size_class.pair_cdf, u[rows])
        first[rows], second[rows] = size_class.pair[pair].T
        wanted = np.floor(size_vms[rows] * size_class.first_ratio[pair] + round_u[rows])
        nr_first[rows] = np.clip(wanted, 1, size_vms[rows] - 1)
    return first, second, nr_first


def _day_batches(model: AzureV1, seed: int, day: int, scale: float) -> Batches:
    """Draw the batches of one day.

    Simplified: sizes, flavours and lifetimes of a day are spread evenly (strata and a randomly
    shifted R2 sequence over the batches by falling size), each exact in distribution.  With
    batches of a thousand VMs, independent draws would need years to show the trace's shares.
    """
    rng = stream(seed, Stream.TRACE_ARRIVALS, day)
    start_ns = _starts(model, seed, rng, day, scale)
    n = start_ns.size
    if n == 0:
        none = np.zeros(0, np.int16)
        return Batches(start_ns, start_ns, none, none, start_ns, np.zeros(0))
    size_vms = _sizes(model, rng, start_ns)
    rank = np.empty(n, np.int64)
    rank[np.lexsort((rng.random(n), -size_vms))] = np.arange(n)
    shift = stream(seed, Stream.TRACE_FLAVOURS).random(2) + day * np.array([2**0.5, 3**0.5])
    flavour_u = (shift[0] + rank * R2_ALPHA[0]) % 1.0
    life_u = (shift[1] + rank * R2_ALPHA[1]) % 1.0
    flavours = _flavours(model, stream(seed, Stream.TRACE_FLAVOURS, day), size_vms, flavour_u)
    return Batches(start_ns, size_vms, *flavours, life_u)


def _day_vms(model: AzureV1, seed: int, day: int, batches: Batches) -> tuple[I64, I64, I16, I64]:
    """Return start, end, flavour and batch (of the day) of the VMs of one day's batches.

    Simplified: the VMs of a batch start in the same instant.
    """
    rng = stream(seed, Stream.TRACE_LIFETIMES, day)
    batch = np.repeat(np.arange(batches.size_vms.size), batches.size_vms)
    begin = np.cumsum(batches.size_vms) - batches.size_vms
    in_first = np.arange(batch.size) - begin[batch] < batches.nr_first[batch]
    flavour = np.where(in_first, batches.first[batch], batches.second[batch])
    near_u = batches.life_u[batch] + rng.uniform(-SHARED_WIDTH, SHARED_WIDTH, batch.size)
    near_u = np.abs(near_u)
    near_u = np.where(near_u > 1, 2 - near_u, near_u)  # reflected: stays uniform
    own_u = rng.random(batch.size)
    is_shared = (rng.random(batch.size) < SHARED_RATIO) | (batches.size_vms[batch] == 1)
    u = np.where(is_shared, near_u, own_u)
    tail = rng.standard_exponential(batch.size)
    start_ns = batches.start_ns[batch]
    return start_ns, start_ns + _lifetime_ns(model, flavour, u, tail), flavour, batch


def _standing(model: AzureV1, seed: int, scale: float) -> tuple[I64, I64, I16]:
    """Draw start, end and flavour of the VMs that run at time 0.

    The lifetime of a VM met at an instant is length-biased, and the instant uniform in it.

    Simplified: each standing VM is a batch of its own, and their number is the daily mean,
    not that of hour 0.
    """
    rng = stream(seed, Stream.TRACE_STANDING)
    n = round(model.concurrent_vms * scale)
    held = np.cumsum(model.share_ratio * model.mean_lifetime_s)
    flavour = _pick(held / held[-1], (np.arange(n) + rng.random()) / max(n, 1)).astype(np.int16)
    edge_s = model.edge_s
    biased = model.lifetime_pmf.copy()
    biased[:, :-1] *= (edge_s[:-1] + edge_s[1:]) / 2
    biased[:, -1] *= edge_s[-1] + model.tail_s
    biased /= biased.sum(axis=1, keepdims=True)
    shift = rng.random(2)
    at, into = _pick_by(biased, flavour, (shift[0] + np.arange(n) * R2_ALPHA[0]) % 1.0)
    is_tail = at == edge_s.size - 1
    low_s, high_s = edge_s[at], edge_s[np.minimum(at + 1, edge_s.size - 1)]
    lifetime_s = np.sqrt(low_s**2 + into * (high_s**2 - low_s**2))
    mean_s = model.tail_s[flavour]
    beyond_s = rng.standard_exponential((2, n)) * mean_s
    twice = rng.random(n) < mean_s / (mean_s + edge_s[-1])
    tail_s = edge_s[-1] + beyond_s[0] + twice * beyond_s[1]
    lifetime_s = np.where(is_tail, tail_s, lifetime_s)
    left_ratio = (shift[1] + np.arange(n) * R2_ALPHA[1]) % 1.0
    lifetime_ns = np.rint(lifetime_s * NS_PER_S).astype(np.int64)
    end_ns = np.clip((lifetime_ns * left_ratio).astype(np.int64), 1, lifetime_ns - 1)
    return end_ns - lifetime_ns, end_ns, flavour


def generate_azure_v1(
    seed: int, duration_ns: int, scale: float = 1.0, standing: bool = True
) -> Trace:
    """Draw a trace with the arrivals, flavours and lifetimes of Azure's public trace of 2017.

    Every day has its own streams (the day stands in the host slot of the stream's key), so the
    first day of a month equals a day drawn alone.  Ends are drawn to the end, also behind the
    span.

    Simplified: no weekly rhythm and no drift; the trace's batches grew through the month, from
    38,500 VMs on its first day to 87,600 on its busiest.

    Parameters
    ----------
    seed : int
        Same seed, same trace.
    duration_ns : int
        Length of the trace.
    scale : float
        Share of the Azure region's arrival rate and standing population (144,977 VMs).  It
        thins batches, not VMs: batch sizes and the variance/mean of arrivals (about 80) stay,
        so the relative fluctuation grows as one over its square root.
    standing : bool
        Start with the VMs that run at time 0; without them it takes months to fill a fleet.

    Raises
    ------
    ValueError
        Duration or scale is not positive.
    """
    if duration_ns <= 0 or scale <= 0:
        raise ValueError(f"duration {duration_ns} ns and scale {scale} must be positive")
    model = azure_v1()
    parts: list[tuple[I64, I64, I16, I64]] = []
    nr_batches = 0
    if standing:
        start_ns, end_ns, flavour = _standing(model, seed, scale)
        nr_batches = start_ns.size
        parts.append((start_ns, end_ns, flavour, np.arange(nr_batches)))
    for day in range(-(-duration_ns // NS_PER_DAY)):
        batches = _day_batches(model, seed, day, scale)
        start_ns, end_ns, flavour, batch = _day_vms(model, seed, day, batches)
        keep = start_ns < duration_ns
        parts.append((start_ns[keep], end_ns[keep], flavour[keep], batch[keep] + nr_batches))
        nr_batches += batches.size_vms.size
    start_ns, end_ns, flavour, batch = (
        np.concatenate([part[column] for part in parts]) for column in range(4)
    )
    return make_trace(
        start_ns,
        end_ns,
        model.vcpus[flavour],
        model.memory_pages[flavour],
        flavour,
        batch,
        model.names,
        duration_ns,
        f"generated: azure-v1, seed {seed}, scale {scale:g}; statistics of AzurePublicDataset V1 "
        "(CC-BY 4.0; Cortez et al., SOSP 2017; Bergsma et al., SOSP 2021)",
    )
