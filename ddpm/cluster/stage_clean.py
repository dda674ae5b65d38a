"""--clean-stage: the copies of shards go when what they were made for has ended, on every node."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ddpm.data import open_index, staging
from ddpm.errors import DdpmError, Interrupted

_LOG = logging.getLogger("ddpm.staging")
_PATIENCE_S = 60.0


@contextmanager
def cleaned(places: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Removes the copies after the `with`, on all nodes of the Ray that is up then, else on this.

    places: (folder of shards, DATASET.STAGE).  An interrupted training keeps its copies: the same
    command continues with them. One that failed does not.
    """
    places = list(places)
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        raise
    except BaseException:
        clean(places)
        raise
    clean(places)


def clean(places: Iterable[tuple[str, str]]) -> None:
    """Removes the copies that nobody reads from all nodes, as `cleaned` does."""
    places = sorted(set(places))
    if not places:
        return
    try:
        import ray

        if ray.is_initialized():
            _on_every_node(places)
        else:
            clean_here(places)
    except Exception as error:  # the training has ended: nothing about it changes any more
        _LOG.warning("--clean-stage: copies may be left on some node: %s", error)


def clean_here(places: Iterable[tuple[str, str]]) -> None:
    """Removes this node's copies that nobody reads."""
    for folder, setting in set(places):
        staging.clean(open_index(folder), setting)


def _on_every_node(places: list[tuple[str, str]]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tasks = [
        ray.remote(clean_here)
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote(places)
        for node in ray.nodes()
        if node["Alive"]
    ]
    _, late = ray.wait(tasks, num_returns=len(tasks), timeout=_PATIENCE_S)
    if late:
        raise DdpmError(f"{len(late)} of {len(tasks)} nodes did not answer")
    ray.get(tasks)
