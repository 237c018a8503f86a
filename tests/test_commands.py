"""A forked command is a process as `subprocess.run` gives one: arguments, environment, outputs, status, signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.commands import ROOT

TELL = """
import atexit, logging, os, sys, tempfile, warnings
atexit.register(lambda: print("the end"))
place = tempfile.TemporaryDirectory()
print(sys.argv[1:], os.environ.get("WORD"), os.getcwd(), __name__, os.path.isdir(place.name))
warnings.warn("take care")
logging.getLogger("here").warning("a log")
"""


def run_both(commands, program, *words, **environment):
    """The same command forked, and from its first import on."""
    command = [sys.executable, "-c", program, *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return commands.run(command, env=env, cwd=ROOT / "docs"), subprocess.run(
        command, env=env, cwd=ROOT / "docs", capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("end", "status"),
    [("", 0), ("sys.exit(3)", 3), ("sys.exit('a word')", 1), ("1 / 0", 1), ("os.kill(os.getpid(), 9)", -9),
     ("raise KeyboardInterrupt", -2)],
)  # fmt: skip
def test_it_says_and_ends_as_a_process_does(commands, end, status):
    forked, true = run_both(commands, TELL + end, "a", "b c", WORD="x")
    assert forked.returncode == true.returncode == status
    assert forked.stdout == true.stdout and "['a', 'b c'] x" in forked.stdout
    last = [done.stderr.strip().splitlines()[-1] for done in (forked, true)]
    assert last[0] == last[1] and "take care" in forked.stderr and "a log" in forked.stderr


def test_it_takes_signals_and_tells_of_its_time(commands):
    from tests.timing import read_processor_s

    program = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(7))\nprint('ready', flush=True)\n"
    program += "while True: pass"
    before_s = read_processor_s()
    begun = commands.begin([sys.executable, "-c", program])
    end_s = time.monotonic() + 60
    while not begun.stdout.readline() and time.monotonic() < end_s:
        time.sleep(0.01)
    time.sleep(0.3)
    begun.send_signal(signal.SIGTERM)
    begun.communicate(timeout=60)
    assert begun.returncode == 7 and read_processor_s() - before_s > 0.05


def test_what_the_tests_made_outlives_it(commands, tmp_path_factory):
    from tests.tiny_model import tiny_folder

    folder = tiny_folder()
    leave = "import atexit, os; atexit._run_exitfuncs(); os._exit(0)"  # as a rank of a training ends
    assert commands.run([sys.executable, "-c", leave]).returncode == 0
    assert (folder / "config.json").is_file()
