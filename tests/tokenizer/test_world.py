"""World's tokenizer: the vocabulary is read from its file, text is split by longest match."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rwkv_core
from rwkv_core import TokenizerError
from rwkv_core.tokenizer import load_tokenizer

WORDS = [
    "the",
    "th",
    " the",
    " t",
    "  ",
    "    ",
    "aa",
    "aaaaa",
    "\N{GRINNING FACE}",
    "ab\n",
    "'",
    "中文",
]
PIECES = [b"\xf0\x9f", b"\xe4\xb8", b"a\xff"]


def vocabulary() -> dict[int, bytes]:
    """All single bytes, as in the file of 2023-04-24, then some longer tokens and a hole."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [word.encode() for word in WORDS if len(word.encode()) > 1] + PIECES
    return {number + (number > 260): token for number, token in enumerate(tokens, 1)}


def lines(table: dict[int, bytes]) -> list[str]:
    """Write tokens like the published file: a str if the bytes are UTF-8."""

    def literal(data: bytes) -> str:
        try:
            return repr(data.decode())
        except UnicodeDecodeError:
            return repr(data)

    return [f"{number} {literal(data)} {len(data)}" for number, data in table.items()]


def write(path: Path, content: list[str]) -> Path:
    path.write_text("\n".join(content) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> rwkv_core.Tokenizer:
    path = tmp_path_factory.mktemp("world") / "any-name.txt"
    return load_tokenizer(write(path, lines(vocabulary())))


def longest_matches(data: bytes) -> list[int]:
    numbers, tokens = {token: number for number, token in vocabulary().items()}, []
    while data:
        start = max((data[:length] for length in range(1, 17) if data[:length] in numbers), key=len)
        tokens.append(numbers[start])
        data = data[len(start) :]
    return tokens


TEXT = st.lists(st.sampled_from([*WORDS, "t", "a", " ", "x"]) | st.characters(codec="utf-8"))


@given(pieces=TEXT)
def test_text_comes_back_from_its_tokens(world, pieces):
    text = "".join(pieces)
    assert world.decode(world.encode(text)) == text
    assert world.encode(text) == longest_matches(text.encode())


@given(pieces=st.lists(st.sampled_from(list(vocabulary().values())) | st.binary(max_size=3)))
def test_bytes_come_back_from_their_tokens(world, pieces):
    data = b"".join(pieces)
    assert world.to_bytes(world.encode_bytes(data)) == data
    assert world.encode_bytes(data) == longest_matches(data)


def test_the_end_of_a_text_is_token_0_which_has_no_bytes(world):
    table = vocabulary()
    assert (world.n_vocab, world.holes) == (max(table) + 1, (0, 261))
    assert world.end_of_text == 0
    assert world.token_bytes(0) == b"" and world.token_bytes(max(table)) == table[max(table)]
    with pytest.raises(TokenizerError, match="expected 0 to"):
        world.token_bytes(world.n_vocab)


def test_a_lone_surrogate_is_refused(world):
    with pytest.raises(TokenizerError, match="surrogate"):
        world.encode("a\ud800")


def test_a_byte_that_the_vocabulary_lacks_is_named(tmp_path):
    world = load_tokenizer(write(tmp_path / "v.txt", ["1 'a' 1", "2 'bc' 2"]))
    assert world.encode("abca") == [1, 2, 1]
    for text in ("ab", "b", "abb"):
        with pytest.raises(TokenizerError, match="no token for the byte 0x62"):
            world.encode(text)


def test_other_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "v.txt").write_bytes(b"\xef\xbb\xbf1 'a' 1\r\n2 b'\\xff' 1\r\n")
    assert load_tokenizer(tmp_path / "v.txt").encode_bytes(b"a\xff") == [1, 2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "not a number"),
        ("2", "not a number"),
        ("2 'b'", "not a number"),
        ("2 b 1", "not a number"),
        ("-2 'b' 1", "not a number"),
        ("2 __import__('os') 1", "not a number"),
        ("2 ['b'] 1", "not a number"),
        ("2 'b' + 'c' 2", "not a literal"),
        ("2 'b', 'c' 2", "not a literal"),
        ("2 'b'.upper() + 'c' 2", "not a literal"),
        ("2 '\\xz' 1", "not a literal"),
        ("2 '\\d' 2", "not a literal"),
        ("2 '\\ud800' 3", "not a literal"),
        ("2 b'\N{LATIN SMALL LETTER E WITH ACUTE}' 2", "not a literal"),
        ("2 'bc' 1", "found 2 bytes, expected 1"),
        ("2 '\N{LATIN SMALL LETTER E WITH ACUTE}' 1", "found 2 bytes, expected 1"),
        ("2 '' 0", "at least one"),
        ("0 'b' 1", "found token 0"),
        ("65536 'b' 1", "found token 65536"),
        ("1 'b' 1", "came before"),
        ("2 'a' 1", "came before"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, reason):
    path = write(tmp_path / "v.txt", ["1 'a' 1", line, "3 'c' 1"])
    with pytest.raises(TokenizerError) as error:
        load_tokenizer(path)
    assert f"{path}, line 2: " in str(error.value) and reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "v.txt").write_bytes(b"1 'a' 1\n\xff\xfe")
    with pytest.raises(TokenizerError, match="not UTF-8 at byte 8"):
        load_tokenizer(tmp_path / "v.txt")


@given(content=st.binary(max_size=40))
def test_any_content_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(b"1 'a' 1\n2 " + content)
    try:
        load_tokenizer(path)
    except TokenizerError as error:
        assert "\n" not in str(error)
