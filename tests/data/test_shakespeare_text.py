"""Shakespeare's text: roles, users, windows, and the sequences of Reddi et al."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fl_hydra.data.shakespeare_text import (
    BEGIN,
    END,
    LAST_LINE,
    LEAF_ALPHABET,
    PAD,
    SEQUENCE_ALPHABET,
    UNKNOWN,
    VOCABULARY,
    decode,
    divide,
    from_raw,
    sequences,
    split,
)
from fl_hydra.errors import UserError
from tests.support.etext import ERRORS, EXPECTED, PLAYS, VERONA, etext, texts


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


# Split


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


# Sequences


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
