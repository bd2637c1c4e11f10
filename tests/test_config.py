"""The command line: every shipped configuration runs, every mistake is one line."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fl_hydra.config import REGISTRIES
from fl_hydra.data.cifar100 import CIFAR100
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.data.shakespeare import Shakespeare
from fl_hydra.models.lenet import LeNet
from fl_hydra.runs.identity import run_hash
from fl_hydra.runs.weights import parts_of
from fl_hydra.schema import typed
from fl_hydra.sweeping.grid import with_own
from tests.conftest import Program
from tests.support.make import PROJECT, by_hydra, config, experiment, suited, trainer

SHIPPED = sorted(path.relative_to(PROJECT / "conf").with_suffix("").as_posix() for path in (PROJECT / "conf").glob("*/*.yaml"))
for option in ("dataset/shakespeare", "dataset/shakespeare_sequences", "model/lstm", "sharding/natural"):
    SHIPPED.remove(option)  # for text: see test_shakespeare.py
for option in ("arrow", "cifar10", "emnist", "folder", "mnist", "npz", "tiny_imagenet"):
    SHIPPED.remove(f"dataset/{option}")  # need files: see tests/data
NEEDS = {"sharding/classes": ["N_c=10"], "participation/all": ["C=1"], "participation/skewed": ["gamma=0.5"]}
NEEDS |= {"model/convmixer": ["model.width=8", "model.depth=1"], "model/timm": ["model.architecture=test_resnet"]}
"""What an option cannot do without, or would take long without."""


SEES_SAMPLES = ("dataset", "model", "sharding")
"""Groups whose options depend on what samples look like."""


@pytest.mark.parametrize(
    ("option", "dataset"),
    [
        (option, dataset)
        for option in SHIPPED
        for dataset in ("digits", "cifar100")
        if not option.startswith("algorithm/") and (dataset == "digits" or option.startswith(SEES_SAMPLES))
    ],
)
def test_every_shipped_configuration_runs(option: str, dataset: str, program: Program, data: Path, tmp_path: Path) -> None:
    """From the command line to a summary, on digits and, where it could matter, on files in the real format of CIFAR-100.

    Of methods, `test_every_method_trains_another_model` says as much, and `test_every_kind_of_method_ends_with_a_module` of whole runs.
    """
    group, name = option.split("/")
    small = ["K=50", "J=4", "batch_size=8", *([] if option == "participation/all" else ["C=0.04"])]
    chosen = {"dataset": dataset, "algorithm": "fedavg", group: name}
    overrides = [*(f"{key}={value}" for key, value in chosen.items()), *small, *NEEDS.get(option, [])]
    result = program(*overrides, "samples=300", "evaluation.points=1", f"data={data}", cwd=tmp_path)
    assert result.status == 0, result.output
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["metrics"]["samples"] == 300


@pytest.mark.parametrize("algorithm", [option.split("/")[1] for option in SHIPPED if option.startswith("algorithm/")])
def test_every_method_trains_another_model(algorithm: str, data: Path) -> None:
    """LeNet on augmented images in colour, of which a client has few of the hundred classes."""
    method = config(f"algorithm={algorithm}").algorithm
    size = ("K=10", "C=0.2", "J=1") if method.federated else () if method.J is None else ("K=2", "J=1")
    run = trainer(
        "dataset=cifar100",
        f"data={data}",
        f"algorithm={algorithm}",
        *suited(algorithm),
        *size,
        "batch_size=8",
        "samples=16",
        engine="stacked",
    )
    before = parts_of(run, 0)
    while not run.finished:
        run.run_round()
    assert run.state.model.isfinite().all() and parts_of(run, 0) != before


def test_tests_compose_as_hydra_does() -> None:
    """Each option by itself, put together: what one chooses in other groups, what is typed in the same group, and methods with datasets."""
    words = ["algorithm=gossip_aga dataset=shakespeare optimizer=lamb scheduler=linear", "server=adam participation=oort uplink=topk"]
    words += ["algorithm=diloco dataset=cifar100 server=sgd sharding=dirichlet model=small"]
    for choices in map(str.split, words):
        assert config(*choices) == typed(by_hydra(tuple(choices))), choices


def test_every_registered_part_has_a_file() -> None:
    for registry in REGISTRIES:
        files = {path.stem for path in (PROJECT / "conf" / registry.group).glob("*.yaml")}
        assert {
            name for name, part in registry.items() if part.__module__.startswith("fl_hydra.")
        } <= files  # the benchmarks have their own


def test_lenet_on_cifar100_has_815332_parameters(data: Path) -> None:
    module = LeNet().build(DatasetInfo("", (3, 32, 32), 100, (), ()))
    assert sum(parameter.numel() for parameter in module.parameters()) == 815_332
    assert sum(parameter.numel() for parameter in LeNet().build(DatasetInfo("", (3, 32, 32), 10, (), ())).parameters()) == 797_962
    run = trainer("dataset=cifar100", f"data={data}", "algorithm=fedavg", "rounds=1")
    assert run.group.layout.size == 815_332
    assert run.group.sample_flops == pytest.approx(80.8e6, rel=0.01), "forward, backward to weights, backward to inputs but the first"


def test_first_federated_baseline_is_the_default() -> None:
    e = experiment("algorithm=fedavg", "dataset=digits")
    assert (e.K, e.m, e.J, e.batch_size, e.rounds, e.budget) == (100, 10, 4, 64, 2000, 5_120_000)
    assert (e.optimizer.lr, e.optimizer.weight_decay, e.scheduler.name) == (0.1, 1e-4, "constant")


@pytest.mark.parametrize(
    ("common", "one", "other"),
    [
        ("", "scheduler.reference=64", "scheduler.reference=128"),
        ("scheduler=cosine", "scheduler.scale_warmup=false", "scheduler.scale_warmup=true"),
        ("algorithm=post_local local_steps.at_step=9", "local_steps.switch=0.1", "local_steps.switch=0.9"),
        ("algorithm=localsgd", "server.per_rate=false", "server.per_rate=true"),
    ],
)
def test_what_has_no_effect_is_not_in_the_name(common: str, one: str, other: str) -> None:
    assert run_hash(experiment(*common.split(), one)) == run_hash(experiment(*common.split(), other))


@pytest.mark.parametrize(
    ("common", "one", "other"),
    [
        ("scheduler=large_batch", "scheduler.reference=64", "scheduler.reference=128"),
        ("scheduler=large_batch", "scheduler.scale_warmup=false", "scheduler.scale_warmup=true"),
        ("algorithm=post_local", "local_steps.switch=0.1", "local_steps.switch=0.9"),
        ("algorithm=localsgd server.momentum=0.1", "server.per_rate=false", "server.per_rate=true"),
    ],
)
def test_what_has_an_effect_is_in_the_name(common: str, one: str, other: str) -> None:
    assert run_hash(experiment(*common.split(), one)) != run_hash(experiment(*common.split(), other))


SWEEPS = sorted((PROJECT / "sweeps" / "sweep").glob("*/*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_section_of_the_report_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value of its grid can be run on CIFAR-100 or Shakespeare, and all its points process the same samples, but those that have a
    budget of their own."""
    cifar100 = DatasetInfo("made up", (3, 32, 32), 100, (500,) * 100, (100,) * 100)
    shakespeare = DatasetInfo("made up", (80,), 80, (5000,) * 150, (500,) * 150)
    monkeypatch.setattr(CIFAR100, "info", lambda self, root: cifar100)
    monkeypatch.setattr(Shakespeare, "info", lambda self, root: shakespeare)
    sweeper = OmegaConf.load(path).hydra.sweeper
    grid, own = {key: str(values).split(",") for key, values in sweeper.params.items()}, sweeper.get("own", {})
    base = {key: values[0] for key, values in grid.items()}
    samples = set()
    for key, values in grid.items():
        for value in values:
            point = with_own([f"{name}={chosen}" for name, chosen in {**base, key: value}.items()], own)
            if point is not None and not any(word.startswith("samples=") for word in point):
                samples.add(experiment(f"+sweep/{path.parent.name}={path.stem}", *point).budget)
    given = OmegaConf.select(OmegaConf.load(path), "samples")
    assert samples == {given or (150 * 45_000 if path.parent.name == "track_a" else 5_120_000)}


