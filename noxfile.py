"""All checks of the project: `nox` runs them, `nox -s NAME` one, `nox -l` lists them.

Each backend is tested in an environment that has only that backend, which proves that the core
and the other backends do not need it.
"""

from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = True
nox.options.reuse_venv = "yes"

TEST_TOOLS = ("pytest", "hypothesis")
# Tests run many small products, where a second thread costs more than it brings.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
DISTRIBUTIONS = ("rwkv_core", "rwkv_backend_numpy", "rwkv_backend_torch")


def install(session: nox.Session, *what: str) -> None:
    session.install("--constraint", "constraints.txt", *what)


def pytest(session: nox.Session, *arguments: str, **variables: str) -> None:
    session.run("python", "-m", "pytest", *arguments, env=ONE_THREAD | variables)


def conformance(session: nox.Session, backend: str) -> None:
    pytest(session, "--pyargs", "rwkv_core.conformance", "--rwkv-backend", backend, "-q")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and types (strict in rwkv_core)."""
    install(session, "ruff", "mypy", "pytest", "hypothesis", "./rwkv_core", "./rwkv_backend_numpy")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy", "rwkv_core/src", "rwkv_backend_numpy/src")


@nox.session
def core(session: nox.Session) -> None:
    """rwkv-core with no backend at all."""
    install(session, "./rwkv_core", *TEST_TOOLS)
    pytest(session, *session.posargs)


@nox.session
@nox.parametrize("backend", ["numpy", "torch"], ids=["numpy", "torch"])
def backend(session: nox.Session, backend: str) -> None:
    """One backend in an environment without the others."""
    install(session, "./rwkv_core", f"./rwkv_backend_{backend}", *TEST_TOOLS)
    pytest(session, *session.posargs)
    conformance(session, backend)


@nox.session
def peers(session: nox.Session) -> None:
    """All backends together, against `rwkv` and `transformers` from PyPI, side by side."""
    install(session, *(f"./{name}" for name in DISTRIBUTIONS))
    install(session, "rwkv", "transformers", *TEST_TOOLS)
    pytest(session, "tests/test_across_backends.py", "tests/peers")
    session.run("python", "tests/peers/speed.py", env={"PYTHONPATH": "tests"})


@nox.session
def third_party(session: nox.Session) -> None:
    """A backend of somebody else's, over a library that the project does not know."""
    install(session, "./rwkv_core", *TEST_TOOLS)
    install(session, "./tests/third_party")
    conformance(session, "array-api-strict")


@nox.session
def docs(session: nox.Session) -> None:
    """Of the READMEs: Python and console blocks, the first command and the tutorial, run."""
    install(session, "./rwkv_core", "./rwkv_backend_numpy", *TEST_TOOLS)
    pytest(session, "tests/docs")


@nox.session
def packaging(session: nox.Session) -> None:
    """The wheels, installed from nothing but themselves, do the main job."""
    session.install("build", "twine")
    dist = Path(session.create_tmp()).resolve() / "dist"
    for name in DISTRIBUTIONS:
        session.run("python", "-m", "build", "--outdir", str(dist), name, silent=True)
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    clean = dist.parent / "clean"
    session.run("python", "-m", "venv", "--clear", str(clean))
    (core_wheel,), (numpy_wheel,) = dist.glob("rwkv_core-*.whl"), dist.glob("*_numpy-*.whl")
    wheels = [f"{core_wheel}[numpy]", str(numpy_wheel)]
    pip = str(clean / "bin" / "pip")
    session.run(pip, "install", "-q", "-c", "constraints.txt", *wheels, external=True)
    session.install("pytest")
    # The clean environment is what is tested: this one has no rwkv_core for tests/conftest.py.
    pytest(session, "--confcutdir=tests/packaging", "tests/packaging", CLEAN_ENV=str(clean))
