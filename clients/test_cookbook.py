#!/usr/bin/env python3
"""Runs every command of clients/COOKBOOK.md against a real server and compares the answers with those printed there.

    INGESTD_BIN=… clients/test_cookbook.py            exit 0: all as printed, 1: not
    INGESTD_BIN=… clients/test_cookbook.py --update   write the answers that came in place of those that differ

Each section is one session of bash in an empty folder, so sections neither need nor disturb each other. What a section
needs beside curl and coreutils, and this machine lacks, is said, and the section with it is not run; it is also added to
the file that INGESTD_NOT_RUN names, as a line `test: reason`.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CLIENTS = Path(__file__).resolve().parent
COOKBOOK = CLIENTS / "COOKBOOK.md"
sys.path.insert(0, str(CLIENTS / "python"))

from tests.server import Server, ingestd, remove_folder  # noqa: E402

SECTION_SECONDS = 180
SECTIONS_AT_ONCE = 4
OPTIONAL = ("jq", "zstd", "openssl")
"""Programs that a machine may lack where nobody may install them."""
ENDED = "\x1e"
"""Printed after each command, with its exit code."""

MASKS = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "TIME"),
    (r"(?i)(date: ).*", r"\1DATE"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
    (r'"node":"[^"]*"', '"node":"NODE"'),
]


@dataclass
class Command:
    """A command as typed, and the lines printed under it: first line and the line after its last, from 0."""

    text: str
    answer: list[str]
    answer_from: int
    answer_to: int


@dataclass
class Section:
    title: str
    commands: list[Command]

    def lacks(self) -> list[str]:
        words = {word for command in self.commands for word in re.findall(r"\w+", command.text)}
        return [program for program in OPTIONAL if program in words and not shutil.which(program)]


def sections(lines: list[str]) -> list[Section]:
    """The commands of all console blocks, by heading."""
    found: list[Section] = []
    at = 0
    while at < len(lines):
        if lines[at].startswith("## "):
            found.append(Section(lines[at][3:], []))
        elif lines[at] == "```console":
            at += 1
            while lines[at] != "```":
                command, at = read_command(lines, at)
                found[-1].commands.append(command)
        at += 1
    return [section for section in found if section.commands]


def read_command(lines: list[str], at: int) -> tuple[Command, int]:
    assert lines[at].startswith("$ "), f"{COOKBOOK}:{at + 1}: a block begins with a command"
    text = lines[at][2:]
    at += 1
    while not is_complete(text):
        text += "\n" + lines[at]
        at += 1
    start = at
    while lines[at] != "```" and not lines[at].startswith("$ "):
        at += 1
    return Command(text, lines[start:at], start, at), at


def is_complete(text: str) -> bool:
    """bash itself says whether it wants more lines."""
    if text.endswith("\\"):
        return False
    checked = subprocess.run(["bash", "-n"], input=text + "\n", capture_output=True, text=True, timeout=10, check=False)
    # A here-document that does not end is a warning only.
    return not checked.stderr


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(section: Section, ports: dict[str, str]) -> list[tuple[str, int]]:
    """What each command printed, and its exit code."""
    script = "shopt -s expand_aliases\nset -m\n"
    for command in section.commands:
        script += f"{command.text}\nprintf '\\036%d\\036' $?\n"
    for shown, real in ports.items():
        script = script.replace(shown, real)
    folder = Path(tempfile.mkdtemp(prefix="ingestd-cookbook-"))
    folder.chmod(0o755)
    try:
        return [(unmapped(text, ports), code) for text, code in answers(script, folder)]
    finally:
        remove_folder(folder)


def answers(script: str, folder: Path) -> list[tuple[str, int]]:
    commands = folder.parent / (folder.name + ".sh")
    commands.write_text(script)
    environment = {name: os.environ[name] for name in ("HOME", "TMPDIR", "INGESTD_PG_BIN") if name in os.environ}
    environment["PATH"] = f"{Path(ingestd()).parent}:{os.environ['PATH']}"
    # A session of its own, so that whatever it started can be ended with it.
    shell = subprocess.Popen(
        ["bash", str(commands)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        printed = shell.communicate(timeout=SECTION_SECONDS)[0].decode()
    finally:
        end_session(shell)
        commands.unlink()
    parts = printed.split(ENDED)
    return [(text, int(code)) for text, code in zip(parts[::2], parts[1::2])]


def end_session(shell: subprocess.Popen[bytes]) -> None:
    """Ends what the shell started, too: `set -m` gives each of its jobs a group, but all are of its session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if os.getsid(int(entry.name)) == shell.pid:
                    os.kill(int(entry.name), signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
    shell.wait(SECTION_SECONDS)


def unmapped(text: str, ports: dict[str, str]) -> str:
    """As if it had run on the ports of the document."""
    for shown, real in ports.items():
        text = text.replace(real, shown)
    return text.replace("\r", "")


def masked(line: str) -> str:
    for pattern, name in MASKS:
        line = re.sub(pattern, name, line)
    return line


def as_printed(printed: list[str], came: list[str]) -> bool:
    """Whether they are the same where the document promises something."""
    pattern = "\n".join(".*".join(map(re.escape, masked(line).split("…"))) for line in printed)
    return re.fullmatch(pattern, "\n".join(map(masked, came))) is not None


def came_lines(text: str) -> list[str]:
    """Without blank lines, which end the head of an answer, for instance."""
    return [line for line in text.split("\n") if line]


@dataclass
class Difference:
    section: Section
    command: Command
    came: list[str]
    code: int

    def tell(self) -> None:
        print(f"\n{COOKBOOK.name}:{self.command.answer_from}: {self.section.title}: $ {self.command.text}")
        printed, came = ([masked(line) for line in lines] for lines in (self.command.answer, self.came))
        print("\n".join(difflib.unified_diff(printed, came, "printed", "came", lineterm="")))
        print(f"exit code {self.code}")


def differences(section: Section, ports: dict[str, str]) -> list[Difference]:
    """Runs a section. A command that prints nothing must succeed."""
    results = run(section, ports)
    found = []
    for position, command in enumerate(section.commands):
        text, code = results[position] if position < len(results) else ("the session ended before this", 1)
        came = came_lines(text)
        if not as_printed(command.answer, came) or (code and not came):
            found.append(Difference(section, command, came, code))
    return found


def not_run(test: str, reason: str) -> None:
    """Says what was not run, and adds it to the list of all tests."""
    print(f"NOT RUN: {test}: {reason}", file=sys.stderr)
    if path := os.environ.get("INGESTD_NOT_RUN"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{test}: {reason}\n")


def write(found: list[Difference], document: list[str]) -> None:
    """Puts the answers that came into the document, from its end, so that line numbers hold."""
    for difference in reversed(found):
        document[difference.command.answer_from : difference.command.answer_to] = difference.came
    COOKBOOK.write_text("\n".join(document))


def main() -> int:
    document = COOKBOOK.read_text().split("\n")
    wrong: list[Difference] = []
    server = Server()
    try:
        ports = {"127.0.0.1:8000": server.start().url.removeprefix("http://")}
        ports |= {f"127.0.0.1:{shown}": f"127.0.0.1:{free_port()}" for shown in (8001, 8443)}
        able = []
        for section in sections(document):
            if missing := section.lacks():
                not_run(f"cookbook: {section.title}", f"there is no {', no '.join(missing)} on this machine")
            else:
                able.append(section)
        # Some start a server and wait for it.
        with ThreadPoolExecutor(SECTIONS_AT_ONCE) as pool:
            for found in pool.map(lambda section: differences(section, ports), able):
                wrong += found
        ran = sum(len(section.commands) for section in able)
    finally:
        server.remove()
    if sys.argv[1:] == ["--update"]:
        write(wrong, document)
    else:
        for difference in wrong:
            difference.tell()
    print(f"cookbook: {ran} commands ran, {len(wrong)} answered otherwise than printed")
    return 1 if wrong or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
