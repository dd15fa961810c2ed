"""All checks of the project: `nox` runs them, `nox -s NAME` one, `nox -l` lists them.

Each backend is tested in an environment that has only that backend, which proves that the core
and the other backends do not need it.
"""

import os
import shutil
import sys
from pathlib import Path

import nox

# A version of Python that this machine lacks is a session that is skipped.
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

PYTHONS = ("3.11", "3.12", "3.13")
PRESENT = f"{sys.version_info.major}.{sys.version_info.minor}"
# pyenv has only the versions that are active on the path; the others come after them.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
OTHERS = [str(path) for python in PYTHONS for path in PYENV.glob(f"versions/{python}.*/bin")]
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *OTHERS])

# pip compiles no modules: Python does at the first import, which most modules never see.
os.environ["PIP_COMPILE"] = "0"

# gguf writes the files that the reader of such files is tested with.
TEST_TOOLS = ("pytest", "pytest-xdist", "hypothesis", "gguf")
# Programs of others that speak to the HTTP server.
CLIENTS = ("openai", "httpx", "schemathesis", "llm", "selenium")
# The other implementations, what draws the comparison with them, and what a backend needs for it.
PEERS = ("rwkv", "transformers", "matplotlib", "numba")
# Tests run many small products, where a second thread costs more than it brings.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# JAX keeps compilations of any size: most that tests need, in each process and for each type, are
# of equal programs.
ALL_COMPILATIONS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# What each backend distribution needs beside the core, and the backends it brings.
BACKENDS = {
    "numpy": (("numpy[numba]",), ("numpy", "numba")),
    "torch": (("torch",), ("torch",)),
    "jax": (("jax",), ("jax",)),
    "tf": (("tf",), ("tf",)),
    "cuda_variants": (("torch", "cuda_variants"), ("torch-stream", "torch-split", "torch-quant")),
}
# With these the variants do what they are for: a model of the suite's size streamed, and split.
CONFORMANCE_OPTIONS = {"torch-stream": ["target=0.0003"], "torch-split": ["devices=cpu,cpu"]}
DISTRIBUTIONS = ("rwkv_core", *(f"rwkv_backend_{name}" for name in BACKENDS))


# Wheels of this run, by the folder of their distribution.
WHEELS: dict[str, str] = {}


