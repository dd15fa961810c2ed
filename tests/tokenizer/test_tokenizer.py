"""Tokenizers: tokens stand for bytes, and a file without bytes for its tokens is refused."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from rwkv_core import TokenizerError
from rwkv_core.tokenizer import Tokenizer, check_fits, load_tokenizer
from rwkv_core.tokenizer.byte_level import byte_alphabet

SHIPPED = Path(rwkv_core.__file__).parent / "data" / "tokenizer.json"


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return load_tokenizer(SHIPPED)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_byte_tokenizer(path)
    return load_tokenizer(path)


def test_byte_alphabet_is_the_librarys() -> None:
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back_from_its_tokens(shipped: Tokenizer, text: str) -> None:
    assert shipped.decode(shipped.encode(text)) == text


@given(data=st.binary())
def test_any_bytes_come_back_from_their_tokens(small: Tokenizer, data: bytes) -> None:
    assert small.to_bytes(small.encode_bytes(data)) == data


def test_text_in_bytes_is_encoded_as_text(shipped: Tokenizer) -> None:
    text = "It was a dark and stormy night"
    assert shipped.encode_bytes(text.encode()) == shipped.encode(text)


def test_character_of_several_tokens_decodes_whole_only_when_complete(small: Tokenizer) -> None:
    tokens = small.encode("\N{GRINNING FACE}")
    assert len(tokens) == 4
    assert [small.token_bytes(token) for token in tokens] == [b"\xf0", b"\x9f", b"\x98", b"\x80"]
    assert small.decode(tokens) == "\N{GRINNING FACE}"
    assert small.decode(tokens[:3]) == "\N{REPLACEMENT CHARACTER}"


def test_special_token_stands_for_its_name(small: Tokenizer) -> None:
    assert small.token_bytes(0) == b"<|endoftext|>"
    assert small.end_of_text == 0
    assert small.encode("a<|endoftext|>")[-1] == 0


def test_text_that_the_file_normalizes_is_still_encoded_byte_for_byte(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path / "plain.json")
    library = Library.from_file(str(tmp_path / "plain.json"))
    library.normalizer = normalizers.NFC()
    library.save(str(tmp_path / "nfc.json"))
    tokenizer = load_tokenizer(tmp_path / "nfc.json")
    decomposed = "e\N{COMBINING ACUTE ACCENT}".encode()
    assert tokenizer.to_bytes(tokenizer.encode(decomposed.decode())) != decomposed
    assert tokenizer.to_bytes(tokenizer.encode_bytes(decomposed)) == decomposed


def test_truncation_written_in_the_file_is_not_applied(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path / "plain.json")
    library = Library.from_file(str(tmp_path / "plain.json"))
    library.enable_truncation(4)
    library.save(str(tmp_path / "short.json"))
    assert len(load_tokenizer(tmp_path / "short.json").encode("x" * 50)) == 50


@pytest.mark.parametrize("token", [-1, 1_000_000])
def test_token_out_of_range_is_refused(small: Tokenizer, token: int) -> None:
    with pytest.raises(TokenizerError, match=f"found {token}, expected 0 to"):
        small.token_bytes(token)


def test_lone_surrogate_is_refused(small: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        small.encode("a\ud800")


def test_vocabulary_with_holes_gives_no_bytes_for_them(tmp_path: Path) -> None:
    library = Library(models.BPE(vocab={"a": 0, "b": 3}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel()
    library.decoder = decoders.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.n_vocab, tokenizer.holes) == (4, (1, 2))
    assert tokenizer.end_of_text is None  # token 0 is text here
    assert tokenizer.token_bytes(1) == b""


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"a": 1}', "'a'", "<html>", "\0\xff"])
def test_file_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match="a tokenizer's JSON file") as error:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert "\n" not in str(error.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="not a file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.Metaspace()])
def test_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path, decoder: object) -> None:
    library = Library(models.BPE(vocab={"a": 0}, merges=[]))
    if decoder:
        library.decoder = decoder
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="expected a byte-level tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_token_outside_the_byte_alphabet_is_refused(tmp_path: Path) -> None:
    library = Library(models.BPE(vocab={"a": 0, "\N{SNOWMAN}": 1}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel()
    library.decoder = decoders.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="not byte-level: token 1"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_byte_that_the_vocabulary_lacks_is_named(tmp_path: Path) -> None:
    library = Library(models.BPE(vocab={"a": 0}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("aa") == [0, 0]
    with pytest.raises(TokenizerError, match="no token for the byte 0x62"):
        tokenizer.encode("ab")
    with pytest.raises(TokenizerError, match="no token for the byte 0x62"):
        tokenizer.encode_bytes(b"ab")


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLIT = pre_tokenizers.Split(" ", "isolated")


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        pre_tokenizers.Whitespace(),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), BYTE_LEVEL]),
    ],
)
def test_tokenizer_that_would_drop_characters_is_refused(
    tmp_path: Path, pre_tokenizer: pre_tokenizers.PreTokenizer | None
) -> None:
    write_byte_tokenizer(tmp_path / "plain.json")
    content = json.loads((tmp_path / "plain.json").read_text())
    library = Library.from_str(json.dumps({**content, "pre_tokenizer": None}))
    if pre_tokenizer:
        library.pre_tokenizer = pre_tokenizer
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="which loses characters") as error:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        (normalizers.NFKC(), pre_tokenizers.ByteLevel(add_prefix_space=True)),
        (normalizers.BertNormalizer(), pre_tokenizers.Sequence([SPLIT, BYTE_LEVEL])),
        (normalizers.ByteLevel(), SPLIT),
    ],
)
def test_every_way_to_be_byte_level_is_accepted(
    tmp_path: Path,
    normalizer: normalizers.Normalizer,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
) -> None:
    write_byte_tokenizer(tmp_path / "plain.json")
    library = Library.from_file(str(tmp_path / "plain.json"))
    library.normalizer, library.pre_tokenizer = normalizer, pre_tokenizer
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode("in the end")).strip() == "in the end"


def test_only_a_tokenizer_larger_than_the_vocabulary_is_refused(small: Tokenizer) -> None:
    check_fits(small, small.n_vocab)
    check_fits(small, small.n_vocab + 100)
    with pytest.raises(TokenizerError, match=f"{small.n_vocab} tokens, the model knows"):
        check_fits(small, small.n_vocab - 1)


def nested(key: str, step: object) -> object:
    for _ in range(40):
        step = {"type": "Sequence", key: [step]}
    return step


def split(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
PLAIN_BPE = {"type": "BPE", "vocab": {"a": 0}, "merges": []}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Prepend", "prepend": ""}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}},
        {"normalizer": nested("normalizers", {"type": "NFC"})},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 30}},
        {"pre_tokenizer": nested("pretokenizers", LEVEL)},
        {"pre_tokenizer": split("(?:(?:a{1000}){1000}){100}")},
        {"pre_tokenizer": split("(" * 100_000)},
        {"pre_tokenizer": split("(")},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"pre_tokenizer": {"type": ["Digits"]}},
        {"pre_tokenizer": 5},
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}},
        {"model": {**PLAIN_BPE, "vocab": {"a": 30_000_000}}},
        {"model": {**PLAIN_BPE, "vocab": {"a": -1}}},
        {"model": {**PLAIN_BPE, "continuing_subword_prefix": "\xdf" * 20, "merges": [["a", "a"]]}},
        {"model": []},
        {"added_tokens": [{"id": 30_000_000, "content": "x"}]},
        {"added_tokens": [{"id": 300, "content": "x" * 2_000_000}]},
        {"added_tokens": {"id": 300}},
    ],
    ids=lambda change: f"{next(iter(change))}: {next(iter(change.values()))!s:.60}",
)
def test_a_file_that_would_overwhelm_the_library_is_refused_at_once(
    tmp_path: Path, change: dict[str, object]
) -> None:
    path = tmp_path / "tokenizer.json"
    write_byte_tokenizer(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = time.process_time()
    with pytest.raises(TokenizerError) as error:
        load_tokenizer(path)
    assert time.process_time() - before < 2
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)


def test_the_second_of_two_keys_does_not_hide_the_first(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    write_byte_tokenizer(path)
    bad = '{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},'
    path.write_text(path.read_text().replace("{", bad, 1))
    assert load_tokenizer(path).encode("a")


@pytest.mark.parametrize("start", ["{", "1 'a' 1\n"])
def test_a_file_of_gigabytes_is_not_read(tmp_path: Path, start: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(start)
    os.truncate(path, 2**40)
    with pytest.raises(TokenizerError, match="MiB, expected a tokenizer's file"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("(a+)+x"), LEVEL]}},
        {"model": {**PLAIN_BPE, "unk_token": "none of its tokens"}},
    ],
    ids=["a pattern that takes for ever", "an unknown token"],
)
def test_a_text_on_which_the_library_fails_is_an_error(
    tmp_path: Path, change: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokenizer.json"
    write_byte_tokenizer(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TokenizerError, match="cannot encode this text"):
        load_tokenizer(path).encode("a" * 40 + "\xdf")


def test_patterns_of_well_known_tokenizers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    write_byte_tokenizer(path)
    # Of Llama 3 and Qwen.
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    steps = {"type": "Sequence", "pretokenizers": [split(pattern), {**LEVEL, "use_regex": False}]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": steps}))
    tokenizer = load_tokenizer(path)
    assert tokenizer.decode(tokenizer.encode("It's 12345\n\n ß")) == "It's 12345\n\n ß"
