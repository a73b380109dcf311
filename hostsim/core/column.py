"""What a result column is, and the keys that several tables share."""

from typing import Literal, NamedTuple

Kind = Literal["key", "gauge", "counter", "label", "rate"]


class Column(NamedTuple):
    """One column of a result table, or of a view.

    A ``key`` places the row, a ``gauge`` holds at the row's time, a ``counter`` is cumulative
    and monotone within its host, a ``label`` is a code with the names in ``labels``.  Views have
    ``rate`` in place of counters: what was counted since the row before.
    """

    name: str
    dtype: str  # parquet type: int64, int32, int16, int8 or label; of views float64, string, too
    kind: Kind
    unit: str
    doc: str
    source: str = ""
    labels: tuple[str, ...] = ()


T_NS = Column("t_ns", "int64", "key", "ns", "Simulated time since the start of the run.")
HOST_ID = Column("host_id", "int32", "key", "", "Host number; -1 where no host is concerned.")
VM_ID = Column("vm_id", "int64", "key", "", "VM number in the trace.")
