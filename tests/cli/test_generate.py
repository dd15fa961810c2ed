"""`rwkv-core generate`, run in this process on a small random model."""

import io
import json
import re
import signal
import sys
from types import SimpleNamespace

import pytest

import rwkv_core
from rwkv_core import bundled
from rwkv_core.cli import main
from rwkv_core.cli.sampling_arguments import unescape

pytestmark = pytest.mark.needs_backend


@pytest.fixture
def generate(small_model, backend, capsys):
    """Run the command. Return its status, stdout and stderr."""

    def run(*arguments):
        status = main(["generate", *arguments, "-m", str(small_model), "-b", backend])
        return status, *capsys.readouterr()

    return run


def test_prints_the_continuation_and_a_newline(generate, small_model, backend):
    status, out, err = generate("the cat", "-n", "12", "--seed", "3")
    rwkv = rwkv_core.RWKV(small_model, backend)
    rwkv.load_context("the cat")
    assert (status, out) == (0, rwkv.generate(12, seed=3).text + "\n")
    assert err == f"model: {small_model}  backend: {backend} on {rwkv.model.device}\n"


def test_echo_prints_the_prompt_too(generate):
    plain = generate("the cat", "-n", "5", "--seed", "3")[1]
    assert generate("the cat", "-n", "5", "--seed", "3", "--echo")[1] == "the cat" + plain


def test_json_is_one_object(generate, small_model, backend):
    status, out, _ = generate("the cat", "-n", "6", "--seed", "3", "--json")
    found = json.loads(out)
    assert status == 0
    assert list(found) == [
        "text", "tokens", "stop_reason", "prompt_tokens", "seconds", "tokens_per_second", "model",
        "backend", "seed",
    ]  # fmt: skip
    assert (found["stop_reason"], found["model"]) == ("length", str(small_model))
    assert (found["backend"], found["seed"], len(found["tokens"])) == (backend, 3, 6)
    assert found["text"] + "\n" == generate("the cat", "-n", "6", "--seed", "3")[1]


def test_the_seed_that_json_tells_gives_the_text_again(generate):
    first = json.loads(generate("a", "-n", "20", "--json")[1])
    again = json.loads(generate("a", "-n", "20", "--json", "--seed", str(first["seed"]))[1])
    assert again["text"] == first["text"]


def test_the_prompt_may_come_from_a_file(generate, tmp_path):
    (tmp_path / "prompt.txt").write_bytes("näive\r\n".encode())
    asked = generate("--prompt-file", str(tmp_path / "prompt.txt"), "-n", "8", "--seed", "1")
    assert asked == generate("näive\r\n", "-n", "8", "--seed", "1")


def test_the_prompt_may_come_from_stdin(generate, monkeypatch):
    expected = generate("näive\n", "-n", "8", "--seed", "1")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("näive\n".encode())))
    assert generate("-", "-n", "8", "--seed", "1") == expected


def test_a_saved_state_continues_the_text(generate, tmp_path):
    state = str(tmp_path / "a.state")
    first = generate("ab", "-n", "5", "--temperature", "0", "--save-state", state)[1]
    second = generate("--state", state, "-n", "5", "--temperature", "0")[1]
    whole = generate("ab", "-n", "10", "--temperature", "0")[1]
    # A character that the first ends within is given out by the second.
    assert first.removesuffix("\n") + second == whole


def test_verbose_says_on_stderr_how_fast_it_was(generate):
    plain = generate("ab", "-n", "5", "--seed", "2")
    status, out, err = generate("ab", "-n", "5", "--seed", "2", "--verbose")
    assert (status, out) == plain[:2]
    prompt, text = err.removeprefix(plain[2]).splitlines()
    rate = r"\d+ tokens in [\d.]+ s, [\d.]+ tokens/s"
    assert re.fullmatch(f"prompt: {rate}", prompt)
    assert re.fullmatch(rf"text: {rate} \(ended by length, seed 2\)", text)


