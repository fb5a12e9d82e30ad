# docker build -t hf_distill .                                          PyTorch as `pip install torch` gives it: CUDA
# docker build -t hf_distill --build-arg TORCH_INDEX=URL .              another build, such as that for CPUs alone
# docker run --rm --gpus all -v "$PWD/outputs:/runs/outputs" hf_distill tesla --config cifar10-ipc10
#
# URL is the --index-url that PyTorch's page on installing gives for that build.
FROM python:3.12-slim

ARG TORCH_INDEX=
# Both from one place: a torch without CUDA does not go with a torchvision that has it.
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.8" "torchvision>=0.23"

COPY pyproject.toml README.md LICENSE /src/
COPY hf_distill /src/hf_distill
COPY recipes /src/recipes
COPY model_cards /src/model_cards
RUN pip install --no-cache-dir "/src[plots]" && rm -r /src

# What is downloaded stays in a volume, where one is mounted there.
ENV HF_HOME=/runs/cache
WORKDIR /runs
ENTRYPOINT ["hf-distill"]
