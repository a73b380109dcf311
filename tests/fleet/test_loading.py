import tomllib

import pytest

from fleet.loading import apply_override, build, builtin_names, load, parse_override
from fleet.scenario import to_toml
from hostsim.core.errors import ScenarioError


def problems_of(text, *overrides):
    with pytest.raises(ScenarioError) as caught:
        build(tomllib.loads(text), "x", "x.toml", overrides)
    return {problem.place: problem for problem in caught.value.problems}


def test_all_problems_are_found_at_once():
    found = problems_of(
        """
        [run]
        duration = "1h"
        ticks = "5min"
        [[hosts]]
        memory = "3MiB"
        [[hosts]]
        vcpus = 0
        reserved = "-1GiB"
        [guests]
        touched_share_mean = 2
        [plaecment]
        """
    )
    assert set(found) == {
        "x.toml: run.ticks",
        "x.toml: hosts[0].memory",
        "x.toml: hosts[1].vcpus",
        "x.toml: hosts[1].reserved",
        "x.toml: guests.touched_share_mean",
        "x.toml: plaecment",
    }


@pytest.mark.parametrize(
    ("line", "place", "message"),
    [
        ('memory = "65540KiB"', "hosts[0].memory", "65540KiB is not a multiple of 2MiB"),
        ('memory = "64Gib"', "hosts[0].memory", "did you mean GiB?"),
        ("memory = 64", "hosts[0].memory", "64 has no unit"),
        ('memory = "0GiB"', "hosts[0].memory", "is not more than 0"),
        ('memory = "-2GiB"', "hosts[0].memory", "-2GiB is negative"),
        ('kernel = "5.4"', "hosts[0].kernel", "'5.4' must be '6.12' or '6.1'"),
        ('vcpus = "8"', "hosts[0].vcpus", "'8' must be a valid integer"),
        ('reserved = "256GiB"', "hosts[0]", "reserved 256GiB leaves nothing of memory 256GiB"),
    ],
)
def test_problem_names_path_value_and_rule(line, place, message):
    found = problems_of(f"[[hosts]]\n{line}")
    assert message in found[f"x.toml: {place}"].message


def test_unknown_key_hints_at_the_nearest_known_key():
    found = problems_of("[[hosts]]\n[hosts.thp]\nenabeld = 'never'")
    problem = found["x.toml: hosts[0].thp.enabeld"]
    assert (problem.message, problem.hint) == ("unknown key", "did you mean enabled?")


@pytest.mark.parametrize(("word", "hint"), [("best-fot", "did you mean best-fit?"), ("x", "")])
def test_unknown_word_hints_at_the_nearest_known_one(word, hint):
    problem = problems_of(f"[[hosts]]\n[placement]\npolicy = '{word}'")["x.toml: placement.policy"]
    assert f"'{word}' must be 'first-fit', 'next-fit'" in problem.message
    assert problem.hint == hint


def test_scenario_without_hosts_is_a_problem():
    assert "x.toml: hosts" in problems_of("[run]\nseed = 1")


def test_duration_must_be_whole_ticks():
    found = problems_of("[run]\nduration = '7min'\nvm_rows = '5min'\n[[hosts]]")
    assert found["x.toml: run"].message == "duration 7min is not a multiple of tick 5min"


def test_guests_without_a_kernel_need_what_a_kernel_does_switched_off():
    overrides = ["guests.kernel=none"]
    with pytest.raises(ScenarioError) as error:
        load("churn", overrides)
    assert [str(problem) for problem in error.value.problems] == [
        "churn: guests: free_page_reporting_ratio 0.5 and balloon_ratio 0.5: without a kernel in"
        " the guests (kernel 'none') nothing gives memory back; set to 0"
    ]
    overrides += ["guests.free_page_reporting_ratio=0", "guests.balloon_ratio=0"]
    with pytest.raises(ScenarioError, match=r"churn: mmu\.enabled true needs page tables"):
        load("churn", overrides)
    assert load("churn", [*overrides, "mmu.enabled=false"]).guests.kernel == "none"


def test_key_of_another_vm_source_is_a_problem():
    found = problems_of("[[hosts]]\n[vms]\nsource = 'trace'\npath = 'a'\nscale = 2.0")
    assert found["x.toml: vms"].message == 'scale is not read when source is "trace"'


def test_set_without_number_changes_all_groups():
    raw = {"hosts": [{}, {"thp": {}}]}
    written = apply_override(raw, parse_override("hosts.thp.enabled=madvise"))
    assert raw == {"hosts": [{"thp": {"enabled": "madvise"}}] * 2}
    assert written == [("hosts", 0, "thp", "enabled"), ("hosts", 1, "thp", "enabled")]


@pytest.mark.parametrize("path", ["hosts[1].memory", "hosts.1.memory"])
def test_set_with_number_changes_one_group(path):
    raw = {"hosts": [{}, {}]}
    apply_override(raw, parse_override(f"{path}=64GiB"))
    assert raw == {"hosts": [{}, {"memory": "64GiB"}]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("run.seed=7", 7),
        ("run.duration=1h", "1h"),
        ('run.duration="1h"', "1h"),
        ("placement.reject_oversized=true", True),
        ("vms.scale=0.5", 0.5),
    ],
)
def test_set_value_is_a_toml_scalar_or_a_bare_word(text, value):
    raw = {}
    (path,) = apply_override(raw, parse_override(text))
    assert raw == {path[0]: {path[1]: value}}


def test_set_keeps_version_numbers_as_text():
    raw = {"hosts": [{}]}
    apply_override(raw, parse_override("hosts.kernel=6.10"))
    assert raw["hosts"][0]["kernel"] == "6.10"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hosts.memory", "is not PATH=VALUE"),
        ("hosts[0]memory=1", "is no path"),
        ("hosts[3].memory=1GiB", "hosts has 1 entries"),
        ("run.seed.x=1", "run.seed has no parts"),
        ("hosts.memroy=1GiB", "unknown key"),
        ("hosts.memory=1", "has no unit"),
    ],
)
def test_bad_set_is_reported_by_its_own_text(override, message):
    found = problems_of("[run]\nseed = 1\n[[hosts]]", override)
    assert message in found[f"--set {override}"].message


def test_problem_of_one_set_on_many_groups_names_each_group():
    text = "[[hosts]]\n[[hosts]]"
    with pytest.raises(ScenarioError) as caught:
        build(tomllib.loads(text), "x", "x.toml", ["hosts.thp.enabled=alwys"])
    assert [p.message.split(":")[0] for p in caught.value.problems] == [
        "hosts[0].thp.enabled",
        "hosts[1].thp.enabled",
    ]


def test_path_in_a_file_is_relative_to_the_file(tmp_path):
    (tmp_path / "a.toml").write_text("[[hosts]]\n[vms]\nsource = 'trace'\npath = 't.parquet'\n")
    assert load(str(tmp_path / "a.toml")).vms.path == str(tmp_path / "t.parquet")


def test_missing_scenario_names_the_nearest_built_in():
    with pytest.raises(ScenarioError, match="did you mean churn"):
        load("chrun")


def test_broken_toml_names_file_and_line(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[run\n")
    with pytest.raises(ScenarioError, match=r"a\.toml: is not TOML.*line 1"):
        load(str(path))


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_scenarios_read_back_from_their_printed_form(name):
    scenario = load(name)
    again = build(tomllib.loads(to_toml(scenario.document)), name, name)
    assert again == scenario
