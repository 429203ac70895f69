# The code location as an image: a Dagster gRPC server that a webserver and a daemon elsewhere load.
# The index of python:3.12.15-slim-bookworm for all platforms; a later one is told by
# docker buildx imagetools inspect python:3.12-slim-bookworm
ARG PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:54c85f3c47607a77f32adec749d3c81d1348bf25833671f512b26a9b6d778cb3

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/crop-assets
ENV PATH=/opt/crop-assets/bin:$PATH
WORKDIR /src
# requirements-many.lock for workers on many machines
ARG LOCK=requirements.lock
COPY ${LOCK} ./
RUN python -m pip install --no-deps --require-hashes -r ${LOCK}
COPY pyproject.toml README.md LICENSE ./
COPY crop_assets ./crop_assets
COPY resources ./resources
RUN python -m pip install --no-deps --no-build-isolation .

FROM ${PYTHON_IMAGE}
# rasterio's wheel links to the system's expat
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 crop \
    && install --directory --owner=crop /data /dagster
COPY --from=build /opt/crop-assets /opt/crop-assets
COPY --chown=crop crop_assets/demo/dagster.yaml /dagster/dagster.yaml
ENV PATH=/opt/crop-assets/bin:$PATH \
    DAGSTER_HOME=/dagster \
    CROP_ASSETS_DATA=/data
USER crop
WORKDIR /home/crop
VOLUME ["/data"]
EXPOSE 4000
HEALTHCHECK --interval=30s --timeout=10s --retries=5 \
    CMD ["dagster", "api", "grpc-health-check", "--port", "4000"]
# All addresses, for a container's own loopback could not be reached; publish the port to trusted hosts only.
CMD ["dagster", "api", "grpc", "--host", "0.0.0.0", "--port", "4000", "--module-name", "crop_assets.definitions"]
