# One image for both workers: `docker run kafka-workers produce`, `docker run kafka-workers consume`.
#
# The base is Debian (glibc) because the wheel of confluent-kafka is a manylinux one. It carries librdkafka with all
# that it is linked with.
FROM python:3.13-slim-trixie AS base

# Debian's archive has one version of it, so none is named.
FROM base AS init
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

FROM base AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# Extras of pyproject.toml that shall be in the image, each with a lock of its own: --build-arg EXTRAS="tracing schemas"
ARG EXTRAS=""
COPY requirements.txt requirements-tracing.txt requirements-schemas.txt requirements-aws.txt ./
# A venv without pip. Its bytecode is not checked against its sources when it is loaded, as neither changes in an image,
# and it is the same in every build.
RUN set -- \
    && for extra in $EXTRAS; do set -- "$@" -r "requirements-$extra.txt"; done \
    && python -m venv --without-pip /opt/kafka-workers \
    && pip --python /opt/kafka-workers/bin/python install --require-hashes --only-binary :all: --no-compile \
       -r requirements.txt "$@" \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/kafka-workers/lib

FROM dependencies AS package
# Python's headers are in the base, but for one with Debian's Python. The versions are Debian's, as above.
# hadolint ignore=DL3008
RUN if [ -e "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; then headers=; else headers=python3-dev; fi \
    && apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc libc6-dev $headers \
    && rm -rf /var/lib/apt/lists/*
COPY requirements-dev.txt ./
# What builds the wheel: of the development lock only the backend with what that needs, and setuptools, which compiles.
RUN awk '/^[a-z]/ { wanted = /^(hatchling|packaging|pathspec|pluggy|setuptools|tomlkit|trove-classifiers)==/ } wanted' \
       requirements-dev.txt > requirements-build.txt \
    && python -m venv --without-pip tools \
    && pip --python tools/bin/python install --require-hashes --only-binary :all: -r requirements-build.txt
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY workers ./workers
# Into a tree of its own, so that a change of our code is a new layer of a few hundred kilobytes and the one with the
# dependencies stays.
RUN KAFKA_WORKERS_COMPILE=yes tools/bin/python -m hatchling build -t wheel \
    && pip --python /opt/kafka-workers/bin/python install --no-deps --no-index --no-compile --no-warn-script-location \
       --prefix /package dist/*.whl \
    && python -m compileall -q --invalidation-mode unchecked-hash -s /package -p /opt/kafka-workers \
       /package/lib

FROM base
COPY --from=init /usr/bin/tini /usr/bin/tini
COPY --from=dependencies /opt/kafka-workers /opt/kafka-workers
COPY --from=package /package /opt/kafka-workers
# The root may be read-only, so Python must not try to write bytecode; 8000 is the default too, but said here it is a
# promise: a worker that cannot have this port ends instead of taking another one.
# Two heaps for all threads, where glibc would have up to eight for each core: what threads free for one another lies
# scattered over them, and after every outage more memory is resident (bench/ says what it costs).
ENV PATH=/opt/kafka-workers/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_ARENA_MAX=2 \
    KAFKA_METRICS_PORT=8000
# Handlers and sources are looked for in the working directory first: `COPY handlers.py /app/` makes them importable.
WORKDIR /app
# A number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 65532:65532
EXPOSE 8000
# The kernel drops a signal for process 1 that nobody handles yet. So process 1 is an init, which hears all of them: a
# SIGTERM in the first tenths of a second, while Python starts, ends the worker.
ENTRYPOINT ["tini", "--", "kafka-workers"]
CMD ["--help"]

# As in workers/__init__.py, which a test compares; a build that knows its commit says --build-arg REVISION=...
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kafka-workers" \
      org.opencontainers.image.description="Kafka producer and consumer workers in Python that account for every message" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim-trixie"
