"""The cost model against what can be worked out by hand, and against the simulated clock."""

from __future__ import annotations

import csv
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fl_hydra.errors import UserError
from fl_hydra.report.cost import (
    COLLECTIVES,
    TABLE,
    Device,
    Ledger,
    Network,
    Transfer,
    average_seconds,
    computing_seconds,
    point_to_point,
    read_ledger,
    read_table,
    ring,
    tree,
    waiting_seconds,
    wall_clock,
    wire_bytes,
)
from fl_hydra.report.results import Results
from fl_hydra.report.spec import Spec
from fl_hydra.report.tables import write_tables
from fl_hydra.runs.identity import describe
from fl_hydra.runs.reading import Run
from tests.support.make import trainer

ETHERNET = Network("Ethernet", latency=1e-3, bandwidth=8e6)  # a message of n bytes: 1 ms + n us
SIMULATED = Device("as simulated")
NOTHING = Ledger(
    workers=4,
    blocks=1,
    rounds=1,
    samples=64,
    flops=6400,
    messages=0,
    payload=0,
    served=0,
    averages=0,
    block_averages=0,
    exchanges=0,
    exchanged=0,
    seconds=10.0,
    delay=0.0,
    throughput=100.0,
    hub=False,
)
AVERAGES = replace(NOTHING, messages=16, payload=16_000, averages=2)  # two averages of four workers, 1000 bytes each


def trained(*overrides: str) -> tuple[Run, Ledger]:
    """A run on the digits until its budget is spent, as it is written without its accuracy, and its ledger."""
    run = trainer("threads=1", *overrides)
    while not run.finished:
        run.run_round()
    packed_run = run.sole_run
    counts = {"round": packed_run.round, "samples": packed_run.samples, "seconds": packed_run.seconds, "flops": 1000 * packed_run.computed}
    row = {**counts, **asdict(packed_run.traffic), "test/acc": None}
    config = describe(packed_run.experiment)
    ledger = read_ledger(row, config)
    assert ledger is not None
    return Run(Path("nowhere"), config, [row], "finished"), ledger


def test_transfers_by_hand() -> None:
    assert ring(4, 1000) == Transfer(in_a_row=6, carried=1500, wire=6000)  # 2 x 3 steps of 250 bytes, by 4 workers at once
    assert tree(4, 1000) == Transfer(in_a_row=4, carried=4000, wire=6000)  # two levels up and two down; 3 edges, both ways
    assert tree(5, 1000) == Transfer(in_a_row=6, carried=6000, wire=8000)
    assert point_to_point(4, 1000) == Transfer(in_a_row=2, carried=8000, wire=8000)


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_one_worker_costs_nothing(collective: str) -> None:
    assert average_seconds(1, 1000, ETHERNET, collective) == 0
    assert all(method(1, 1000) == Transfer(0, 0, 0) for method in COLLECTIVES[collective])


@pytest.mark.parametrize("workers", [2, 3, 4, 16, 100])
def test_ring_and_tree_put_the_same_on_the_wire_and_no_worker_more_than_twice_its_model(workers: int) -> None:
    assert ring(workers, 1000).wire == pytest.approx(tree(workers, 1000).wire)
    assert ring(workers, 1000).wire / workers == pytest.approx(2 * (workers - 1) / workers * 1000)


@pytest.mark.parametrize("workers", [8, 16, 100])
def test_tree_is_faster_for_small_models_and_ring_for_large_ones(workers: int) -> None:
    """They cross where latency (K - 1 - d) = n / bandwidth (d - (K - 1) / K), d = ceil(log2 K)."""
    depth = (workers - 1).bit_length()
    crossing = 1000 * (workers - 1 - depth) / (depth - (workers - 1) / workers)  # bytes: latency / seconds of a byte is 1000
    for size, faster, slower in ((0.9 * crossing, "tree", "ring"), (1.1 * crossing, "ring", "tree")):
        best = average_seconds(workers, size, ETHERNET, faster)
        assert best < average_seconds(workers, size, ETHERNET, slower)
        assert average_seconds(workers, size, ETHERNET, "fastest") == best


def test_wall_clock_by_hand() -> None:
    assert wall_clock(NOTHING, ETHERNET, SIMULATED, "ring") == 10
    assert waiting_seconds(AVERAGES, ETHERNET, "ring") == pytest.approx(2 * (6e-3 + 1.5e-3))
    assert waiting_seconds(AVERAGES, ETHERNET, "tree") == pytest.approx(2 * (4e-3 + 4e-3))
    assert waiting_seconds(AVERAGES, ETHERNET, "point_to_point") == pytest.approx(2 * (2e-3 + 8e-3))
    assert wall_clock(AVERAGES, ETHERNET, SIMULATED, "ring") == pytest.approx(10.015)
    assert (wire_bytes(AVERAGES, "ring"), wire_bytes(AVERAGES, "point_to_point")) == (12_000, 16_000)


