"""Ray Data as one more way to run a list of independent jobs: a pool of actors takes the items.

A mapper is a class: its constructor loads what is heavy, once per actor; calling it turns one item, a dict, into its
result, a dict. Plain processes run the same class, so the tests test what a cluster does. On small machines processes
are faster (Ray takes seconds to start); Ray is for many machines that share a file system.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

ItemT = TypeVar("ItemT", bound=Mapping[str, object])
ResultT = TypeVar("ResultT", bound=Mapping[str, object])


def map_with_ray(
    items: Sequence[ItemT],
    mapper: Callable[..., Callable[[ItemT], ResultT]],
    constructor_args: Sequence[object] = (),
    num_actors: int = 1,
    gpus_per_actor: float = 0,
) -> list[ResultT]:
    """`[mapper(*constructor_args)(item) for item in items]` on a Ray cluster, in no particular order.

    Raises ValueError where Ray is not installed. An error of a job ends the run with Ray's own exception.
    """
    try:
        import ray.data
    except ImportError:
        raise ValueError(
            "engine ray needs the package ray; install it with pip install 'ray[data]', or use engine processes"
        ) from None
    if not items:
        return []
    # a block for each item, so that actors take them one by one
    dataset = ray.data.from_items(list(items), override_num_blocks=len(items))
    mapped = dataset.map(
        mapper,
        fn_constructor_args=list(constructor_args),
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_gpus=gpus_per_actor or None,
    )
    return cast(list[ResultT], mapped.take_all())
