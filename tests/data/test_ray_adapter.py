"""Ray runs the class that processes run: the map function by itself, and by Ray where it is installed."""

import importlib.util
import json

import pytest

from tests.tiny_model import tiny_folder
from unimodal.corpus.shard_jobs import CorpusJob, ShardWriter, run_worker
from unimodal.data.ray_adapter import map_with_ray

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.fixture
def job(tmp_path):
    lines = [{"prompt": f"what is {number}?", "completion": f"it is {number}"} for number in range(11)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return CorpusJob(
        model=str(tiny_folder()), datasets={"x": {"path": str(tmp_path / "x.jsonl")}}, documents_per_shard=3,
        out=tmp_path / "out",
    )  # fmt: skip


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_mapping_the_items_in_any_order_gives_the_bytes_of_a_worker(job, tmp_path):
    """What an actor does: the constructor once, then one dict in, one dict out, whichever items it is given."""
    run_worker(job, 0, 1)
    other = job.model_copy(update={"out": tmp_path / "other"})
    actors = [ShardWriter(other), ShardWriter(other)]
    items = ShardWriter(other).list_items()
    results = [actors[number % 2](item) for number, item in enumerate(reversed(items))]
    assert contents(tmp_path / "other") == contents(tmp_path / "out")
    assert [result["documents"] for result in results] == [2, 3, 3, 3] and all(result["written"] for result in results)
    json.dumps(results)  # rows of a Ray dataset are plain values
    assert actors[0](items[0]) == {**items[0], "written": False, "documents": 3}  # done already


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_one_line_says_what_to_install():
    with pytest.raises(
        ValueError, match=r"engine ray needs the package ray; install it with pip install 'ray\[data\]'"
    ) as e:
        map_with_ray([{"dataset": "x", "shard": 0}], ShardWriter)
    assert "\n" not in str(e.value)


@pytest.mark.skipif(not HAS_RAY, reason="needs ray")
@pytest.mark.timeout(300)
def test_ray_gives_the_bytes_of_a_worker(job, tmp_path):
    run_worker(job, 0, 1)
    other = job.model_copy(update={"out": tmp_path / "other"})
    results = map_with_ray(ShardWriter(other).list_items(), ShardWriter, (other,), num_actors=2)
    assert len(results) == 4 and contents(tmp_path / "other") == contents(tmp_path / "out")
