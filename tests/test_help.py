"""`--help`: every key is explained, once and in one place, and what is shown is what would be composed."""

from __future__ import annotations

import dataclasses

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fl_hydra.arguments import groups, keys
from fl_hydra.config import REGISTRIES, Checkpoint, Config, Evaluation, Tune
from fl_hydra.errors import UserError
from fl_hydra.help import help_text, meanings
from fl_hydra.options import read_option
from fl_hydra.paths import CONF
from fl_hydra.schema import register_schema
from fl_hydra.training.averages import SWA

PARTS = [Config, Evaluation, SWA, Checkpoint, Tune, *(part for registry in REGISTRIES for part in registry.values())]


@pytest.fixture(autouse=True)
def _screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.__module__}.{part.__name__}")
def test_every_field_says_what_it_means(part: type[object]) -> None:
    """In a sentence below it, or below the field that it overrides; `name` and what is nested say it by themselves."""
    nested = {"name", "evaluation", "swa", "checkpoint", "tune"}
    for field in dataclasses.fields(part):  # type: ignore[arg-type]
        if field.name not in nested:
            assert meanings(part).get(field.name, "").endswith("."), f"{part.__name__}.{field.name} needs a sentence below it"


def test_the_overview_fits_on_two_screens_and_leaves_no_key_out() -> None:
    lines = help_text().splitlines()
    assert len(lines) <= 2 * 50 and max(map(len, lines)) <= 120
    assert "schema" not in help_text()
    words = set(help_text().replace(",", " ").split())
    assert all(option in words for options in groups().values() for option in options)
    for key in keys() - {"evaluation", "swa", "checkpoint", "tune", "chosen"}:
        group, _, field = key.rpartition(".")
        assert field == "name" or key in words or (group in {*groups(), "evaluation", "swa"} and field in words), key


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("K", "K=null\n  Workers or clients"),
        ("evaluation.points", "evaluation.points=50\n"),
        ("checkpoint", "checkpoint.seconds=60.0\n"),
        ("optimizer.momentum", "0.9 in lars, sgdm; 0.0 in rmsprop, sgd"),
        ("speeds.throughput", "6400.0 in every option"),
        ("algorithm", "LocalSGD with a slow outer momentum"),
        ("algorithm=slowmo", "Also chooses: participation=all optimizer=sgdm scheduler=cosine server=slowmo"),
        ("algorithm=fedavg", "Defaults: K=100 C=0.1 J=4"),
        ("server=slowmo", "server.per_rate      true"),
        ("+sweep/track_a=localsgd", "Question: what do more workers"),
        ("search=localsgd", "+search=localsgd\n"),
    ],
)
def test_a_topic_is_told_in_full(topic: str, says: str) -> None:
    assert says in help_text([topic])


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("slowmo", "--help server=slowmo or --help algorithm=slowmo"),
        ("lr", "did you mean --help optimizer.lr or --help server.lr"),
        ("algorithm=fedavgg", "did you mean algorithm=fedavg?"),
        ("algorithm.name", "train.py --help lists them all"),
        ("hydra/launcher", "--hydra-help"),
    ],
)
def test_an_unknown_topic_is_one_line(topic: str, says: str) -> None:
    with pytest.raises(UserError, match=r"^(--help |algorithm=fedavgg)") as told:
        help_text([topic])
    assert says in str(told.value) and "\n" not in str(told.value)


def test_what_is_shown_of_an_option_is_what_is_composed() -> None:
    """Its values, for three options of each group, and the options that an algorithm chooses."""
    register_schema()
    with initialize_config_dir(str(CONF)):
        for n in range(3):
            chosen = {group: options[-1 - n % len(options)] for group, options in groups().items()}
            composed = OmegaConf.to_container(compose("config", [f"{group}={name}" for group, name in chosen.items()]))
            assert isinstance(composed, dict)
            for group, name in chosen.items():
                assert {key: value for key, value in composed[group].items() if key != "name"} == read_option(group, name).values
        for name in ("diloco", "post_local", "fedavg"):
            whole = compose("config", [f"algorithm={name}"], return_hydra_config=True).hydra.runtime.choices
            chooses = read_option("algorithm", name).chooses
            default = compose("config", ["algorithm=fedavg"], return_hydra_config=True).hydra.runtime.choices
            assert {group: whole[group] for group in groups()} == {group: default[group] for group in groups()} | chooses | {
                "algorithm": name
            }
