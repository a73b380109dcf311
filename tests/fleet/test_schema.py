import numpy as np
import pyarrow as pa
import pytest

from fleet.schema import RELATIONS, arrow_schema, arrow_table, markdown
from hostsim.core.errors import InvariantError
from hostsim.core.stats import EVENT_NAMES, SCHEMA_VERSION, TABLES


@pytest.mark.parametrize("table", TABLES)
def test_schema_carries_version_and_the_declared_columns(table):
    schema = arrow_schema(table)
    assert schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert schema.names == [column.name for column in TABLES[table]]


@pytest.mark.parametrize("relation", RELATIONS)
def test_documentation_has_unit_and_sentence_of_every_column(relation):
    text = markdown([relation])
    for column in RELATIONS[relation]:
        assert f"| {column.name} | {column.dtype} | {column.kind} | {column.unit} |" in text
        assert column.doc in text


def events(**changes):
    rows = np.zeros((1, len(TABLES["events"])), np.int64)
    for name, value in changes.items():
        rows[0, [column.name for column in TABLES["events"]].index(name)] = value
    return rows


def test_labels_are_words():
    table = arrow_table("events", events(event=EVENT_NAMES.index("kill")))
    assert table.schema.field("event").type == pa.dictionary(pa.int8(), pa.string())
    assert table["event"].to_pylist() == ["kill"]


@pytest.mark.parametrize(
    ("name", "fits", "too_large"),
    [
        ("vcpus", 2**31 - 1, 2**31),
        ("event", len(EVENT_NAMES) - 1, len(EVENT_NAMES)),
        ("event", 0, -1),
        ("host_id", -1, -(2**31) - 1),
    ],
)
def test_value_that_does_not_fit_its_column_is_an_error(name, fits, too_large):
    assert arrow_table("events", events(**{name: fits})).num_rows == 1
    with pytest.raises(InvariantError, match=rf"events.{name}: {too_large} does not fit"):
        arrow_table("events", events(**{name: too_large}))


def test_wrong_number_of_columns_is_an_error():
    with pytest.raises(InvariantError, match="declared columns"):
        arrow_table("events", np.zeros((2, 3), np.int64))
