"""World's own vocabulary, read and cut by rwkv-core and by the `rwkv` package that it ships in."""

from pathlib import Path

import pytest

from rwkv_core.tokenizer import load_tokenizer

package = pytest.importorskip("rwkv.rwkv_tokenizer")
PATH = Path(package.__file__).with_name("rwkv_vocab_v20230424.txt")


def test_both_cut_text_and_bytes_alike():
    theirs, ours = package.TRIE_TOKENIZER(str(PATH)), load_tokenizer(PATH)
    assert (ours.n_vocab, ours.holes) == (65530, (0,))
    data = Path(__file__).read_bytes() + PATH.read_bytes()[:50_000] + bytes(range(256)) * 2
    data += "中文 Ünïcode \N{GRINNING FACE}  \t\n".encode() * 9
    assert ours.encode_bytes(data) == theirs.encodeBytes(data)
