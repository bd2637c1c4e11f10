"""Shakespeare's text: LEAF's users, windows, split and json, and the sequences of Reddi et al."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_hydra.data import shakespeare_text
from fl_hydra.data.shakespeare_text import (
    ADDRESSES,
    BEGIN,
    END,
    FIRST_LINE,
    LAST_LINE,
    LAST_WORDS,
    LEAF_ALPHABET,
    PAD,
    SEQUENCE_ALPHABET,
    UNKNOWN,
    VOCABULARY,
    Windows,
    WindowSets,
    decode,
    divide,
    download,
    find,
    from_json,
    from_raw,
    read,
    sequences,
    split,
)
from fl_hydra.errors import UserError

SHARED = Path(os.environ.get("FL_HYDRA_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
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


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_raw(*works: tuple[str, str]) -> Path:
        path = tmp_path / "raw_data.txt"
        path.write_text(etext(*works))
        return path

    return write_raw


def texts(path: Path) -> dict[str, str]:
    corpus = from_raw(path)
    assert corpus.starts[0] == 0 and corpus.starts[-1] == len(corpus.characters)
    return {user: corpus.text(u) for u, user in enumerate(corpus.users)}


# Two roles of two plays, continuation lines, both layouts, both spellings of a name; SPEED has two lines only.
PLAYS = (("THE TWO GENTLEMEN OF VERONA", VERONA), ("THE COMEDY OF ERRORS", ERRORS))


def test_the_texts_of_roles_are_what_a_reader_would_write_down(write: Callable[..., Path]) -> None:
    assert texts(write(*PLAYS)) == EXPECTED
    assert list(EXPECTED) == sorted(EXPECTED), "and users are in order"


def test_line_ends_do_not_matter(write: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "crlf.txt"
    path.write_bytes(b"\xef\xbb\xbf" + write(*PLAYS).read_bytes().replace(b"\n", b"\r\n"))
    assert texts(path) == EXPECTED


def test_the_layout_belongs_to_the_comedy_of_errors_alone(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no play was found"):
        from_raw(write(("THE TRAGEDY OF ERRORS", ERRORS)))


def test_the_first_work_is_never_read(write: Callable[..., Path]) -> None:
    path = write(PLAYS[1])
    path.write_text(path.read_text().replace("  From fairest creatures we desire increase,\n", VERONA))
    assert texts(path) == {user: text for user, text in EXPECTED.items() if "ERRORS" in user}


def test_a_title_may_stand_two_to_seven_lines_above_its_author(write: Callable[..., Path]) -> None:
    for blank in range(1, 7):
        path = write()
        path.write_text(
            etext() + f"\nALL'S WELL, THAT ENDS{chr(10) * (blank + 1)}by William Shakespeare\n{VERONA}".replace("\n\nby", "\nwritten\nby")
        )
        assert list(texts(path)) == ["ALL_S_WELL__THAT_ENDS_PROTEUS", "ALL_S_WELL__THAT_ENDS_VALENTINE"]


def test_a_play_of_one_role_is_left_out(write: Callable[..., Path]) -> None:
    monologue = "  ALONE. One line that is long enough to be a text of its own, and so is\n    another one of\n    his many lines.\n" * 3
    assert texts(write(("A MONOLOGUE", monologue), *PLAYS)) == EXPECTED


def test_three_lines_and_81_characters_make_a_user(write: Callable[..., Path]) -> None:
    def play(lines: int, length: int) -> tuple[str, str]:
        own = ["a" * (length - 2 * lines + 1), *["b"] * (lines - 1)]  # joined and ended by spaces: `length` characters
        return "PLAY", "  OTHER. Hm.\n  ROLE. " + "\n    ".join(own) + "\n"

    assert texts(write(play(3, 81))) == {"PLAY_ROLE": "a" * 76 + " b b "}
    assert from_raw(write(play(3, 81))).window_counts().tolist() == [1]
    for lines, length in ((3, 80), (2, 200)):
        with pytest.raises(UserError, match="no role speaks more than 80 characters"):
            from_raw(write(play(lines, length)))


def test_users_of_one_name_are_one(write: Callable[..., Path]) -> None:
    twice = texts(write(PLAYS[0], PLAYS[0]))
    assert twice == {user: EXPECTED[user] * 2 for user in EXPECTED if "VERONA" in user}


def test_a_text_that_is_cut_off_gives_what_is_there(write: Callable[..., Path]) -> None:
    path = write(*PLAYS)
    path.write_text(path.read_text()[: path.read_text().index("glances of thy")])
    assert texts(path) == {  # PROTEUS has not said enough yet
        "THE_TWO_GENTLEMEN_OF_VERONA_PROTEUS": "Wilt thou be gone? Sweet Valentine, adieu! Exit VALENTINE "
        "He after honour hunts, I after love; ",
        "THE_TWO_GENTLEMEN_OF_VERONA_VALENTINE": "Cease to persuade, my loving Proteus: Home-keeping youth have ever homely wits. "
        "Were't not affection chains thy tender days To the sweet ",
    }


def test_nothing_is_read_beyond_the_line_where_the_plays_end(write: Callable[..., Path]) -> None:
    path = write(PLAYS[0])
    lines = path.read_text().splitlines()
    filled = [*lines, *[""] * (LAST_LINE - len(lines)), "    The last line.", "    Beyond the last."]
    assert filled[124_196] == "    The last line.", "LEAF counts to 124195 after having left out the first line"
    path.write_text("\n".join(filled))
    assert texts(path)["THE_TWO_GENTLEMEN_OF_VERONA_PROTEUS"] == EXPECTED["THE_TWO_GENTLEMEN_OF_VERONA_PROTEUS"] + "The last line. "


def test_the_alphabets() -> None:
    assert len(LEAF_ALPHABET) == len(set(LEAF_ALPHABET)) == 80
    assert sorted(LEAF_ALPHABET) == list(LEAF_ALPHABET)
    assert len(SEQUENCE_ALPHABET) == len(set(SEQUENCE_ALPHABET)) == 86
    assert (PAD, UNKNOWN, BEGIN, END, VOCABULARY) == (0, 87, 88, 89, 90)
    assert decode(np.arange(80, dtype=np.uint8)) == LEAF_ALPHABET


# ------------------------------------------------------------------------------------------------------------------- split


@pytest.mark.parametrize(("numerator", "denominator"), [(9, 10), (4, 5)])
def test_the_split_by_its_definition(numerator: int, denominator: int) -> None:
    for n in range(1, 201):
        train_count, test_start = split(n, numerator / denominator)
        assert train_count == (1 if n == 2 else max(1, n * numerator // denominator))
        last_target, first_input = train_count - 1 + 80, test_start
        assert first_input == last_target, "the test text begins with the last character of the training text, and no earlier"


def test_users_without_a_test_window_or_with_too_few_windows_are_left_out(write: Callable[..., Path]) -> None:
    play = "".join(f"  {role}. One\n    two\n    {'x' * (n + 80 - 9)}\n" for role, n in (("A", 783), ("B", 790), ("C", 1000), ("D", 1)))
    corpus = from_raw(write(("PLAY", play)))
    assert corpus.window_counts().tolist() == [783, 790, 1000, 1]
    samples = divide(corpus)  # 783: 704 and 79 and none; 790: 711 and 79 and none; 1000: 900, 79, 21
    assert samples.users == ("PLAY_C",)
    assert (len(samples.train), len(samples.test)) == (900, 21)
    assert divide(corpus, fraction=0.8, minimum=790).users == ("PLAY_B", "PLAY_C")
    with pytest.raises(UserError, match=r"none of the 4 users has 1001 windows .* \(the most any has is 1000\)"):
        divide(corpus, minimum=1001)
    with pytest.raises(UserError, match="between 0 and 1 is needed"):
        divide(corpus, fraction=1)


# -------------------------------------------------------------------------------------------------------------------- json

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


@pytest.mark.parametrize("extra", [0, 79])
def test_sets_that_leaf_has_split(tmp_path: Path, extra: int) -> None:
    """LEAF's script counts the 79 windows that it leaves out as test samples; files that were set right are read too."""
    written = make_texts(0)
    train, test = leaf_split({user: windows_of(text) for user, text in reversed(written.items())})
    samples = from_json(write_sets(tmp_path, train, test, extra))
    assert samples.users == ("user0", "user1", "user2")
    assert strings(samples, samples.train) == train
    assert strings(samples, samples.test) == test
    assert decode(samples.characters) == "".join(written.values()), "every character is stored once"


