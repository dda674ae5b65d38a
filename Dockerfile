# The package and its pinned dependencies, for Docker, Podman and KubeRay (docs/ray_jobs.md):
#
#   docker build -t ddpm .
#   docker run --rm --gpus all --shm-size=8g -v "$PWD:/work" ddpm train configs/digits.yaml
FROM python:3.11-slim-bookworm
# KubeRay's probes of a pod are wget's
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
WORKDIR /ddpm
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY sweeps sweeps
COPY slurm slurm
COPY ddpm ddpm
RUN python3 -m pip install --no-cache-dir --constraint constraints.txt \
    ".[v3,lmdb,search,pictures,reports]" "ray[default]"
WORKDIR /work
ENTRYPOINT ["ddpm"]
