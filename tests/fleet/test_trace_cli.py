import json

import pytest
from typer.testing import CliRunner

from fleet.cli_trace import trace_app
from fleet.policies import POLICIES
from fleet.trace import read_trace
from hostsim.core.errors import ScenarioError


def fleet_trace(*args):
    """Run a command; return its result, with errors raised as the main program sees them."""
    return CliRunner().invoke(trace_app, list(map(str, args)), catch_exceptions=False)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.parquet"
    fleet_trace("generate", "azure-v1", "--days", 4, "--scale", 0.002, "-o", path)
    return path


def test_generate_writes_a_trace_and_keeps_stdout_clean(tmp_path):
    out = tmp_path / "t.parquet"
    result = fleet_trace("generate", "azure-v1", "--days", 0.5, "--scale", 0.001, "-o", out)
    assert result.stdout == ""
    assert "145 of them running at time 0, 12 h" in result.stderr
    assert read_trace(out).span_ns == 43_200 * 10**9


def test_existing_file_is_kept_unless_overwrite_is_given(small):
    before = small.read_bytes()
    arguments = ("generate", "azure-v1", "--days", 1, "--scale", 0.001, "-o", small)
    with pytest.raises(ScenarioError, match=r"small\.parquet: exists"):
        fleet_trace(*arguments)
    assert small.read_bytes() == before
    fleet_trace(*arguments, "--overwrite")
    assert small.read_bytes() != before


def test_import_writes_parquet(tmp_path):
    (tmp_path / "h.csv").write_text("vmid,cpu,memory,time,type\n1,1,2,0,0\n1,1,2,60,1\n")
    fleet_trace("import", "huawei", tmp_path / "h.csv", "-o", tmp_path / "h.parquet")
    assert read_trace(tmp_path / "h.parquet").nr_vms == 1


def test_stats_of_an_own_trace_judge_nothing(tmp_path):
    rows = "".join(f"v{n},{600 * n},{600 * n + 3000},2,8\n" for n in range(200))
    (tmp_path / "vms.csv").write_text("vm,start_s,end_s,vcpus,memory_gib\n" + rows)
    fleet_trace("import", "csv", tmp_path / "vms.csv", "-o", tmp_path / "own.parquet")
    printed = fleet_trace("stats", tmp_path / "own.parquet").stdout
    assert "differs" in printed
    assert "MISS" not in printed
    assert printed.rstrip().endswith("of Azure's; yours need not be")


def test_stats_prints_measured_beside_published(small):
    lines = fleet_trace("stats", small, "--scale", 0.002).stdout.splitlines()
    row = next(line.split() for line in lines if line.startswith("share 1c-1.75GiB"))
    assert row[2:4] == ["0.477", "0.472..0.482"]
    assert "within range" in lines[-1]


def test_stats_as_json_has_stable_keys(small):
    answer = json.loads(fleet_trace("stats", small, "--json").stdout)
    assert set(answer) == {"traces", "compared"}
    assert answer["traces"][str(small)]["days"] == 4.0
    assert set(answer["compared"][0]) == {
        "name",
        "published",
        "low",
        "high",
        "source",
        "measured",
        "mean",
        "passes",
        "nr_pass",
    }


def test_stats_of_a_generator_has_a_column_per_seed():
    result = fleet_trace(
        "stats", "--generate", "azure-v1", "--seeds", "1,2", "--days", 1, "--scale", 0.002
    )
    header = next(line for line in result.stdout.splitlines() if "verdict" in line)
    assert header.split()[-5:] == ["seed", "1", "seed", "2", "source"]
    assert "generating seed 2" in result.stderr


def test_pack_prints_its_figures(small):
    answer = json.loads(fleet_trace("pack", small, "--policy", "first-fit", "--json").stdout)
    assert answer["started"] == read_trace(small).nr_vms
    assert answer["host_hours"] >= answer["bound_host_hours"] > 0
    assert "host-hours with a VM" in fleet_trace("pack", small).stdout


def test_pack_into_few_hosts_rejects(small):
    answer = json.loads(fleet_trace("pack", small, "--hosts", 2, "--json").stdout)
    assert answer["rejected"] > 0
    assert answer["peak_hosts"] == 2


def test_pack_with_all_policies_prints_a_line_each_in_order_of_host_hours(small):
    lines = fleet_trace("pack", small, "--policy", "all").stdout.splitlines()[1:-2]
    hours = [float(line.split()[1].replace(",", "")) for line in lines]
    assert sorted(line.split()[0] for line in lines) == sorted(POLICIES)
    assert hours == sorted(hours)
    answers = json.loads(fleet_trace("pack", small, "--policy", "all", "--json").stdout)
    assert [answer["policy"] for answer in answers] == list(POLICIES)
    assert all(answer["host_hours"] >= answer["bound_host_hours"] for answer in answers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pack", "{}", "--policy", "worst"), "policy 'worst' is unknown; did you mean worst-fit?"),
        (("pack", "{}", "--choices", "5"), "choices 5 must be 1 to 4"),
        (("pack", "{}", "--lifetime-error", "-1"), "lifetime error -1.0 must be 0 to 10"),
        (("pack", "{}", "--memory", "256"), "--memory: '256' is not a memory size"),
        (("pack", "{}", "--hosts", "0"), "--hosts: '0' is no positive number nor unlimited"),
        (("pack", "{}", "--vcpu-overcommit", "0"), "must be above 0"),
        (("stats",), "give FILE... or --generate"),
        (("stats", "{}", "--generate", "azure-v1"), "give FILE... or --generate"),
        (("stats", "--generate", "azure-v1", "--seeds", "1;2"), "--seeds: '1;2' is not a list"),
        (("stats", "--generate", "azure-v1", "--seeds", "-1"), "-1 must not be negative"),
        (("stats", "--generate", "azure-v1", "--days", "0"), "--days: 0 must be positive"),
        (("generate", "azure-v3", "-o", "x"), "generator: 'azure-v3' is none of azure-v1"),
        (("generate", "azure-v1", "--scale", "0", "-o", "x"), "--scale: 0 must be positive"),
        (("generate", "azure-v1", "-o", "no/such/x"), "no/such/x: its folder does not exist"),
    ],
)
def test_bad_arguments_are_named(small, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError) as caught:
        fleet_trace(*(argument.format(small) for argument in arguments))
    assert message in str(caught.value)


@pytest.mark.parametrize("command", ["import", "generate", "stats", "pack"])
def test_help_shows_examples(command):
    assert "fleet trace " + command in fleet_trace(command, "--help").stdout