def test_the_raw_text_and_both_kinds_of_json_give_the_same(tmp_path: Path, write: Callable[..., Path]) -> None:
    speech = "\n    ".join(f"line {i} of so many that there is a test set, {i * i}" for i in range(40))
    raw = write(("PLAY", f"  B. {speech}\n  C. Hm.\n  A. {speech[::-1].replace(chr(10), '')}\n    a\n    b\n"))
    by_user = {user: windows_of(text) for user, text in texts(raw).items()}
    assert len(by_user) == 2
    (tmp_path / "all_data").mkdir()
    (tmp_path / "all_data" / "all_data.json").write_text(as_leaf(by_user))
    split_folder = write_sets(tmp_path / "split", *leaf_split(by_user), extra=79)
    expected = read(raw)
    assert len(expected.test) > 0
    for path in (tmp_path / "all_data", tmp_path / "all_data" / "all_data.json", tmp_path, split_folder):
        samples = read(path)
        assert samples.users == expected.users
        np.testing.assert_array_equal(samples.characters, expected.characters)
        for name in ("train", "test"):
            np.testing.assert_array_equal(getattr(samples, name).starts, getattr(expected, name).starts)
            np.testing.assert_array_equal(getattr(samples, name).users, getattr(expected, name).users)


def test_windows_in_any_order(tmp_path: Path) -> None:
    """LEAF's iid sampling: windows of all roles, drawn without order, for users that are numbers; the split goes by position."""
    pool = [window for text in make_texts(1).values() for window in windows_of(text)]
    random.Random(2).shuffle(pool)
    users = {"0": pool[:1000], "1": pool[1000:1900], "10": pool[1900:2010]}
    path = tmp_path / "all_data_iid_01_1.json"
    path.write_text(as_leaf(users))
    samples = from_json(path)
    assert samples.users == ("0", "1")
    assert strings(samples, samples.train) == {"0": users["0"][:900], "1": users["1"][:810]}
    assert strings(samples, samples.test) == {"0": users["0"][979:], "1": users["1"][889:]}