def test_the_end_of_a_document_ends_the_text_unless_it_is_ignored(generate):
    likely = ["ab", "-n", "3", "--json", "--logit-bias", "0=1e4"]
    found = json.loads(generate(*likely)[1])
    assert (found["stop_reason"], found["text"]) == ("stop_token", "")
    assert json.loads(generate(*likely, "--ignore-eos")[1])["text"] == "<|endoftext|>" * 3


def test_stop_strings_understand_escapes(generate):
    plain = generate("ab", "-n", "30", "--seed", "2")[1].removesuffix("\n")
    # U+FFFD stands for bytes that are no text, which no stop string holds.
    middle = next(character for character in plain[8:] if character != "\ufffd")
    stop = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": r"\\"}.get(middle, middle)
    out = generate("ab", "-n", "30", "--seed", "2", "--stop", stop)[1].removesuffix("\n")
    assert out == plain[: plain.index(middle)]


def test_unescape_leaves_other_backslashes():
    assert unescape(r"a\nb\\n\d\t") == "a\nb\\n\\d\t"


def test_stop_tokens_bans_and_biases_reach_the_sampling(generate):
    greedy = ["-n", "1", "--temperature", "0", "--json"]
    best = json.loads(generate("ab", *greedy)[1])["tokens"][0]
    stopped = json.loads(generate("ab", *greedy, "--stop-token", str(best))[1])
    assert (stopped["stop_reason"], stopped["tokens"]) == ("stop_token", [])
    assert json.loads(generate("ab", *greedy, "--ban", str(best))[1])["tokens"] != [best]
    assert json.loads(generate("ab", *greedy, "--logit-bias", "70=1e4")[1])["tokens"] == [70]


def test_a_sampler_of_a_plugin_is_found_by_name(generate, install_plugin):
    source = (
        "import numpy, rwkv_core\n"
        "from rwkv_core import Sampler\n"
        "def only_70(logits, tokens):\n"
        "    return numpy.where(numpy.arange(len(logits)) == 70, 0.0, -numpy.inf)\n"
        "@rwkv_core.hookimpl\n"
        "def rwkv_samplers():\n"
        "    return [Sampler('only-70', 'always the same', lambda options: only_70)]\n"
    )
    install_plugin("only", source)
    out = generate("ab", "-n", "3", "--json", "--sampler", "only-70")[1]
    assert json.loads(out)["tokens"] == [70, 70, 70]


