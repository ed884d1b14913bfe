# vocalremover for training and separating on NVIDIA GPUs; it runs on a CPU as well, only slower. Build and use:
#
#   docker build -t vocalremover .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" vocalremover separate song.mp3
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -v "$PWD:/work" --entrypoint torchrun \
#       vocalremover --nproc-per-node 2 -m -- vocalremover train --model v10 --vocals voices --instrumentals backings \
#       --validation songs --out runs/mine
#
# --user makes what is written yours; --ipc=host gives processes that prepare audio room to hand it over. Weights that
# do not come along are looked for in models/ of the folder that is mounted.

# PyTorch's wheels bring CUDA's libraries; the base brings what lets a container see the GPUs.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

# gcc and the headers are what torch.compile makes its kernels with.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

COPY setup.cfg setup.py pyproject.toml README.md LICENSE NOTICE /opt/source/
COPY checkpoints /opt/source/checkpoints
COPY vocalremover /opt/source/vocalremover
RUN pip install --no-cache-dir "/opt/source[train]" && rm -rf /opt/source

# Any user may run it, so caches go where any user may write.
RUN useradd --create-home --uid 10001 remover
USER remover
ENV HOME=/tmp VOCALREMOVER_HOME=/work
WORKDIR /work
ENTRYPOINT ["vocalremover"]
CMD ["--help"]