def test_gaps_start_afresh_and_what_follows_is_shared(tmp_path: Path) -> None:
    windows = windows_of(make_texts(3)["user0"])
    train, test = windows[:5] + windows[7:10] + windows[3:4], windows[700:702]
    samples = from_json(write_sets(tmp_path, {"a": train}, {"a": test}))
    assert strings(samples, samples.train) == {"a": train}
    assert strings(samples, samples.test) == {"a": test}
    assert len(samples.characters) in ((85 + 83 + 81) + 82, (85 + 83 + 81) + 81), "the last of one set may be the first of the other"


def test_a_window_that_overlaps_but_for_its_target_starts_afresh(tmp_path: Path) -> None:
    (x, _), second = windows_of("a" * 40 + "b" * 42)
    samples = from_json(write_sets(tmp_path, {"a": [(x, "z"), second]}, {"a": [second]}))
    assert strings(samples, samples.train) == {"a": [(x, "z"), second]}


def test_the_split_by_user(tmp_path: Path) -> None:
    written = {user: windows_of(text) for user, text in make_texts(4).items()}
    train, test = {u: written[u] for u in ("user2", "user0")}, {"user1": written["user1"]}
    samples = from_json(write_sets(tmp_path, train, test))
    assert samples.users == ("user0", "user1", "user2")
    assert strings(samples, samples.train) == train
    assert strings(samples, samples.test) == test


def test_users_in_several_files(tmp_path: Path) -> None:
    written = {user: windows_of(text) for user, text in make_texts(5).items()}
    for i, user in enumerate(reversed(written)):
        (tmp_path / f"all_data_{i}.json").write_text(as_leaf({user: written[user]}))
    assert from_json(tmp_path).users == tuple(written)
    assert from_json(tmp_path, minimum=1000).users == ("user0", "user2")
    (tmp_path / "all_data_3.json").write_text(as_leaf({"user1": written["user1"]}))
    with pytest.raises(UserError, match=r"all_data_3\.json: the user user1 is there twice, or in another file too"):
        from_json(tmp_path)