@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize(
    "other",
    [
        AVERAGES,
        replace(AVERAGES, blocks=2, block_averages=1),
        replace(NOTHING, messages=8, payload=8_000, exchanges=2, exchanged=8_000),
        replace(NOTHING, messages=40, payload=40_000, averages=3, exchanges=4, exchanged=16_000),
    ],
)
def test_wall_clock_is_additive_where_workers_wait_for_each_other(collective: str, other: Ledger) -> None:
    counts = ("messages", "payload", "averages", "block_averages", "exchanges", "exchanged", "seconds")
    twice = replace(other, **{name: 2 * getattr(other, name) for name in counts})
    assert wall_clock(twice, ETHERNET, SIMULATED, collective) == pytest.approx(2 * wall_clock(other, ETHERNET, SIMULATED, collective))
    assert wire_bytes(twice, collective) == pytest.approx(2 * wire_bytes(other, collective))


def test_devices_change_computing_alone() -> None:
    assert computing_seconds(AVERAGES, Device("twice as fast", samples_per_second=200)) == pytest.approx(5)
    assert computing_seconds(AVERAGES, Device("100 operations a sample", flops_per_second=20_000)) == pytest.approx(5)
    waiting = wall_clock(AVERAGES, ETHERNET, SIMULATED, "ring") - 10
    assert wall_clock(AVERAGES, ETHERNET, Device("fast", samples_per_second=200), "ring") == pytest.approx(5 + waiting)


def test_sharing_steps_is_charged_like_averaging_after_every_step() -> None:
    shared, shared_ledger = trained("algorithm=centralized", "data_parallel=4", "batch_size=64", "samples=1280")
    _, local = trained("algorithm=localsgd", "K=4", "J=1", "batch_size=16", "samples=1280")
    assert shared_ledger.averages == 20
    for collective in COLLECTIVES:
        assert wire_bytes(shared_ledger, collective) == wire_bytes(local, collective) > 0
        assert wall_clock(shared_ledger, ETHERNET, SIMULATED, collective) == pytest.approx(
            wall_clock(local, ETHERNET, SIMULATED, collective), rel=1e-12
        )
    assert shared_ledger.payload / shared_ledger.workers == local.payload / local.workers == 20 * 2 * shared_ledger.message
    assert shared.config["data_parallel"] == shared_ledger.workers


def test_workers_without_others_send_nothing() -> None:
    for algorithm in ("centralized", "lookahead"):
        _, ledger = trained(f"algorithm={algorithm}", "samples=640")
        assert (ledger.messages, wire_bytes(ledger, "ring")) == (0, 0)
        assert wall_clock(ledger, ETHERNET, SIMULATED, "ring") == ledger.seconds == pytest.approx(640 / 6400)


def test_averaging_momentum_makes_the_messages_twice_as_long() -> None:
    _, kept = trained("algorithm=localsgd", "K=4", "J=2", "samples=1024")
    _, averaged = trained("algorithm=localsgd", "algorithm.momentum=average", "K=4", "J=2", "samples=1024")
    assert (averaged.averages, averaged.message) == (kept.averages, 2 * kept.message)
    assert waiting_seconds(averaged, ETHERNET, "ring") == pytest.approx(
        kept.averages * average_seconds(4, 2 * kept.message, ETHERNET, "ring")
    )


def test_blocks_average_at_once_and_over_their_own_network() -> None:
    """8 workers in 2 blocks, a round of 4 periods: 3 averages of blocks and one of all."""
    _, ledger = trained("algorithm=hierarchical", "K=8", "J=1", "algorithm.blocks=2", "algorithm.J_b=4", "batch_size=8", "samples=512")
    n = ledger.message
    assert (ledger.averages, ledger.block_averages) == (8, 6)
    blocks, everyone = 6 * average_seconds(4, n, ETHERNET, "ring"), 2 * average_seconds(8, n, ETHERNET, "ring")
    assert waiting_seconds(ledger, ETHERNET, "ring") == pytest.approx(blocks + everyone)
    assert wire_bytes(ledger, "ring") == pytest.approx(6 * 2 * 2 * 3 * n + 2 * 2 * 7 * n)
    at_once = replace(ETHERNET, blocks=Network("none", 0, 1e30))
    assert waiting_seconds(ledger, at_once, "ring") == pytest.approx(everyone)


