"""A raw text in the layouts of the etext, its users, and LEAF's json of them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fl_hydra.data.shakespeare_text import FIRST_LINE, LEAF_ALPHABET, Windows, WindowSets, decode, from_raw
from tests.support.make import PROJECT

SHARED = Path(os.environ.get("FL_HYDRA_SHARED", PROJECT.parent / "shared")) / "data"
NOTICE = "<<THIS ELECTRONIC VERSION IS NOT SPEECH.\nSERVICE THAT CHARGES.>>"

VERONA = """
  VALENTINE. Cease to persuade, my loving Proteus:
    Home-keeping youth have ever homely wits.
  Proteus. Wilt thou be gone?   Sweet Valentine, adieu!

           Exit VALENTINE

    He after honour hunts, I after love;
  SPEED. Sir Proteus, save you!
    Saw you my master?
  VALENTINE. Were't not affection chains thy tender days
    To the sweet glances of thy honour'd love
  PROTEUS. But now he parted hence, to embark for Milan.
  A stage direction, which is neither.
    Twenty to one then he is shipp'd already,
"""
ERRORS = f"""
ACT I. SCENE 1
A hall in the DUKE'S palace

AEGEON. Proceed, Solinus, to procure my fall,
  And by the doom of death end woes and all.
DUKE. Merchant of Syracuse, plead no more;
  I am not partial to infringe our laws.
{NOTICE}
The enmity and discord: said by nobody.
AEGEON. Yet this my comfort: when your words are done,
  My woes end likewise with the evening sun.
ACT II. SCENE 1
The house of ANTIPHOLUS, said by nobody, however long it may go on about it and
what there may be to be seen of the furniture
and of the windows
DUKE. Well, Syracusian, say in brief the cause

  Why thou departed'st from thy native home,
"""
EXPECTED = {
    "THE_COMEDY_OF_ERRORS_AEGEON": "Proceed, Solinus, to procure my fall, And by the doom of death end woes and all. "
    "Yet this my comfort: when your words are done, My woes end likewise with the evening sun. ",
    "THE_COMEDY_OF_ERRORS_DUKE": "Merchant of Syracuse, plead no more; I am not partial to infringe our laws. "
    "Well, Syracusian, say in brief the cause Why thou departed'st from thy native home, ",
    "THE_TWO_GENTLEMEN_OF_VERONA_PROTEUS": "Wilt thou be gone? Sweet Valentine, adieu! Exit VALENTINE He after honour hunts, I after love; "
    "But now he parted hence, to embark for Milan. Twenty to one then he is shipp'd already, ",
    "THE_TWO_GENTLEMEN_OF_VERONA_VALENTINE": "Cease to persuade, my loving Proteus: Home-keeping youth have ever homely wits. "
    "Were't not affection chains thy tender days To the sweet glances of thy honour'd love ",
}


def etext(*works: tuple[str, str]) -> str:
    """A text that begins as the etext does, with these titles and plays after the sonnets."""
    sonnets = ("THE SONNETS", "\n                     1\n  From fairest creatures we desire increase,\n")
    return FIRST_LINE + "\n" + "".join(f"\n\n1609\n\n{title}\n\nby William Shakespeare\n{body}" for title, body in (sonnets, *works))


def texts(path: Path) -> dict[str, str]:
    corpus = from_raw(path)
    assert corpus.starts[0] == 0 and corpus.starts[-1] == len(corpus.characters)
    return {user: corpus.text(u) for u, user in enumerate(corpus.users)}


# Two roles of two plays, continuation lines, both layouts, both spellings of a name; SPEED has two lines only.
PLAYS = (("THE TWO GENTLEMEN OF VERONA", VERONA), ("THE COMEDY OF ERRORS", ERRORS))

Users = Mapping[str, list[tuple[str, str]]]


def user_data(users: Users) -> dict[str, Any]:
    return {user: {"x": [x for x, _ in windows], "y": [y for _, y in windows]} for user, windows in users.items()}


def as_leaf(written: Users, extra: int = 0, **other: Any) -> str:
    sizes = [len(windows) + extra for windows in written.values()]
    return json.dumps({"users": list(written), "num_samples": sizes, "user_data": user_data(written), **other})


def windows_of(text: str) -> list[tuple[str, str]]:
    return [(text[i : i + 80], text[i + 80]) for i in range(len(text) - 80)]


def strings(samples: WindowSets, windows: Windows) -> dict[str, list[tuple[str, str]]]:
    inputs, targets = samples.inputs(windows), samples.targets(windows)
    assert inputs.dtype == targets.dtype == np.uint8 and windows.starts.dtype == windows.users.dtype == np.int32
    found: dict[str, list[tuple[str, str]]] = {}
    for user, x, y in zip(windows.users, inputs, targets, strict=True):
        found.setdefault(samples.users[user], []).append((decode(x), decode(y[None])))
    return found


def make_texts(seed: int, lengths: tuple[int, ...] = (1500, 900, 1100)) -> dict[str, str]:
    draw = random.Random(seed)
    return {f"user{u}": "".join(draw.choices(LEAF_ALPHABET, k=length)) for u, length in enumerate(lengths)}


def write_sets(folder: Path, train: Users, test: Users, extra: int = 0) -> Path:
    for name, users, added in (("train", train, 0), ("test", test, extra)):
        (folder / name).mkdir(parents=True)
        (folder / name / f"all_data_niid_1_keep_0_{name}_9.json").write_text(as_leaf(users, added, hierarchies=["PLAY"] * len(users)))
    return folder


def leaf_split(users: Users) -> tuple[dict[str, list[tuple[str, str]]], dict[str, list[tuple[str, str]]]]:
    counts = {user: int(0.9 * len(windows)) for user, windows in users.items()}
    return {u: w[: counts[u]] for u, w in users.items()}, {u: w[counts[u] + 79 :] for u, w in users.items()}