def test_empty_entries_of_dropped_users_are_nothing(tmp_path: Path) -> None:
    written = {user: windows_of(text) for user, text in make_texts(6).items()}
    path = tmp_path / "all_data.json"
    path.write_text(as_leaf(written, user_data={**user_data(written), "dropped": {"x": [], "y": []}}))
    assert from_json(path).users == tuple(written)


# ------------------------------------------------------------------------------------------------------------------ errors


def one_line(error: pytest.ExceptionInfo[UserError]) -> None:
    assert "\n" not in str(error.value)
    assert ";" in str(error.value), "what was wrong; what to do"


GOOD = windows_of(make_texts(7)["user0"])[:3]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (as_leaf({"u": GOOD})[:-40], "is truncated or corrupted"),
        ("\x80\x81", "is truncated or corrupted"),
        ("[1, 2]", "has no list 'users'"),
        ('{"users": ["u"], "user_data": {}}', "has no list 'num_samples'"),
        ('{"users": ["u"], "num_samples": [3]}', "has no dictionary 'user_data'"),
        (as_leaf({"u": GOOD}, users=[3]), "its users are not all names"),
        (as_leaf({"u": GOOD}, users=["u", "v"]), "it names 2 users, but gives num_samples of 1"),
        (as_leaf({"u": GOOD}, users=["v"]), "the user v is named twice, or has no user_data"),
        (as_leaf({"u": GOOD}, users=["u", "u"], num_samples=[3, 3]), "the user u is named twice"),
        (as_leaf({"u": GOOD}, num_samples=[4]), "num_samples of the user u is 4, but its user_data holds 3"),
        (as_leaf({"u": GOOD}, extra=79), "num_samples of the user u is 82, but its user_data holds 3"),
        (as_leaf({"u": GOOD}, users=[], num_samples=[]), "user_data holds u, which is none of its users"),
        (as_leaf({"u": GOOD}, user_data={"u": [1]}), "user_data of u has no lists x and y"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": ["a" * 80], "y": []}}), "user_data of u has 1 x, but 0 y"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": [[0.5] * 784], "y": [3]}}), "another task of LEAF: x of u holds a list"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": [["12", "a tweet"]], "y": ["0"]}}), "another task of LEAF: x of u holds a list"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": ["a.png"], "y": [1]}}), "x of u holds a string of 5, where strings of 80 characters"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": ["a" * 80], "y": [1]}}), "y of u holds a int, where strings of 1 character are needed"),
        (as_leaf({"u": GOOD}, user_data={"u": {"x": ["a" * 80], "y": ["ab"]}}), "y of u holds a string of 2"),
        (as_leaf({"u": [("é" * 80, "a")]}), "x of u holds 'é', which is none of the 80 characters"),
        (as_leaf({"u": [("a" * 80, "“")]}), "y of u holds '“', which is none of the 80 characters"),
        (as_leaf({"u": [("a" * 80, "{")]}), "y of u holds '{', which is none of the 80 characters"),
        (as_leaf({}), "holds no window"),
        (as_leaf({"u": []}), "holds no window"),
        (as_leaf({"u": GOOD}), "none of the 1 users has"),
    ],
)
def test_json_that_is_no_good(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "all_data.json"
    path.write_bytes(content.encode("latin-1") if content == "\x80\x81" else content.encode())
    with pytest.raises(UserError, match=re.escape(says)) as error:
        from_json(path)
    one_line(error)
    assert str(path) in str(error.value) or "none of the 1 users" in says


def test_sets_that_are_not_both_there(tmp_path: Path) -> None:
    folder = write_sets(tmp_path, {"u": GOOD}, {"u": GOOD})
    file = folder / "train" / "all_data_niid_1_keep_0_train_9.json"
    for half in (file, folder / "train"):
        with pytest.raises(UserError, match=f"is one of two sets; name the folder .* {re.escape(str(folder))}$") as error:
            from_json(half)
        one_line(error)
    (folder / "test" / "all_data_niid_1_keep_0_test_9.json").write_text(as_leaf({"u": []}))
    with pytest.raises(UserError, match="test holds no window") as error:
        from_json(folder)
    one_line(error)
    (folder / "test" / "all_data_niid_1_keep_0_test_9.json").unlink()
    with pytest.raises(UserError, match=r"has no test/\*.json beside the other set") as error:
        from_json(folder)
    one_line(error)
    file.unlink()
    for missing, says in ((folder, "holds neither"), (folder / "nothing.json", "no such file or folder")):
        with pytest.raises(UserError, match=says) as error:
            from_json(missing)
        one_line(error)


def test_texts_that_are_no_good(write: Callable[..., Path], tmp_path: Path) -> None:
    def refused(path: Path, says: str, reader: Callable[[Path], object] = from_raw) -> None:
        with pytest.raises(UserError, match=re.escape(says)) as error:
            reader(path)
        one_line(error)
        assert str(path) in str(error.value)

    path = write(*PLAYS)
    content = path.read_text()
    path.write_text("The Project Gutenberg EBook of the Complete Works\n" + content)
    refused(path, "is another text")
    refused(path, "is another text", sequences)
    path.write_bytes(b"")
    refused(path, "is another text")
    path.write_text(content[: content.index("VALENTINE")])
    refused(path, "no play was found")
    path.write_text(content[: content.index("THE TWO")])
    refused(path, "no play was found")
    path.write_text(content.replace("my loving", "my {loving}"))
    refused(path, "the text of THE_TWO_GENTLEMEN_OF_VERONA_VALENTINE holds '{'")
    path.write_text(content.replace("my loving", "my “loving”"), encoding="utf-8")
    refused(path, "the text of THE_TWO_GENTLEMEN_OF_VERONA_VALENTINE holds '“'")
    path.write_text(content[: content.index("  SPEED")].replace("VALENTINE. Cease", "LAUNCE. Cease"))
    refused(path, "no role speaks twice", sequences)
    refused(tmp_path / "nothing.txt", "no such file")
    refused(tmp_path, "cannot be read")
    refused(tmp_path, "has no borders of speeches", sequences)


# --------------------------------------------------------------------------------------------------------------- sequences


def words(tokens: np.ndarray) -> str:
    """Tokens as text, with <, >, . and ? for begin, end, padding and unknown."""
    return "".join({PAD: ".", UNKNOWN: "?", BEGIN: "<", END: ">"}.get(t) or SEQUENCE_ALPHABET[t - 1] for t in tokens.tolist())


def test_sequences_are_speeches_with_borders_cut_in_pieces_of_81(write: Callable[..., Path]) -> None:
    long = "b" * 50 + "\n    " + "c" * 40
    play = f"  A. First}}\n    line\n  B. {'d' * 79}\n    \n  A. {long}\n  B. {'e' * 79}\n  C. once\n  A. Third\n"
    made = sequences(write(("PLAY", play)))
    assert made.users == ("PLAY_A", "PLAY_B")
    assert made.train.tokens.dtype == np.uint8 and made.train.users.dtype == np.int32
    assert [words(row) for row in made.train.tokens] == [
        "<First?\nline>" + "." * 68,
        "<" + "b" * 50 + "\n" + "c" * 29,
        "c" * 11 + ">" + "." * 69,
        "<" + "d" * 79 + "\n",
        ">" + "." * 80,
    ]
    assert made.train.users.tolist() == [0, 0, 0, 1, 1]
    assert [words(row) for row in made.test.tokens] == ["<Third>" + "." * 74, "<" + "e" * 79 + ">"]
    assert made.test.users.tolist() == [0, 1]


@pytest.mark.parametrize(("speeches", "train"), [(2, 1), (3, 2), (4, 3), (5, 4), (9, 7), (10, 8)])
def test_the_first_80_percent_of_speeches_are_for_training(write: Callable[..., Path], speeches: int, train: int) -> None:
    play = "".join(f"  A. Speech {i}.\n" for i in range(speeches)) + "  B. Hm.\n"
    made = sequences(write(("PLAY", play)))
    found = [words(row).strip("<>.") for part in (made.train, made.test) for row in part.tokens]
    assert found == [f"Speech {i}" for i in range(speeches)]
    assert len(made.train.tokens) == train


# ---------------------------------------------------------------------------------------------------------------- download


def whole() -> str:
    start = etext(*PLAYS)
    return start + "\n" * (LAST_LINE + 200 - start.count("\n")) + LAST_WORDS + "\n\n\n"


def archive(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("read.me", "x" * 9999)
        file.writestr("small.txt", "x")
        file.writestr("100.txt", text)
    return buffer.getvalue()


def test_a_download_is_unpacked_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served.zip"
    served.write_bytes(archive(whole()))
    monkeypatch.setattr(shakespeare_text, "ADDRESSES", ((tmp_path / "moved.zip").as_uri(), served.as_uri()))
    root = tmp_path / "data"
    assert find(root) == root / "shakespeare" / "raw_data.txt"
    assert texts(find(root)) == EXPECTED
    assert [path.name for path in (root / "shakespeare").iterdir()] == ["raw_data.txt"]
    served.unlink()
    assert find(root) == root / "shakespeare" / "raw_data.txt", "without a second download"


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str, timeout: float) -> None:
        assert address in ADDRESSES and 0 < timeout <= 60
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=r"could not be downloaded .*Name or service.*; put 1994-01-100.zip .* raw_data.txt, into") as error:
        find(tmp_path)
    one_line(error)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "1994-01-100.zip").write_bytes(archive(whole()))
    assert texts(find(tmp_path)) == EXPECTED, "an archive that was put there is as good"