def test_the_command_line_narrows_a_section(program: Program, tmp_path: Path) -> None:
    small = ("dataset=digits", "epochs=1", "model.filters=1", "model.hidden=1")
    result = program("-m", "+sweep/track_a=localsgd", "K=2", "J=64,32", "seed=0", *small, cwd=tmp_path)
    assert result.status == 0, result.output
    assert "2 of 2 points finished" in result.output


def commands(page: str) -> list[list[str]]:
    """The arguments of every training command of a page, with the variables of its block put in."""
    found = []
    for block in re.findall(r"(?:^    .*\n)+", (PROJECT / page).read_text(), re.M):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", "").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if assigned := re.fullmatch(r' +(\w)="(.*)"', line):
                variables[assigned[1]] = assigned[2]
            elif line.strip().startswith("python train.py "):
                found.append(line.split("#")[0].split()[2:])
    return found


COMMANDS = [
    *commands("docs/distributed.md"),
    *(choice.split() for choice in re.findall(r"`(algorithm=[^`]*)`", (PROJECT / "docs/distributed.md").read_text())),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_of_the_page_on_distributed_learning_is_valid(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value of its grid, on images like CIFAR-100's."""
    cifar100 = DatasetInfo("made up", (3, 32, 32), 100, (500,) * 100, (100,) * 100)
    monkeypatch.setattr(CIFAR100, "info", lambda self, root: cifar100)
    keys = [word for word in " ".join(command).partition(' "hydra.')[0].split() if word != "-m"]  # how figures are drawn is the report's
    grid = {key: values.split(",") for key, values in (word.split("=") for word in keys)}
    for point in range(max(map(len, grid.values()))):
        experiment(*(f"{key}={values[point % len(values)]}" for key, values in grid.items()))


MISTAKES = [
    ("algorithm=fedavg K=0", "K=0: the number of clients must be at least 1"),
    ("algorithm=localsgd K=0", "K=0: the number of workers must be at least 1"),
    ("algorithm=fedavg K=-3", "must be at least 1"),
    ("algorithm=fedavg C=0", "C=0.0: the fraction of clients in a round must be above 0 and at most 1"),
    ("algorithm=fedavg C=1.5", "at most 1"),
    ("algorithm=localsgd C=0.5", "leave C out"),
    ("algorithm=fedavg J=0", "J=0: at least 1 local step"),
    ("algorithm=fedavg J=2.5", "could not be converted to Integer"),
    ("algorithm=fedavg sharding=classes N_c=11", "N_c=11: the dataset has 10 classes; choose N_c from 1 to 10"),
    ("algorithm=fedavg sharding=classes N_c=0", "at least 1 class"),
    ("algorithm=fedavg sharding=classes", "add N_c=1 to N_c=10"),
    ("algorithm=fedavg sharding=classes K=10 N_c=1", "the nearest that work: N_c=2 with this K"),
    ("algorithm=fedavg sharding=dirichlet sharding.alpha=-1", "sharding.alpha=-1: the concentration of sharding=dirichlet is from 0"),
    ("algorithm=fedavg sharding=dirichlet_classes sharding.alpha=0", "is from 1e-100 (lower is more skewed)"),
    ("algorithm=fedavg sharding=dirichlet_classes sharding.alpha=0.01", "or sharding.equal=true"),
    ("algorithm=fedavg sharding=quantity sharding.min_size=13", "choose sharding.min_size from 1 to 12, or K from 1 to 99"),
    ("algorithm=fedavg sharding=natural", "this dataset has no users of its own; choose sharding=iid"),
    ("algorithm=fedavg K=2000", "each client needs a sample and there are 1295; choose K from 1 to 1295"),
    ("algorithm=fedavg participation=all", "participation=all takes every client"),
    ("J=4", "algorithm=centralized has no J; leave it out"),
    ("K=2", "algorithm=centralized has no K; leave it out"),
    ("C=0.1", "algorithm=centralized has no C; leave it out"),
    ("epochs=2 rounds=3", "two budgets; give one of epochs, rounds and samples"),
    ("samples=100 rounds=3", "two budgets"),
    ("epochs=0", "the budget must be greater than 0"),
    ("epochs=nan", "the budget must be greater than 0"),
    ("rounds=-1", "the budget must be greater than 0"),
    ("optimizer.lr=-0.1", "optimizer.lr=-0.1: the learning rate must be greater than 0"),
    ("engine=graph device=cpu", "engine=graph: CUDA graphs need a CUDA device; choose engine=auto, loop, stacked or im2col"),
    ("optimizer.lr=nan", "the learning rate must be greater than 0"),
    ("optimizer.lr=inf", "the learning rate must be"),
    ("optimizer.weight_decay=-1", "must be 0 or more"),
    ("optimizer.momentum=1", "must be at least 0 and below 1"),
    ("optimizer.momentum=0 optimizer.nesterov=true", "needs optimizer.momentum above 0"),
    ("scheduler.warmup=1", "below 1"),
    ("scheduler=cosine scheduler.end=2", "at most 1"),
    ("scheduler=step scheduler.milestones=[0.5,1.5]", "fractions of the budget"),
    ("batch_size=0", "at least 1 sample"),
    ("seed=-1", "must be 0 or more"),
    ("precision=fp8", "choose fp32, tf32, bf16, fp16 or fp64"),
    ("engine=magic", "choose auto, loop, stacked, im2col, graph, graph-im2col or graph-loop"),
    ("device=tpu", "choose auto, cpu, cuda or cuda:N"),
    ("device=cuda:99", "CUDA devices; use device=auto or device=cpu"),
    ("threads=0", "1 to 1,024 are possible"),
    ("dataset.validation=1", "a fraction in [0, 1)"),
    ("gamma=0", "must be greater than 0"),
    ("algorithm=fedavg participation=skewed", "participation=skewed: needs a concentration; add gamma=0.5"),
    ("algorithm=fedavg participation=skewed gamma=-1", "must be greater than 0"),
    ("algorithm=fedavg participation.dropout=1", "participation.dropout=1.0: a probability in [0, 1) is needed"),
    ("algorithm=fedavg participation.dropout=-0.1", "a probability in [0, 1) is needed"),
    ("algorithm=fedavg participation=oort participation.dropout=nan", "a probability in [0, 1) is needed"),
    ("algorithm=localsgd participation.dropout=0.1", "algorithm=localsgd has workers; leave it out"),
    ("algorithm=fedavg local_steps=drift participation.dropout=0.1", "measures drift needs all ends of a round"),
    ("algorithm=fedavg participation=power_of_choice participation.d=9", "choose 10 to 100"),
    ("algorithm=fedavg participation=power_of_choice participation.d=101", "there are K=100 clients; choose 10 to 100"),
    ("algorithm=fedavg participation=power_of_choice participation.samples=0", "choose 1 to 1,000,000,000 samples"),
    ("algorithm=fedavg participation=afl participation.samples=100000000000000000000", "choose 1 to 1,000,000,000 samples"),
    ("algorithm=fedavg participation=fedcor participation.noise=1e200", "participation.noise=1e+200: 1e-50 to 1e50"),
    ("algorithm=fedavg sharding=quantity sharding.alpha=1e-310", "the concentration of sharding=quantity is from 1e-100"),
    ("algorithm=fedavg C=1 participation=skewed gamma=0.5", "participation=skewed: chooses 100 of 100 clients, which leaves no choice"),
    ("algorithm=ad_psgd participation=cyclic", "participation=cyclic: chooses 4 of 4 clients, which leaves no choice"),
    ("algorithm=fedavg participation=afl participation.alpha1=1", "participation.alpha1=1.0: a fraction of the clients in [0, 1)"),
    ("algorithm=fedavg participation=afl participation.alpha2=-1", "an inverse temperature of 0 or more"),
    ("algorithm=fedavg participation=afl participation.alpha3=1.5", "a fraction of the cohort in [0, 1]"),
    ("algorithm=fedavg participation=oort participation.epsilon=2", "participation.epsilon=2.0: a number in [0, 1] is needed"),
    ("algorithm=fedavg participation=oort participation.alpha=-1", "must be 0 or more"),
    ("algorithm=fedavg participation=fedcor participation.interval=1", "at least 2, as one round of each interval is uniform"),
    ("algorithm=fedavg participation=fedcor participation.warmup=0", "participation.warmup=0: at least 1 is needed"),
    ("algorithm=fedavg participation=fedcor participation.beta=0", "above 0 and at most 1"),
    ("algorithm=fedavg participation=fedcor participation.noise=0", "so that covariances can be inverted"),
    ("algorithm=fedavg participation=importance participation.mixing=0", "above 0, so that everyone can be drawn"),
    ("algorithm=fedavg participation=diurnal participation.period=0.5", "a day has at least 1 round"),
    (
        "algorithm=fedavg participation=cyclic participation.blocks=11",
        "blocks would have 9, and 10 take part in a round; choose at most 10",
    ),
    ("algorithm=fedavg participation=cyclic participation.turn=0", "lasts at least 1 round"),
    ("algorithm=fedavg participation=oort C=1", "participation=oort: chooses 100 of 100 clients, which leaves no choice"),
    ("algorithm=localsgd participation=power_of_choice", "which leaves no choice"),
    ("evaluation.points=0", "at least 1"),
    ("checkpoint.seconds=-1", "must be 0"),
    ("section=a/b", "letters, digits"),
    ("K=abc", "'abc' of type 'str' could not be converted to Integer"),
    ("batch_size=null", "batch_size"),
    ("foo=1", "Key 'foo' not in 'Config'; choose from dataset, model"),
    ("optimizer.foo=1", "Key 'foo' not in 'SGDM'; choose from name, lr, weight_decay, clip, momentum, nesterov"),
    ("algorithm=fedavgg", "did you mean algorithm=fedavg? There are a2cid2, ad_psgd,"),
    ("nothing/here=1", "nothing/here"),
    ("K=2,4", "K=2,4: several values are a sweep of many runs, which takes -m: "),
    ("dataset=cifar100 data=.", "put cifar-100-python.tar.gz"),
    ("data=missing", "data=missing: there is no such folder; make it first"),
    ("optimizer.lr=", "optimizer.lr"),
    ("algorithm.name=fedavg", "algorithm.name"),
    ("+foo=1", "no such key"),
    ("+optimizer.momentun=0.5", "optimizer.momentun=0.5: no such key; did you mean optimizer.momentum=0.5?"),
    ("+optimizer.foo=0.5", "optimizer.foo: no such key; choose from clip, lr, momentum"),
    ("algorithm=gossip algorithm.topology=moebius", "choose ring, exponential, directed_exponential, one_peer_exponential, torus, "),
    ("algorithm=gossip algorithm.topology=torus K=7", "rows and columns of at least 2 workers and 7 is prime; choose K=6 or K=8"),
    ("algorithm=a2cid2 algorithm.topology=one_peer_exponential", "no two workers meet; choose ring, exponential, torus, complete or star"),
    ("algorithm=a2cid2 algorithm.rate=0", "greater than 0 meetings for each gradient"),
    ("algorithm=hierarchical K=4 algorithm.blocks=3", "algorithm.blocks=3: must divide K=4 workers evenly; choose 1, 2, 4"),
    ("algorithm=hierarchical algorithm.J_b=0", "algorithm.J_b=0: at least 1 period"),
    ("algorithm=localsgd algorithm.momentum=forget", "choose keep, reset or average"),
    ("algorithm=gossip algorithm.momentum=average", "never averages all workers; leave it out"),
    ("algorithm=slowmo server.lr=0", "server.lr=0.0: the learning rate must be greater than 0"),
    ("algorithm=diloco server.momentum=1", "server.momentum=1.0: must be at least 0 and below 1"),
    ("algorithm=gossip server=slowmo", "algorithm=gossip ends a round without a mean, from which an outer optimizer could step"),
    ("algorithm=async_sgd server=nesterov", "leave server out"),
    ("algorithm=async_sgd algorithm.delay=-1", "algorithm.delay=-1.0: must be 0 seconds or more"),
    ("algorithm=async_sgd algorithm.power=nan", "algorithm.power=nan: must be 0"),
    ("algorithm=easgd algorithm.elasticity=0", "above 0 and at most 1"),
    ("algorithm=async_sgd C=0.5", "all workers take part in every round; leave C out"),
    ("speeds=stragglers speeds.speed=0", "a worker at speed 0 would never finish a step"),
    ("speeds=linear speeds.spread=1", "at 1 a worker would stand still"),
    ("speeds=lognormal speeds.sigma=-1", "from 0 to 5"),
    ("speeds.throughput=0", "greater than 0 samples a second"),
    (
        "algorithm=async_sgd speeds=stragglers speeds.speed=1e-7",
        "speeds.speed=1e-07: the slowest of K=4 workers is 1e+07 times as slow as the fastest; with algorithm=async_sgd at most "
        "1,000,000 times is allowed: choose speeds that differ less",
    ),
    ("algorithm=easgd speeds=stragglers speeds.speed=1e7", "speeds.speed=10000000.0: the slowest of K=4 workers is 1e+07 times"),
    ("algorithm=shat K=64 speeds=lognormal speeds.sigma=5", "speeds.sigma=5.0: the slowest of K=64 workers is"),
    ("algorithm=easgd speeds=linear speeds.spread=0.9999999", "speeds.spread=0.9999999: the slowest of K=4 workers is"),
    ("algorithm=async_sgd K=1 data_parallel=4", "leave it out, or choose algorithm=centralized"),
    ("algorithm=hierarchical local_steps=drift", "exchange models within a round, which hides how far they drift apart"),
    ("algorithm=localsgd data_parallel=4", "leave it out, or choose algorithm=centralized"),
    ("data_parallel=100", "each worker needs a sample of a batch; choose 1 to batch_size=64"),
    ("scheduler=large_batch batch_size=1024 scheduler.warmup=0.6", "the warm-up must end before the budget; choose a batch size below"),
    ("scheduler.scale_batch=cubic", "choose none, sqrt or linear"),
    ("optimizer.clip=0", "the largest norm of a gradient must be greater than 0"),
    ("optimizer=lars optimizer.trust=0", "must be greater than 0"),
    ("optimizer=adam optimizer.beta1=1", "must be at least 0 and below 1"),
    ("optimizer=lbfgs", "Available options in 'optimizer': adadelta; adagrad; adam;"),
    ("local_steps=linear", "algorithm=centralized has no J to choose; leave local_steps out"),
    ("algorithm=localsgd local_steps=linear rounds=5", "with local_steps=linear rounds differ in length"),
    ("algorithm=fedavg local_steps.spread=0.5 rounds=5", "with local_steps.spread rounds differ in length"),
    ("algorithm=localsgd local_steps.spread=1", "so that every client takes a step"),
    ("algorithm=localsgd local_steps=linear local_steps.start=9", "must be at most J=8, where the rule ends"),
    (
        "algorithm=localsgd local_steps=phases local_steps.numbers=[1]",
        "a number of steps, at least 1, is needed before each of the borders",
    ),
    ("algorithm=post_local local_steps.switch=2", "a fraction of the budget, from 0 to 1"),
    ("algorithm=localsgd local_steps=drift local_steps.low=0.9", "0 < low < high"),
    ("algorithm=async_sgd local_steps=linear", "workers differ by speeds=; leave local_steps out"),
    (
        "algorithm=async_sgd local_steps.spread=0.5",
        "local_steps.spread=0.5: in algorithm=async_sgd workers differ by speeds=; leave local_",
    ),
    ("local_steps.spread=0.5", "local_steps.spread=0.5: algorithm=centralized has no J to choose; leave local_steps.spread out"),
    (
        "algorithm=hierarchical algorithm.J_b=1 local_steps.spread=0.5",
        "local_steps.spread=0.5: workers of algorithm=hierarchical take all J steps of a period, to be averaged after it; "
        "leave local_steps.spread out",
    ),
    (
        "algorithm=post_local local_steps.at_step=10 samples=2560",
        "local_steps.at_step=10: the run ends after 10 steps of each worker, before the switch; choose at most 9, a larger budget",
    ),
    ("algorithm=hierarchical local_steps=post_local local_steps.at_step=10 samples=2560", "choose at most 9"),
    ("algorithm=localsgd K=1 noise_scale=true", "1 worker in a round has no other: take more"),
    ("algorithm=gossip local_steps=drift", "algorithm=gossip has no such rounds"),
    ("batch_size=100000", "there are 1295 training samples; choose 1 to 1295"),
    ("dataset.validation=0.9999", "no sample is left for training"),
    ("epochs=1e300", "at most 1,000,000,000"),
    ("data=???", "data"),
    ("hydra.job.chdir=true", "set outputs= instead"),
    ("-m optimizer.lr=interval(0,1)", "a grid takes lists"),
    ("-m algorithm=glob(x*)", "the grid is empty"),
    ("+sweep/track_a=localsgd", "a section is a sweep of many runs, which takes -m: "),
    ("-m +sweep/track_a=nothing", "Available options in 'sweep/track_a': asynchronous;"),
]


@pytest.mark.parametrize(("command", "says"), MISTAKES)
def test_a_mistake_is_one_line_before_any_training(command: str, says: str, program: Program, tmp_path: Path) -> None:
    result = program(*command.split(), cwd=tmp_path, environment={"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"})
    errors = [line for line in result.output.splitlines() if "downloading it" not in line and "still preparing" not in line]
    assert result.status == 2, result.output
    assert len(errors) == 1, result.output
    assert errors[0].startswith("error: ")
    assert says in errors[0]
    assert not (tmp_path / "outputs").exists()


def test_all_bad_points_of_a_sweep_are_named_and_nothing_is_trained(program: Program, tmp_path: Path) -> None:
    result = program("-m", "algorithm=fedavg", "K=0,10,2000", "J=0,1", "rounds=1", cwd=tmp_path)
    assert result.status == 2
    assert "5 of 6 points are not valid; nothing was trained" in result.output
    for point in ("K=0 J=0", "K=0 J=1", "K=10 J=0", "K=2000 J=0", "K=2000 J=1"):
        assert f"  {point}: " in result.output
    assert "  K=10 J=1: " not in result.output
    assert not (tmp_path / "outputs").exists()


def test_workers_that_are_too_slow_stop_a_grid_before_it_begins(program: Program, tmp_path: Path) -> None:
    """What speeds are drawn is known beforehand; and a method that does not count in ticks takes any."""
    speeds = ("speeds=stragglers", "speeds.speed=0.2,1e-7", "samples=500")
    result = program("-m", "algorithm=async_sgd,localsgd", *speeds, cwd=tmp_path)
    assert result.status == 2
    assert "1 of 4 points are not valid; nothing was trained" in result.output
    assert "  algorithm=async_sgd speeds.speed=1e-07: speeds.speed=1e-07: the slowest of K=4 workers is" in result.output
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("speed", ["1e-6", "1e6"])
def test_the_slowest_worker_that_is_allowed_runs(speed: str, program: Program, tmp_path: Path) -> None:
    result = program("algorithm=async_sgd", "speeds=stragglers", f"speeds.speed={speed}", "samples=500", cwd=tmp_path)
    assert result.status == 0, result.output


def test_the_grid_of_the_brief_composes_into_fifteen_runs(program: Program, tmp_path: Path) -> None:
    arguments = ["-m", "algorithm=localsgd", "K=2,4,8", "J=4,8,16,32,64", "epochs=1", "evaluation.points=1"]
    result = program(*arguments, cwd=tmp_path)
    assert result.status == 0, result.output
    assert "15 of 15 points finished" in result.output
    for K, J in itertools.product((2, 4, 8), (4, 8, 16, 32, 64)):
        assert f"K={K} J={J}" in result.output
    samples = {json.loads(path.read_text())["metrics"]["samples"] for path in tmp_path.rglob("summary.json")}
    assert samples == {1295}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--help", "optimizer"],
        ["--hydra-help"],
        ["--cfg", "job"],
        ["--info", "searchpath"],
        ["-sc", "query=bash"],
        ["epochs=1", "outputs=outputs"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_answers_without_importing_torch(arguments: list[str], program: Program, tmp_path: Path) -> None:
    program("epochs=1", cwd=tmp_path)
    script = f"""
import sys
from fl_hydra.app import main
sys.argv = ["train.py", *{arguments!r}]
try:
    main()
except SystemExit as ended:
    assert not ended.code
assert "torch" not in sys.modules, "torch was imported"
"""
    environment = {"COMP_LINE": "python train.py algorithm=", "COMP_POINT": "26", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(PROJECT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if arguments[0] == "epochs=1":
        assert "finished before" in done.stdout
    if arguments[0] == "-sc":
        assert "algorithm=fedavg" in done.stdout


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("README.md", "## Adding a model"),
        ("README.md", "## Adding a dataset"),
        ("README.md", "## Adding an algorithm"),
        ("docs/own-models.md", "## In the project"),
        ("docs/distributed.md", "## Choosing J while training"),
        ("docs/participation.md", "## Adding a scheme"),
    ],
)
def test_what_a_page_adds_runs_as_written(page: str, heading: str, tmp_path: Path) -> None:
    """The files of an example, at the places it names, then its command."""
    import shutil

    section = (PROJECT / page).read_text().split(heading)[1].split("\n## ")[0]
    blocks = re.findall(r"`([\w/]+\.(?:py|yaml))`:?\n\n```(?:python|yaml)\n(.*?)```", section, re.S)
    *code, last = [Path(name).suffix for name, _ in blocks]
    assert set(code) == {".py"} and last == ".yaml"
    for name in ("fl_hydra", "conf", "train.py"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, tmp_path / name)
    for name, content in blocks:
        (tmp_path / name).write_text(content)
    command = re.search(r"```sh\npython (train.py .*?)\n", section)
    assert command
    done = subprocess.run(
        [sys.executable, *command[1].split(), "samples=2000", "threads=1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout


def test_cifar100_prepared_file_has_the_fingerprint_of_its_content(data: Path) -> None:
    arrays = CIFAR100().load(data)
    assert arrays.fingerprint() == CIFAR100().info(data).fingerprint
