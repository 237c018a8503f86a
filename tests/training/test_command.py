"""How a recipe ends: its exit status, and as a rank without a teardown that threads of gloo may not survive."""

import os
import sys
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.free_ports import free_ports

ROOT = Path(__file__).parents[2]
RECIPE = '''
"""A recipe whose teardown aborts the process."""
import atexit, os
from pathlib import Path
from unimodal.config import Config
from unimodal.training.command import run_recipe
from unimodal.training.distributed import start
from unimodal.training.loop import Interrupted

class Settings(Config):
    raises: str = "nothing"
    sent: Path

class Aborts:
    def __del__(self, abort=os.abort):
        abort()

def run(cfg, dry_run):
    global kept
    kept = Aborts()
    atexit.register(cfg.sent.write_text, "last rows of a tracker")
    parallel = start("ddp")
    print("trained on", parallel.sum_over_ranks([1.0]))
    if cfg.raises != "nothing":
        raise {"error": ValueError, "stop": Interrupted}[cfg.raises]("why it ended")
    parallel.close()

run_recipe(Settings, run)
'''


@pytest.mark.parametrize(("raises", "status"), [("nothing", 0), ("error", 2), ("stop", 130)])
def test_a_rank_ends_with_its_status_and_without_teardown(
    commands: Commands, tmp_path: Path, raises: str, status: int
) -> None:
    script, sent = tmp_path / "recipe.py", tmp_path / "sent.txt"
    script.write_text(RECIPE)
    [port] = free_ports(1)
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(script), "--set", f"sent={sent}", "--set", f"raises={raises}"]
    done = commands.run(command, env={**os.environ, **ranks, "PYTHONPATH": str(ROOT)})
    assert done.returncode == status, done.stderr[-2000:]
    assert done.stdout == "trained on [1.0]\n" and sent.read_text() == "last rows of a tracker"
    assert ("why it ended" in done.stderr) == (status != 0) and "Traceback" not in done.stderr