@pytest.mark.parametrize(
    ("served", "says"),
    [
        (b"<html>not found</html>", "it holds no text, or is truncated"),
        (archive(whole())[:-100], "it holds no text, or is truncated"),
        (archive("The Project Gutenberg EBook\n" + whole()), "does not begin with"),
        (archive(whole()[:-70]), "is cut off after"),
        (archive(etext(*PLAYS) + LAST_WORDS), "is cut off after"),
    ],
)
def test_what_is_not_the_whole_etext_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: bytes, says: str) -> None:
    (tmp_path / "served.zip").write_bytes(served)
    monkeypatch.setattr(shakespeare_text, "ADDRESSES", ((tmp_path / "served.zip").as_uri(),))
    with pytest.raises(UserError, match=says) as error:
        download(tmp_path / "data")
    one_line(error)
    assert not (tmp_path / "data").exists()


def test_where_the_text_is_looked_for(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shakespeare_text, "download", lambda root: root / "downloaded")
    root = tmp_path / "data"
    assert find(root) == root / "downloaded"
    folder = write_sets(root / "shakespeare", {"u": GOOD}, {"u": GOOD})
    assert find(root) == folder
    raw = write(*PLAYS)
    (folder / "raw_data.txt").write_bytes(raw.read_bytes())
    assert find(root) == folder / "raw_data.txt"
    assert find(root, raw) == raw
    assert find(root, str(raw.parent)) == raw
    assert find(root, folder / "train") == folder / "train"
    with pytest.raises(UserError, match="no such file or folder") as error:
        find(root, tmp_path / "nothing")
    one_line(error)


