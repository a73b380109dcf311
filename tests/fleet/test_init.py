import pytest

import fleet


def test_python_interface_loads_and_names_all_it_exports():
    for name in fleet.__all__:
        assert getattr(fleet, name).__name__ == name
    assert fleet.load("smoke").nr_hosts == 4


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fleet.nothing  # noqa: B018
