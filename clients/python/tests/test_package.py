"""Promise: the wheel installs and is typed, and every example of the READMEs prints what they say."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ingestd_client import __version__

from .server import Server

PACKAGE = Path(__file__).parent.parent
EXAMPLE_SECONDS = 30


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(  # type: ignore[call-overload]
        command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_the_wheel_installs_into_a_fresh_environment(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path, cwd=PACKAGE)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"ingestd_client-{__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "ingestd_client/py.typed" in names
    assert all(name.startswith("ingestd_client") for name in names)
    # Without pip, which Debian's Python cannot put in; and without a network: dependencies are those of the tests.
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin/python"
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "tests.pth").write_text("\n".join(path for path in sys.path if (Path(path) / "httpx").is_dir()))
    installer = "import sys; sys.path[:] = {!r}; from installer.__main__ import _main as main; main({!r}, 'installer')"
    arguments = ["--prefix", str(venv), str(wheel)]
    run(python, "-c", installer.format(sys.path, arguments), env={"PYTHONPATH": ""})
    told = run(
        python,
        "-c",
        "import importlib.metadata as m, ingestd_client as ic\n"
        "print(ic.__file__, m.version('ingestd-client'), m.metadata('ingestd-client')['License-Expression'])",
        env={},
        cwd=tmp_path,
    )
    assert told.split(maxsplit=2) == [
        str(site / "ingestd_client/__init__.py"),
        __version__,
        "Apache-2.0 OR MIT\n",
    ]


def test_zstd_without_its_package_says_what_to_install() -> None:
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; sys.modules['backports'] = None\n"
        "import ingestd_client as ic\n"
        "try: ic.SyncIngestionClient('http://127.0.0.1:9', compression='zstd').close()\n"
        "except ImportError as error: print(error)"
    )
    expected = "" if sys.version_info >= (3, 14) else "zstd needs Python 3.14, or: pip install 'ingestd-client[zstd]'\n"
    assert run(sys.executable, "-c", program) == expected


def examples(readme: Path) -> list[tuple[str, str]]:
    """Programs that use the client, each with what it prints."""
    blocks = re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", readme.read_text(), re.DOTALL)
    return [(program, output) for program, output in blocks if "ingestd_client" in program]


EXAMPLES = [
    pytest.param(*example, id=f"{readme.parent.name}-{number}")
    for readme in (PACKAGE / "README.md", PACKAGE.parent.parent / "README.md")
    for number, example in enumerate(examples(readme))
]


@pytest.mark.parametrize(("program", "output"), EXAMPLES)
def test_an_example_prints_what_is_said(server: Server, program: str, output: str) -> None:
    assert "http://localhost:8000" in program
    program = program.replace("http://localhost:8000", server.url)
    begin = f"import sys; sys.path[:] = {sys.path!r}\n"
    assert run(sys.executable, "-c", begin + program) == output


def test_there_are_examples_and_none_is_passed_over() -> None:
    assert len(EXAMPLES) >= 5
    programs = (PACKAGE / "README.md").read_text().count("```python")
    assert programs == len(examples(PACKAGE / "README.md"))
