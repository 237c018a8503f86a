"""How fast a tokenizer is and how much memory it takes, alone and sixteen at once."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from torch.profiler import ProfilerActivity, profile

BATCHES = (1, 16)
TIMED_RUNS = 3
MOST_SECONDS = 5.0  # that one item takes, where sixteen are still tried

Work = Callable[[], object]


def measure_speed(prepare: Callable[[int], tuple[Work, Work]], seconds: float | None = None) -> dict[str, float]:
    """Milliseconds an item to encode and to decode in each of `BATCHES`, medians of three runs after one; of media with
    time also how many times faster than they last; and the peak of memory in MB, `…_peak_mb` of one item.

    prepare: a batch size → what encodes and what decodes so many items. seconds: how long one item lasts. Where one
    item takes more than `MOST_SECONDS`, sixteen are not tried.
    """
    found: dict[str, float] = {}
    slowest = 0.0
    for batch in BATCHES:
        if slowest > MOST_SECONDS:
            break
        for name, run in zip(("encode", "decode"), prepare(batch), strict=True):
            spent = _time_median(run)
            slowest = max(slowest, spent)
            found[f"{name}_ms_batch_{batch}"] = round(1000 * spent / batch, 2)
            if seconds is not None:
                found[f"{name}_times_real_time_batch_{batch}"] = round(seconds * batch / spent, 2)
            peak = "peak_mb" if batch == 1 else f"peak_mb_batch_{batch}"
            found[f"{name}_{peak}"] = round(measure_peak_bytes(run) / 1e6, 2)
    return found


def _time_median(run: Work) -> float:
    run()
    times = []
    for _ in range(TIMED_RUNS):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return median(times)


def measure_peak_bytes(run: Work) -> int:
    """The most bytes that tensors take at one time beside those that were there before, by torch's profiler: scratch
    space of libraries and the weights do not count."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler says on the screen that it begins and ends
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = peak = 0
    changes = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(changes, key=lambda event: float(event["ts"])):
        held += int(event["args"]["Bytes"])
        peak = max(peak, held)
    return peak