def test_clients_go_through_the_link_of_their_server() -> None:
    _, ledger = trained("algorithm=fedavg", "K=20", "C=0.2", "J=1", "rounds=3")
    n = ledger.message
    for collective in COLLECTIVES:
        assert waiting_seconds(ledger, ETHERNET, collective) == pytest.approx(3 * (2e-3 + 2 * 4 * n * 1e-6))
        assert wire_bytes(ledger, collective) == pytest.approx(3 * 2 * 4 * n)


def test_workers_with_a_server_of_their_own_pay_what_clients_pay() -> None:
    """It is none of them: 2 K messages in an average of K."""
    served = replace(AVERAGES, served=AVERAGES.messages)
    assert waiting_seconds(AVERAGES, ETHERNET, "point_to_point") == waiting_seconds(served, ETHERNET, "ring")
    assert wire_bytes(AVERAGES, "point_to_point") == wire_bytes(served, "ring") == 2 * 2 * 4 * 1000


def test_neighbours_wait_for_the_busiest_of_them() -> None:
    """In a star of 4 the middle sends 3 models in each of 5 exchanges."""
    _, ledger = trained("algorithm=gossip", "algorithm.topology=star", "K=4", "J=5", "batch_size=16", "rounds=1")
    assert waiting_seconds(ledger, ETHERNET, "ring") == pytest.approx(15 * (1e-3 + ledger.message * 1e-6))
    assert wire_bytes(ledger, "ring") == ledger.exchanged == 5 * 6 * ledger.message


@pytest.mark.parametrize("algorithm", ["async_sgd", "easgd", "shat"])
def test_a_network_takes_as_long_as_the_same_delay_of_the_simulated_clock(algorithm: str) -> None:
    """Equal workers around a server that is never busy: both clocks agree, whichever of them knows of the time under way."""
    budget = ("K=4", "J=2", "batch_size=16", f"samples={4 * 2 * 16 * 5}")
    _, plain = trained(f"algorithm={algorithm}", *budget)
    _, delayed = trained(f"algorithm={algorithm}", "algorithm.delay=0.02", *budget)
    there_and_back = Network("like the delay", latency=0.01, bandwidth=1e30)
    assert plain.visits == delayed.visits == 20
    assert delayed.delay == pytest.approx(5 * 0.02)
    for ledger in (plain, delayed):
        assert computing_seconds(ledger, SIMULATED) == pytest.approx(plain.seconds)
        assert wall_clock(ledger, there_and_back, SIMULATED, "ring") == pytest.approx(delayed.seconds)


def test_a_server_is_the_bottleneck_of_a_slow_network() -> None:
    visiting = replace(NOTHING, messages=80, served=80, payload=80_000)  # 40 visits by 4 workers, 1000 bytes each way
    assert wall_clock(visiting, ETHERNET, SIMULATED, "ring") == pytest.approx(10 + 10 * 2 * 2e-3)
    slow = Network("slow", latency=0, bandwidth=8e3)  # a second for 1000 bytes
    assert wall_clock(visiting, slow, SIMULATED, "ring") == pytest.approx(40)
    assert wall_clock(visiting, slow, Device("slow", samples_per_second=10), "ring") == pytest.approx(100 + 20)
    assert wire_bytes(visiting, "ring") == 80_000


def test_meetings_are_hidden_behind_computing() -> None:
    meeting = replace(NOTHING, messages=80, payload=80_000, exchanged=80_000)  # 40 meetings: 20 of each of 4 workers
    assert wall_clock(meeting, ETHERNET, SIMULATED, "ring") == 10
    slow = Network("slow", latency=0, bandwidth=8e3)
    assert wall_clock(meeting, slow, SIMULATED, "ring") == pytest.approx(20)
    assert wall_clock(replace(meeting, hub=True), slow, SIMULATED, "ring") == pytest.approx(40)  # the middle is in all of them
    _, run = trained("algorithm=a2cid2", "K=4", "J=5", "batch_size=16", "rounds=2")
    assert run.meetings == run.messages / 4 > 0
    _, run = trained("algorithm=ad_psgd", "algorithm.topology=star", "K=4", "J=5", "batch_size=16", "rounds=2")
    assert run.meetings == run.messages / 2 > 0