# ------------------------------------------------------------------------------------------------------------ the real text


@pytest.fixture
def real(tmp_path: Path) -> Path:
    packed = SHARED / "shakespeare" / "raw_data.txt.gz"
    if not packed.exists():
        pytest.skip(f"needs the real text, which is not in {SHARED} (set FL_HYDRA_SHARED to the folder above data)")
    path = tmp_path / "real.txt"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def test_the_real_text(real: Path) -> None:
    """Numbers and digest are of texts that LEAF's own scripts made of the same file, and of LEAF's rule for the split."""
    corpus = from_raw(real)
    counts = corpus.window_counts()
    assert (len(corpus.users), counts.sum(), (counts >= 2000).sum()) == (639, 2_245_559, 230)
    digest = hashlib.sha256()
    for u, (user, n) in enumerate(zip(corpus.users, counts.tolist(), strict=True)):
        train_count, test_start = split(n)
        digest.update(f"{user}\0{corpus.text(u)}\0{train_count}\0{test_start}\n".encode())
    assert digest.hexdigest() == "8c1f7a57b41829a20b48ab744420967f8c198e3dd9b307728fd5260a5a65aa96"


def test_sequences_of_the_real_text(real: Path) -> None:
    made = sequences(real)
    for part in (made.train, made.test):
        assert np.unique(part.users).tolist() == list(range(len(made.users))), "every user is in both sets"
        assert (part.tokens == BEGIN).sum() == (part.tokens == END).sum() > 0
        assert (part.tokens == UNKNOWN).mean() < 1e-4
        assert not (part.tokens[:, 0] == PAD).any(), "no piece is padding only"
