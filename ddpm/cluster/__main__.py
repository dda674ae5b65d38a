"""Commands that jobs start, not people: `python -m ddpm.cluster trials|images|node|probe ...`.

trials FILE    the trials of a batch, one after the other
images FILE    the images of a batch
node FOLDER    one node's part of the Ray of a SLURM job
probe          the speed of networks, a request as JSON on standard input
"""

import sys


def main(name: str, *arguments: str) -> int:
    """The exit code of one command; only what it needs is imported."""
    from ddpm.errors import run_main

    if name == "trials":
        from ddpm.cluster.submit_sweep import train_task

        return run_main(lambda: train_task(*arguments))
    if name == "images":
        from ddpm.cluster.submit_images import draw_task

        return run_main(lambda: draw_task(*arguments))
    if name == "node":
        from ddpm.cluster.ray_cluster import serve_node

        return serve_node(*arguments)
    if name == "probe":
        from ddpm.cluster.cost import answer_probe

        return answer_probe()
    raise SystemExit(__doc__)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
