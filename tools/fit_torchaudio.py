"""Replace a torchaudio that does not load beside this torch by the same version of torch's own build, if there is one.

    python tools/fit_torchaudio.py [--extra-index-url URL]

PyPI's torchaudio links CUDA; beside a CPU build of torch it does not load, and transformers then loads no model before
`import unimodal`. The build that fits lies where torch came from. Where pip finds none, that is said, and nothing else
is done.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys

from unimodal._torchaudio import find_problem, name_fitting_version


def fit(index: str | None) -> str:
    """What was done, in one line."""
    torch, torchaudio = importlib.metadata.version("torch"), importlib.metadata.version("torchaudio")
    problem = find_problem()
    if problem is None:
        return f"torchaudio {torchaudio} loads beside torch {torch}"
    fitting = name_fitting_version(torch, torchaudio)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", fitting]
    done = subprocess.run(
        [*install, *(["--extra-index-url", index] if index else [])], capture_output=True, check=False
    )
    if done.returncode == 0:
        return f"{fitting} is installed in place of {torchaudio}, which does not load beside torch {torch}"
    return (
        f"torchaudio {torchaudio} does not load beside torch {torch} ({problem}), and pip finds no {fitting}: "
        "transformers loads models only after `import unimodal`; `make demo TORCH_INDEX=URL` "
        "takes it from where torch came from"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra-index-url", metavar="URL", help="where pip looks, too")
    print(fit(parser.parse_args().extra_index_url), file=sys.stderr)
