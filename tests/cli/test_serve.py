"""`unimodal serve` as a command: what it says, how it ends, and how it refuses."""

import os
import re
import signal
import socket
import sys
import time

import httpx2 as httpx
import pytest

from tests.tiny_model import tiny_folder
from unimodal.cli import app as cli

pytestmark = pytest.mark.sweep("commands")


def refuse(capsys, *more):
    """The command in this process, where it ends before it serves: its status, stdout and stderr."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["serve", "--model", str(tiny_folder()), *more])
    return stopped.value.code, *capsys.readouterr()


def address(process):
    """Where the process says that it listens; its stderr is a pipe or a file that grows."""
    said = ""
    while process.poll() is None:
        said += process.stderr.readline()
        if found := re.search(r"served at (\S+) .*\n", said):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(f"ended with {process.returncode}: {said}{process.stderr.read()}")


def test_it_says_where_answers_and_ends_on_ctrl_c(commands):
    process = commands.begin(
        [sys.executable, "-m", "unimodal", "serve", "--model", str(tiny_folder()), "--port", "0", "--max-batch", "2"],
        env={**os.environ, "UNIMODAL_API_KEY": "from-outside"},
    )
    try:
        url = address(process)
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        assert httpx.get(f"{url}/v1/models").status_code == 401
        key = {"Authorization": "Bearer from-outside"}
        answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a cat"}, headers=key, timeout=60)
        assert answer.status_code == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and out == "" and "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port"),
        (["--max-batch", "0"], "--max-batch"),
        (["--allow-host", "https://a.org"], "--allow-host"),
        (["--allow-origin", "a.org"], "--allow-origin"),
        (["--alias", " "], "--alias"),
        (["--timeout-s", "0"], "--timeout-s"),
        (["--api-key", " x "], "--api-key"),
        (["--timeout-s", "inf"], "--timeout-s"),
        (["--max-body-mb", "inf"], "--max-body-mb"),
        (["--api-key", ""], "--api-key"),  # of a variable that was not set
        (["--host", ""], "--host is not usable: give an address"),  # not every address
        (["--host", " "], "--host is not usable: give an address"),
        (["--host", "no.such.host.invalid"], "choose another --host"),
        (["--weights", "int3"], "--weights"),
        (["--weights", "int8", "--compress", "stride"], "--weights"),
        (["--kv", "int3"], "--kv"),
        (["--cache", "0"], "--cache"),
        (["--cache", "nan"], "--cache"),
        (["--kv", "int8", "--compress", "stride"], "--kv"),
        (["--compress", "divprun"], "did you mean divprune"),
        (["--compress", "tokenflex:0.5"], "learned"),
        (["--compress", "no/such/folder"], "no such folder"),
        (["--model", "no/such/folder/at/all"], "no such folder"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(options, message, capsys):
    status, out, err = refuse(capsys, *options)
    lines = [line for line in err.splitlines() if line.startswith("unimodal: ")]
    assert status == 2 and out == "" and len(lines) == 1 and message in lines[0]


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, err = refuse(capsys, "--port", str(taken.getsockname()[1]))
    assert status == 2 and "(Address already in use); choose another --port" in err.splitlines()[-1]
