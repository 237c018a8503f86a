"""Commands as processes of their own, without the seconds that each takes to import torch and transformers.

    def test_it_says_so(commands):
        done = commands.run([sys.executable, "-m", "unimodal", "doctor"], env={**os.environ, "UNIMODAL_MODEL": "here"})
        assert done.returncode == 0

A launcher is a process that has imported what commands import, has done nothing else, and waits. Each command is a fork
of it with arguments, environment, folder, output, signals and exit status of its own; what it begins by multiprocessing
is forked, too. The fixture `commands` has a launcher that is forked from the process of the tests before the first test
(`fork_launcher`). Where the environment has to be there before the imports, `start_launcher(environment)` starts one.

`make study` runs every command from its first import on; so does a machine with a GPU, because a process that has asked
for one cannot be forked, and every system but Linux.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import logging
import multiprocessing.context
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.campaigns import is_study

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 150_000  # of a request
HAS_GPU = Path("/dev/nvidiactl").exists()
CAN_FORK = sys.platform == "linux" and not HAS_GPU and not is_study()
IMPORTS = "import torch.distributed, unimodal.cli.app, unimodal.pipeline; from transformers import LlamaForCausalLM"

forked_s = 0.0  # processor time of the commands that have ended, which the system counts as the launcher's


class ForkedCommand:
    """A command that a launcher has begun; as much of `subprocess.Popen` as the tests need."""

    def __init__(self, launcher: Launcher, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.launcher, self.pid, self.stdout, self.stderr = launcher, pid, stdout, stderr
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.launcher.ask_status(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.01)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote, once it has ended. Both are files, so that it never waits for a reader."""
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()


class Launcher:
    """This process's end of a launcher: `pid` listens at the other end of `connection`."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid, self.connection = pid, connection
        self.counted_s = 0.0  # processor time of its commands that is in forked_s

    def begin(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> ForkedCommand:
        """Begins `[sys.executable, SCRIPT or "-m" MODULE or "-c" PROGRAM, *arguments]`."""
        assert command[0] == sys.executable, command
        files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - closed below
        request = {"command": list(command[1:]), "env": dict(os.environ if env is None else env)}
        data = json.dumps({**request, "cwd": str(cwd or Path.cwd())}).encode()
        assert len(data) < MOST_BYTES, f"a command of {len(data):,} bytes"
        socket.send_fds(self.connection, [data], [file.fileno() for file in files])
        pid = json.loads(self.connection.recv(MOST_BYTES))
        # Readers with a position of their own: that of a descriptor is shared with the command, which writes at it.
        readers = [Path(f"/proc/self/fd/{file.fileno()}").open(errors="replace") for file in files]  # noqa: SIM115
        for file in files:
            file.close()
        return ForkedCommand(self, pid, *readers)

    def ask_status(self, pid: int) -> int | None:
        """The exit status of a command, negative of a signal; None while it runs."""
        global forked_s
        self.connection.send(json.dumps({"wait": pid}).encode())
        status, seconds = json.loads(self.connection.recv(MOST_BYTES))
        forked_s += seconds
        self.counted_s += seconds
        return status

    def run(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 280,
    ) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        begun = self.begin(command, env, cwd)
        try:
            out, err = begun.communicate(timeout)
        finally:
            begun.kill()
        assert begun.returncode is not None
        return subprocess.CompletedProcess(list(command), begun.returncode, out, err)

    def close(self) -> None:
        global forked_s
        self.connection.close()  # it ends when nobody is left to ask it
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
            forked_s -= self.counted_s  # the system now counts it among the children of this process


class Commands:
    """Runs and begins commands by a launcher, or, without one, from their first import on."""

    def __init__(self, launcher: Launcher | None) -> None:
        self.launcher = launcher

    def begin(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> ForkedCommand | subprocess.Popen[str]:
        """As `subprocess.Popen`, with both outputs to be read."""
        if self.launcher is not None:
            return self.launcher.begin(command, env, cwd)
        return subprocess.Popen(command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 280,
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run`, with both outputs as text."""
        if self.launcher is not None:
            return self.launcher.run(command, env, cwd, timeout)
        return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def fork_launcher() -> Launcher | None:
    """A launcher with what this process has imported by now; it may have made no threads and no tensors yet."""
    if not CAN_FORK:
        return None
    exec(IMPORTS)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            serve_forks(theirs)
        finally:
            os._exit(1)
    theirs.close()
    return Launcher(pid, ours)


@contextlib.contextmanager
def start_launcher(environment: Mapping[str, str]) -> Iterator[Launcher | None]:
    """A launcher that has imported everything under this environment."""
    if not CAN_FORK:
        yield None
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = (
        f"{IMPORTS}; import socket; from tests.commands import serve_forks; "
        f"serve_forks(socket.socket(fileno={theirs.fileno()}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=dict(environment), cwd=ROOT, pass_fds=[theirs.fileno()]
    )
    theirs.close()
    launcher = Launcher(process.pid, ours)
    yield launcher
    launcher.close()


def serve_forks(connection: socket.socket) -> None:
    """The launcher's life: forks what it is asked to, says how it ended, and ends when nobody is left to ask."""
    detach_from_tests()
    while True:
        data, descriptors, *_ = socket.recv_fds(connection, MOST_BYTES, 2)
        if not data:
            os._exit(0)
        request = json.loads(data)
        if "wait" in request:
            pid, status, used = os.wait4(request["wait"], os.WNOHANG)
            answer = [os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime] if pid else [None, 0.0]
            connection.send(json.dumps(answer).encode())
            continue
        pid = os.fork()
        if pid == 0:
            connection.close()
            be_command(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(json.dumps(pid).encode())


def detach_from_tests() -> None:
    """Lets go of what belongs to the tests: their terminal, their signals, and what is to be done at their end."""
    atexit._clear()
    weakref.finalize._registry.clear()  # the temporary folders of the tests
    weakref.finalize._registered_with_atexit = False
    atexit.register(multiprocessing.util._exit_function)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests; the launcher ends with them
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.root.handlers.clear()


def be_command(request: dict[str, Any], descriptors: list[int]) -> None:
    """Is this command, from its arguments to its exit status; never returns."""
    status = 1
    try:
        for descriptor, number in zip(descriptors, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        sys.stderr = sys.__stderr__ = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        sys.stdin = sys.__stdin__ = Path(os.devnull).open()  # noqa: SIM115
        reset_process(request)
        status = run_as_main(request["command"])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):  # as Python ends
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
        if status == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(status)


def reset_process(request: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    forks = multiprocessing.get_context("fork")
    multiprocessing.context._concrete_contexts.update(spawn=forks, forkserver=forks)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))  # as after a spawn
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    warnings.showwarning = write_warning
    for known in list(logging._handlerList):
        handler = known()
        if type(handler) is logging.StreamHandler:  # made at an import, to write to what was stderr there
            handler.setStream(sys.stderr)


def write_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def run_as_main(command: list[str]) -> int:
    """Runs a script, `-m MODULE` or `-c PROGRAM` as Python does; its exit status."""
    kind, *rest = command
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [str(Path(kind).resolve().parent) if not kind.startswith("-") else os.getcwd(), *paths]
    try:
        if kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = command
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as stopped:
        if stopped.code is None or isinstance(stopped.code, int):
            return stopped.code or 0
        print(stopped.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    return 0
