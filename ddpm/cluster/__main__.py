"""Commands that jobs start, not people: `python -m ddpm.cluster trials|images|node|probe ...`.

trials GROUP.json     the trials of a batch, one after the other
images TASK.json      the images of a task file
node FOLDER           one node's part of the Ray of a SLURM job
probe                 the speed of networks, asked for as JSON on standard input
"""

import sys


def main(name: str, arguments: list[str]) -> int:
    """The exit code of one command; only what it needs is imported."""
    from ddpm.errors import run_main

    if name == "trials":
        from ddpm.cluster import submit_sweep

        return run_main(lambda: submit_sweep.train_batch(*arguments))
    if name == "images":
        from ddpm.cluster import submit_images

        return run_main(lambda: submit_images.draw_file(*arguments))
    if name == "node":
        from ddpm.cluster import ray_cluster

        return ray_cluster.serve_node(*arguments)
    if name == "probe":
        from ddpm.cluster import cost

        return cost.answer_probe()
    raise SystemExit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