def test_runs_without_all_counts_have_no_costs(tmp_path: Path) -> None:
    run, _ = trained("algorithm=localsgd", "K=4", "samples=512")
    (row,) = run.rows
    old = replace(run, rows=[{name: value for name, value in row.items() if name != "served"}])
    assert read_ledger(old.rows[0], old.config) is None
    complete = replace(old, rows=[dict.fromkeys(("val/acc", "test/acc", "test/loss"), 0.5) | old.rows[0]])
    written = write_tables(Results.of("mine", [complete]), Spec("mine", ()), read_table(), [], tmp_path)
    assert [path.name for path in written] == ["mine.csv", "mine.md", "mine.tex"]


def test_the_table_of_the_project() -> None:
    table = read_table()
    assert [network.name for network in table.networks] == ["NVLink", "100 Gb/s", "10 Gb/s", "1 Gb/s", "WAN"]
    speeds = [network.bandwidth for network in table.networks]
    latencies = [network.latency for network in table.networks]
    assert speeds == sorted(speeds, reverse=True)
    assert latencies == sorted(latencies)


def test_a_line_more_is_a_column_or_a_row_more(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    text = TABLE.read_text()
    text = text.replace("networks:\n", "networks:\n  pigeon: {latency: 3600, bandwidth: 1e9, blocks: NVLink}\n")
    text = text.replace("devices:\n", "devices:\n  abacus: {samples_per_second: 0.1}\n")
    mine.write_text(text)
    table = read_table(mine)
    assert table.networks[0].blocks == table.networks[1]
    run, ledger = trained("algorithm=localsgd", "K=4", "J=2", "samples=1024")
    write_tables(Results.of("mine", [run]), Spec("mine", ()), table, [], tmp_path)
    with open(tmp_path / "mine-cost.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["device"]) for row in rows] == [("LocalSGD K=4 J=2", name) for name in ("abacus", "as simulated")]
    assert float(rows[0]["seconds mean"]) == 2560  # 256 samples of each worker
    assert float(rows[1]["pigeon mean"]) == pytest.approx(2 * 4 * 3600, rel=1e-3)  # two averages over a tree
    assert float(rows[1]["payload mean"]) == pytest.approx(2 * 2 * ledger.message / 1e6)
    assert rows[1]["payload deviation"] == "" and rows[1]["payload n"] == "1"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("collective: fastest", "collective: slowest", "collective=slowest: choose ring, tree, point_to_point, fastest"),
        ("bandwidth: 10.0e+9", "bandwidth: 0", "networks.10 Gb/s: bandwidth=0.0: a number of bits a second, greater than 0, is needed"),
        ("latency: 50.0e-3", "latency: -1", "networks.WAN: latency=-1.0: a number of seconds, at least 0, is needed"),
        ("latency: 50.0e-3", "latency: soon", "networks.WAN: latency=soon: a number is needed"),
        ("latency: 50.0e-3, ", "", "networks.WAN: latency: missing; latency in seconds and bandwidth in bits a second are needed"),
        ("latency: 50.0e-3", "jitter: 1", "networks.WAN: jitter: no such key; choose from latency, bandwidth, blocks"),
        ("100.0e+6}", "100.0e+6, blocks: LAN}", "networks.WAN: blocks=LAN: no such network; choose from NVLink, "),
        ("as simulated: {}", "mine: {samples_per_second: 0}", "devices.mine: samples_per_second=0.0: must be greater than 0"),
        ("as simulated: {}", "mine: {samples_per_second: 1, flops_per_second: 1}", "devices.mine: samples_per_second and flops_per_sec"),
        ("as simulated: {}", "mine: fast", "devices.mine: fast: a table with samples_per_second, flops_per_second is needed"),
        ("  as simulated: {}\n", "", "devices: at least one line `name: {...}` is needed"),
        ("collective: fastest", "collective: fastest\nfigures: 1", "figures: no such key; choose from collective, networks, devices"),
        ("networks:\n", "networks: [\n", "not a YAML table ("),
    ],
)
def test_a_mistake_in_the_table_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    text = TABLE.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "none.yaml")


def test_a_sample_that_only_a_loss_was_asked_of_is_a_third_of_one() -> None:
    """Seconds on a device of known speed are those of the operations, whoever asked for how many losses."""
    fields = dict.fromkeys(("messages", "payload", "served", "averages", "block_averages", "exchanges", "exchanged"), 0)
    whole, device = 3000 * 6 + 600 * 2, Device("device", flops_per_second=1000.0)
    ledger = Ledger(1, 1, 10, 3000, whole, **fields, seconds=(3000 + 600 / 3) / 50, delay=0.0, throughput=50.0, hub=False, asked=600)
    assert computing_seconds(ledger, device) == pytest.approx(whole / 1000)