def wheel(session: nox.Session, folder: str) -> str:
    """Return the wheel of a distribution of the checkout, built once in a run for all sessions."""
    if folder not in WHEELS:
        into = (session.cache_dir / "wheels" / folder).resolve()
        shutil.rmtree(into, ignore_errors=True)
        build = ("python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(into))
        session.run_install(*build, folder)
        (WHEELS[folder],) = map(str, into.glob("*.whl"))
    return WHEELS[folder]


def install(session: nox.Session, *what: str) -> None:
    """Install requirements; ./FOLDER and ./FOLDER[EXTRA] are distributions of the checkout."""
    others = [one for one in what if not one.startswith("./")]
    own = [one.partition("[") for one in what if one.startswith("./")]
    wheels = [wheel(session, folder) + bracket + extra for folder, bracket, extra in own]
    # In an environment of an earlier run, pip would take a wheel of the same version as installed.
    if own:
        built = [WHEELS[folder] for folder, _, _ in own]
        session.install("--no-index", "--no-deps", "--force-reinstall", *built)
    session.install("--constraint", "constraints.txt", *wheels, *others)


def pytest(session: nox.Session, *arguments: str, **variables: str) -> None:
    # An idle process takes tests from the end of the other's list. So most tests stay beside
    # those that need the same models and compilations.
    processes = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
    kept = {"JAX_COMPILATION_CACHE_DIR": str((session.cache_dir / "jax").resolve())}
    environment = ONE_THREAD | ALL_COMPILATIONS | kept | variables
    session.run("python", "-m", "pytest", *processes, *arguments, env=environment)


def conformance(session: nox.Session, backend: str, *options: str) -> None:
    given = [argument for option in options for argument in ("--rwkv-option", option)]
    command = ("--pyargs", "rwkv_core.conformance", "--rwkv-backend", backend, *given, "-q")
    pytest(session, *command)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and types (strict in rwkv_core)."""
    tools = ("ruff", "mypy", "pytest", "hypothesis")
    install(session, *tools, "./rwkv_core[serve]", "./rwkv_backend_numpy")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy", "rwkv_core/src", "rwkv_backend_numpy/src")


@nox.session
def core(session: nox.Session) -> None:
    """rwkv-core with no backend at all."""
    install(session, "./rwkv_core[completion]", *TEST_TOOLS)
    pytest(session, *session.posargs)


@nox.session(python=[version for version in PYTHONS if version != PRESENT])
def python(session: nox.Session) -> None:
    """The core with NumPy on the other versions of Python, those that this machine has."""
    install(session, "./rwkv_core[completion]", "./rwkv_backend_numpy", *TEST_TOOLS)
    # What a version changes: argparse's messages, pickles and zip files, entry points.
    parts = ("cli/test_main.py", "cli/test_generate.py", "checkpoint", "plugins", "test_rwkv.py")
    pytest(session, *(f"tests/{part}" for part in parts))
    conformance(session, "numpy")


@nox.session
@nox.parametrize("distribution", list(BACKENDS), ids=list(BACKENDS))
def backend(session: nox.Session, distribution: str) -> None:
    """One backend distribution in an environment without the others."""
    needed, backends = BACKENDS[distribution]
    folders = [f"./rwkv_backend_{name}" for name in needed]
    # Triton's interpreter runs the CUDA kernels on any machine.
    kernels = distribution in ("torch", "cuda_variants") and sys.platform == "linux"
    triton = ["triton"] if kernels else []
    install(session, "./rwkv_core", *folders, *triton, *TEST_TOOLS)
    # Of torch, which the variants stand on, the tests run in its own session, and those of what
    # lies above the contract in numpy's.
    pytest(session, *session.posargs, RWKV_TEST_BACKENDS=",".join(backends))
    for name in backends:
        conformance(session, name, *CONFORMANCE_OPTIONS.get(name, ()))


@nox.session
def peers(session: nox.Session) -> None:
    """All backends together, against `rwkv` and `transformers` from PyPI, side by side."""
    install(session, *(f"./{name}" for name in DISTRIBUTIONS), *PEERS, *TEST_TOOLS)
    # Those that torch or transformers write files for.
    written = ("pth", "names", "safetensors", "checksums", "containers")
    checkpoints = [f"tests/checkpoint/test_{name}.py" for name in written]
    # The longest test is the first to begin.
    longest = "tests/peers/test_speed.py"
    others = ("tests/backends/test_across_backends.py", *checkpoints, "tests/peers")
    pytest(session, longest, *others)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """The speed of all backends and the peers, side by side, into tests/peers/results."""
    install(session, *(f"./{name}" for name in DISTRIBUTIONS), *PEERS)
    command = ("tests/peers/speed.py", *session.posargs)
    session.run("python", *command, env={"PYTHONPATH": "tests"})


@nox.session
def third_party(session: nox.Session) -> None:
    """A backend of somebody else's, over a library that the project does not know."""
    install(session, "./rwkv_core", "./tests/third_party", *TEST_TOOLS)
    conformance(session, "array-api-strict")


@nox.session
def serve(session: nox.Session) -> None:
    """The HTTP server, by clients and tools of others over loopback; text by grammars."""
    install(session, "./rwkv_core[serve]", "./rwkv_backend_numpy", *CLIENTS, *TEST_TOOLS)
    # One process: its tests share a server.
    tests = ("tests/server", "tests/generation/test_grammar.py")
    session.run("python", "-m", "pytest", *tests, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def lm_eval(session: nox.Session) -> None:
    """lm-eval's client of the HTTP server on a small task; lm-eval takes 700 MB."""
    clients = ("lm-eval[api]", "openai", "httpx")
    install(session, "./rwkv_core[serve]", "./rwkv_backend_numpy", *clients, *TEST_TOOLS)
    test = "tests/server/test_lm_eval.py"
    session.run("python", "-m", "pytest", test, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def load(session: nox.Session) -> None:
    """64 clients of the HTTP server for five minutes: --clients and --seconds change that."""
    install(session, "./rwkv_core[serve]", "./rwkv_backend_numpy", "httpx")
    variables = ONE_THREAD | {"PYTHONPATH": "tests"}
    session.run("python", "tests/server/load.py", *session.posargs, env=variables)


@nox.session
def docs(session: nox.Session) -> None:
    """The programs and commands of the READMEs and of the pages under rwkv_core/docs, run."""
    clients = ("flask", "openai", "httpx")
    install(session, "./rwkv_core[serve]", "./rwkv_backend_numpy", *clients, *TEST_TOOLS)
    # The others' descriptions, for the tables of options; they need no tensor library.
    others = [f"./rwkv_backend_{name}" for name in BACKENDS if name != "numpy"]
    wheels = [wheel(session, folder) for folder in others]
    session.install("--no-index", "--no-deps", "--force-reinstall", *wheels)
    # Pages differ in length: each test goes to the process that is free.
    pytest(session, "tests/docs", "--dist", "load")


@nox.session
def site(session: nox.Session) -> None:
    """The documentation site, into rwkv_core/build/site: built strictly, every link checked."""
    # Ruff breaks the lines of long signatures.
    install(session, "mkdocs-material", "mkdocstrings[python]", "ruff", "pytest", "./rwkv_core")
    config = ("--config-file", "rwkv_core/mkdocs.yml")
    session.run("mkdocs", "build", "--strict", "-q", *config, env={"NO_MKDOCS_2_WARNING": "1"})
    # The site is what is tested: this environment has no backend for tests/conftest.py.
    folder = str(Path("rwkv_core/build/site").resolve())
    tests = ("--confcutdir=tests/site", "tests/site")
    session.run("python", "-m", "pytest", *tests, env={"SITE": folder})


@nox.session
def packaging(session: nox.Session) -> None:
    """Wheels, built from the sdists, do the main job where nothing else is; they are typed."""
    # The other sessions build in an environment that has only what a distribution asks for.
    session.install("build", "hatchling", "twine")
    dist = Path(session.create_tmp()).resolve() / "dist"
    for name in DISTRIBUTIONS:
        # Builds an sdist, and the wheel from that.
        session.run(
            "python", "-m", "build", "--no-isolation", "--outdir", str(dist), name, silent=True
        )
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    clean = dist.parent / "clean"
    session.run("python", "-m", "venv", "--clear", str(clean))
    (core_wheel,), (numpy_wheel,) = dist.glob("rwkv_core-*.whl"), dist.glob("*_numpy-*.whl")
    wheels = [f"{core_wheel}[numpy]", str(numpy_wheel)]
    pip = str(clean / "bin" / "pip")
    session.run(pip, "install", "-q", "-c", "constraints.txt", *wheels, external=True)
    install(session, "mypy", *TEST_TOOLS)
    # The clean environment is what is tested: this one has no rwkv_core for tests/conftest.py.
    tests = ("--confcutdir=tests/packaging", "tests/packaging")
    pytest(session, *tests, CLEAN_ENV=str(clean), DIST=str(dist))
