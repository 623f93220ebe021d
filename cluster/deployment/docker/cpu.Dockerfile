# The image of nodes without GPUs, such as those of the student's service. Build it from the repository's root:
#   docker build -f cluster/deployment/docker/cpu.Dockerfile -t broadfast:cpu .
# Versions are those of pyproject.toml. Give PyTorch's CPU wheel index as PIP_EXTRA_INDEX_URL, or pip takes a CUDA
# build, which is several GB larger: --build-arg PIP_EXTRA_INDEX_URL=…
FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL=

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
# Builds of these that do not match a CPU torch break `import transformers`, and text needs none.
RUN pip install --no-cache-dir --editable '.[cpu]' \
    && for name in torchvision torchaudio torchcodec; do \
         python -c "import $name" 2> /dev/null || pip uninstall --yes --quiet $name; done

# Nodes import the code from here, whatever folder a process is started in.
ENV PYTHONPATH=/opt/broadfast \
    RAY_USAGE_STATS_ENABLED=0

RUN useradd --create-home --uid 1000 ray
USER ray
