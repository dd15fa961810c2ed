"""`rwkv-core verify`: correct backends pass, faulty ones fail."""

import json

import numpy as np
import pytest

import rwkv_core
from rwkv_core import bundled
from rwkv_core.cli import main
from rwkv_core.errors import BackendError, RWKVError
from rwkv_core.evaluation.verify import golden_cases, verify

PLUGIN = """
import numpy, rwkv_core
from rwkv_core import BackendError, OptionError

class Ops(rwkv_core.TensorOps):
    xp = numpy

    def vector(self, array):
        return array.astype(numpy.float32)

    matrix = vector

    def to_numpy(self, array):
        return array

{fault}

@rwkv_core.hookimpl
def rwkv_backends():
    return [rwkv_core.Backend("odd", "", rwkv_core.CONTRACT, {status})]

@rwkv_core.hookimpl
def rwkv_tensor_ops(backend, options):
    return Ops() if backend == "odd" else None
"""
READY = "lambda: rwkv_core.Status(True)"

FAULTS = {
    "epsilon": """
    def layer_norm(self, x, weight, bias):
        x = x - x.mean(-1, keepdims=True)
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + 1e-2) * weight + bias
""",
    "mix": """
    def mix(self, x, previous, mix):
        return x + mix * (previous - x)
""",
    "shift": """
    def token_shift(self, x, last):
        return super().token_shift(x, numpy.zeros_like(last))
""",
    "scan": """
    def wkv(self, k, v, decay, first, *rest):
        return super().wkv(k, v, decay, 0 * first, *rest)
""",
    "scan of RWKV-6": """
    def wkv6(self, r, w, k, v, bonus, s):
        return super().wkv6(r, w, k, v, 0 * bonus, s)
""",
    "scan of RWKV-7": """
    def wkv7(self, r, w, k, v, kk, b, s):
        return super().wkv7(r, w, k, v, kk, 0 * b, s)
""",
    "long prompts": """
    def chunks(self, n_tokens):
        return [1] if n_tokens == 1 else [n_tokens - 1, 1]

    def embed(self, table, tokens):
        return super().embed(table, tokens[:, ::-1])
""",
}


def odd(install_plugin, fault="", status=READY):
    install_plugin("odd-backend", PLUGIN.format(fault=fault, status=status))


def test_every_backend_passes_with_its_default_dtype(backend):
    row = next(row for row in rwkv_core.list_backends() if row.name == backend)
    options = {option.name: option.default for option in row.options}
    dtype = options["dtype"]
    (check,) = verify(backend, {"dtype": dtype})
    assert (check.backend, check.dtype, check.status) == (backend, dtype, "pass")
    assert check.error <= check.tolerance


def test_a_plain_backend_passes(install_plugin):
    odd(install_plugin)
    (check,) = verify("odd", {})
    assert check.status == "pass"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(install_plugin, fault):
    odd(install_plugin, FAULTS[fault])
    (check,) = verify("odd", {})
    assert check.status == "FAIL" and check.error > 10 * check.tolerance


def test_logits_that_are_not_numbers_fail(install_plugin):
    odd(install_plugin, "    def sigmoid(self, x):\n        return x * numpy.nan\n")
    (check,) = verify("odd", {})
    assert (check.status, check.error) == ("FAIL", None)
    assert check.reason.count("not all numbers") == len(bundled.VERIFIED)


def test_an_exception_of_the_library_fails(install_plugin):
    odd(install_plugin, "    def sigmoid(self, x):\n        raise RuntimeError('no\\nkernel')\n")
    (check,) = verify("odd", {})
    failures = [f"{version}: RuntimeError: no kernel" for version in bundled.VERIFIED]
    assert (check.status, check.reason) == ("FAIL", "; ".join(failures))


def test_what_the_backend_refuses_is_skipped(install_plugin):
    odd(
        install_plugin,
        "    def sigmoid(self, x):\n        raise BackendError('not on this card')\n",
    )
    (check,) = verify("odd", {})
    assert (check.status, check.reason) == ("skipped", "not on this card")


def test_a_backend_that_is_not_ready_is_skipped_with_its_reason(install_plugin, monkeypatch):
    monkeypatch.setenv("RWKV_PLUGINS", "odd-backend")
    odd(install_plugin, status="lambda: rwkv_core.Status(False, reason='it is not plugged in')")
    checks = {check.backend: check for check in verify(None, {})}
    assert checks["odd"].status == "skipped" and "not plugged in" in checks["odd"].reason
    with pytest.raises(BackendError, match="not plugged in"):
        list(verify("odd", {}))


def test_a_fault_of_one_version_names_it(install_plugin):
    odd(install_plugin, FAULTS["scan of RWKV-7"])
    (check,) = verify("odd", {})
    assert check.reason.startswith("rwkv7: off by ") and "rwkv6" not in check.reason


def test_golden_logits_of_another_model_are_refused():
    with pytest.raises(RWKVError, match="is of model"):
        golden_cases(bundled.golden_logits(bundled.MODELS["prose"]), "0" * 16)


@pytest.mark.needs_backend
@pytest.mark.parametrize("version", bundled.VERIFIED)
def test_golden_logits_are_of_a_model_of_each_version(version):
    path = bundled.VERIFIED[version]
    model = rwkv_core.load(path)
    assert model.architecture == version
    for case in golden_cases(bundled.golden_logits(path), model.fingerprint):
        assert case.logits.shape == (len(case.positions), model.n_vocab)
        assert case.logits.dtype == np.float32 and max(case.positions) < len(case.tokens)


def test_the_command_prints_a_row_each_and_exits_with_1_after_a_failure(install_plugin, capsys):
    odd(install_plugin)
    assert main(["verify", "-b", "odd"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["backend", "dtype", "device", "result", "error", "tolerance"]
    assert lines[1].split()[:4] == ["odd", "-", "cpu", "pass"]


def test_the_command_exits_with_1_after_a_failure(install_plugin, capsys):
    odd(install_plugin, FAULTS["mix"])
    assert main(["verify", "-b", "odd", "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row) == ["backend", "dtype", "device", "status", "error", "tolerance", "reason"]
    assert row["status"] == "FAIL"


def test_the_command_exits_with_1_if_nothing_was_checked(install_plugin, capsys):
    odd(install_plugin, "    def sigmoid(self, x):\n        raise BackendError('not here')\n")
    assert main(["verify", "-b", "odd"]) == 1
    assert "odd : not here" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["dtype=nosuch", "nonsense=1"])
def test_an_option_that_no_backend_takes_is_an_error(backend, capsys, option):
    for which in ([], ["-b", backend]):
        assert main(["verify", *which, "-o", option]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and option.partition("=")[0] in captured.err


def test_an_option_that_one_backend_lacks_skips_that_one(install_plugin, monkeypatch):
    monkeypatch.setenv("RWKV_PLUGINS", "odd-backend, wide-backend")
    odd(install_plugin)
    wide = PLUGIN.format(fault="", status=READY).replace('"odd"', '"wide"')
    options = '(rwkv_core.Option("dtype", str, "float32", "the type"),)'
    install_plugin(
        "wide-backend", wide.replace(f"CONTRACT, {READY}", f"CONTRACT, {READY}, {options}")
    )
    checks = {check.backend: check for check in verify(None, {"dtype": "float32"})}
    assert (checks["odd"].status, checks["wide"].status) == ("skipped", "pass")
    assert "has no option 'dtype'" in checks["odd"].reason
