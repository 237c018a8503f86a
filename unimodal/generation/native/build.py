"""Compile and load the C++ of this folder, once for each version of it.

The system's compiler makes it at first use, in about ten seconds, in the folder of torch's extensions
(`TORCH_EXTENSIONS_DIR`). One command and a rename do it, since torch's own loader needs ninja, and waits for ever on
the lock of a build that was killed. Where it cannot be made, the reason is kept and decoding goes on with torch's
operators.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCES = ("step.cpp", "crew.h", "teams.h", "attention.h", "products.h", "vector.h")
# -ffp-contract=off: sums are to be the same, to the last bit, however many rows are computed
FLAGS = ("-O3", "-std=c++17", "-mavx2", "-mfma", "-mf16c", "-ffp-contract=off", "-pthread", "-shared", "-fPIC")
# What `vector.h` asks for beside these, by the names that Linux has for a processor's features.
WIDE = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
OFF = "UNIMODAL_NO_NATIVE"
NARROW = "UNIMODAL_NO_AVX512"

log = logging.getLogger("unimodal.generation")


@cache
def load_native() -> tuple[ctypes.CDLL | None, str]:
    """The compiled library, or None and why there is none, in a few words."""
    if os.environ.get(OFF):
        return None, f"{OFF} is set"
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return None, "the processor has no AVX2"
    try:
        return ctypes.CDLL(str(build_native())), ""
    except OSError as error:
        log.warning("decoding is slower than it could be: %s", error)
        return None, str(error)


def choose_flags() -> tuple[str, ...]:
    """Those of this processor: AVX-512 where it has all of `WIDE` and UNIMODAL_NO_AVX512 is not set, else AVX2."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    known = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    if os.environ.get(NARROW) or not known.issuperset(WIDE):
        return FLAGS
    return (*FLAGS, *(f"-m{name.replace('_', '')}" for name in WIDE))


def build_native() -> Path:
    """The compiled library of these sources; made if it is not there. Raises OSError, of one line, if it cannot be."""
    from torch.utils.cpp_extension import get_cxx_compiler, get_default_build_root

    folder = Path(__file__).parent
    read = b"".join((folder / name).read_bytes() for name in SOURCES)
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    flags = choose_flags()
    made = root / f"unimodal_step_{hashlib.sha256(read + ' '.join(flags).encode()).hexdigest()[:16]}.so"
    if made.is_file():
        return made
    log.info("compiling %s, once", made)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as room:
        fresh = Path(room) / made.name
        command = [get_cxx_compiler(), *flags, str(folder / SOURCES[0]), "-o", str(fresh)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise OSError(f"there is no C++ compiler ({command[0]})") from None
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines() or ["it said nothing"]
            raise OSError(f"{command[0]} could not compile {SOURCES[0]}: {said[0][:160]}") from None
        os.replace(fresh, made)
    return made
