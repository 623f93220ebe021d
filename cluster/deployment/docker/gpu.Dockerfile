# The image of every node with GPUs, and of the head beside them. Build it from the repository's root:
#   docker build -f cluster/deployment/docker/gpu.Dockerfile -t broadfast:gpu .
# Versions are those of pyproject.toml; CUDA's libraries come with the packages, so a node needs only the driver.
FROM python:3.11-slim

# A compiler for kernels that are built when they are first used; wget for KubeRay's probes; openssh and rsync for
# the cluster launcher.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/broadfast
COPY pyproject.toml README.md LICENSE ./
COPY cluster cluster
COPY mpcot mpcot
COPY teacher teacher
COPY distill distill
COPY serve serve
COPY workflows workflows
# boto3 is for the cluster launcher on AWS: its autoscaler runs in this image, on the head.
RUN pip install --no-cache-dir --editable '.[gpu]' boto3

# Nodes import the code from here, whatever folder a process is started in.
ENV PYTHONPATH=/opt/broadfast \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0

RUN useradd --create-home --uid 1000 ray
USER ray