def test_a_ctrl_c_that_is_lost_in_a_library_ends_the_text_all_the_same(generate, install_plugin):
    source = (
        "import contextlib, signal, rwkv_core\n"
        "from rwkv_core import Sampler\n"
        "def lose_it(logits, tokens):\n"
        "    if len(tokens) == 2:\n"
        "        with contextlib.suppress(KeyboardInterrupt):\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "    return logits\n"
        "@rwkv_core.hookimpl\n"
        "def rwkv_samplers():\n"
        "    return [Sampler('deaf', 'clears errors', lambda options: lose_it)]\n"
    )
    install_plugin("deaf", source)
    # A test run in the background may ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, out, _ = generate("ab", "-n", "1000", "--ignore-eos", "--json", "--sampler", "deaf")
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert json.loads(out)["stop_reason"] == "interrupted" and len(json.loads(out)["tokens"]) < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt"),
        (["a", "--prompt-file", "b"], "found both PROMPT and --prompt-file"),
        (["--prompt-file", "no-such-file"], "no-such-file: cannot be read"),
        (["a", "-o", "dtype"], "-o dtype: expected KEY=VALUE"),
        (["a", "-o", "dtype=float32", "-o", "dtype=float64"], "-o dtype: given twice"),
        (["a", "-o", "backend=x"], "-o backend: not an option of a backend"),
        (["a", "-o", "runtime_dtpye=float32"], "has no option 'runtime_dtpye'"),
        (["a", "--temperature", "-1"], "temperature: found -1.0"),
        (["a", "--seed", "-1"], "--seed: found -1"),
        (["a", "-n", "-1"], "max_tokens: found -1"),
        (["a", "--logit-bias", "x=1"], "--logit-bias x=1: expected TOKEN=X"),
        (["a", "--logit-bias", "1=1", "--logit-bias", "1=2"], "token 1 is given twice"),
        (["a", "--ban", "100000"], "banned_tokens"),
        (["a", "--sampler", "nosuch"], "no sampler 'nosuch'"),
        (["a", "--state", "no-such-file"], "no-such-file: no such file, expected one"),
        (["a", "--tokenizer", "no-such-file"], "no-such-file"),
        (
            ["a", "--save-state", "no/such/folder/file"],
            "no/such/folder/file: cannot be written: No such file",
        ),
        (["a", "--save-state", "."], ".: is no regular file"),
        (["a", "--save-state", "n" * 300], "cannot be written: File name too long"),
        (["a", "--save-state", __file__], "a file of another kind, which a state must not replace"),
        *[
            (["a", option, ""], f"{option}: found nothing, expected a name")
            for option in ("--prompt-file", "--tokenizer", "--save-state", "--state")
        ],
    ],
)
def test_a_mistake_is_one_line_and_status_2(generate, arguments, message):
    status, _, err = generate(*arguments)
    errors = [line for line in err.splitlines() if not line.startswith("model: ")]
    assert status == 2
    assert len(errors) == 1 and errors[0].startswith("rwkv-core: error: ") and message in errors[0]


def test_a_prompt_file_that_is_not_utf_8_is_refused(generate, tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    status, _, err = generate("--prompt-file", str(tmp_path / "latin"))
    assert status == 2 and "not UTF-8 at byte 3" in err


def test_an_unknown_backend_is_named(small_model, capsys):
    assert main(["generate", "a", "-m", str(small_model), "-b", "nosuch"]) == 2
    assert "no backend 'nosuch' is installed" in capsys.readouterr().err


def test_an_empty_backend_or_model_is_refused(capsys):
    for arguments in (["-b", "", "-m", "prose"], ["-m", ""]):
        assert main(["generate", "a", *arguments]) == 2
        assert "found nothing, expected a name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["-n", "-1"],
        ["--stop", ""],
        ["--stop-token", "-1"],
        ["--sampler", "nosuch"],
        ["--sampler", "dry:multiplier=-1"],
        ["--state", "no/such.state"],
    ],
    ids="=".join,
)
def test_a_bad_option_is_refused_before_the_model_is_looked_for(arguments, capsys):
    for command in (["generate", "a"], ["chat"]):
        assert main([*command, *arguments, "-m", "no/such.pth"]) == 2
        assert "no/such.pth" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ban", "100000"], "banned_tokens: found token 100000, expected 0 to"),
        (["--logit-bias", "100000=1"], "logit_bias: found token 100000, expected 0 to"),
        (["--stop-token", "100000"], "stop_tokens: found token 100000, expected 0 to"),
        (["--tokenizer", str(bundled.TOKENIZER)], "the model knows 262"),
    ],
)
def test_what_the_model_s_vocabulary_lacks_is_refused_before_it_is_loaded(
    small_model, tmp_path, arguments, message, capsys
):
    for command in (["generate", "a"], ["chat"]):
        # No backend has this name; loading would raise an error for it first.
        arguments = [*arguments, "-m", str(small_model), "-b", "nosuch"]
        assert main([*command, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_perplexity_refuses_numbers_before_the_model_is_looked_for(capsys):
    for option in ("--context", "--max-tokens"):
        assert main(["perplexity", __file__, option, "0", "-m", "no/such.pth"]) == 2
        assert f"{option}: found 0, expected at least 1" in capsys.readouterr().err
