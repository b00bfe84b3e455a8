# The service with its checkpoints. Two stages: what builds is left behind, what runs is a virtual environment.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \
    && python -m venv /opt/aft
WORKDIR /src
COPY pyproject.toml constraints.txt CMakeLists.txt README.md LICENSE ./
COPY model model
COPY service service
# an image without the kernel, or with torch beside it, would be another one than was tested
RUN /opt/aft/bin/pip install --constraint constraints.txt . \
    && cd / && /opt/aft/bin/python -c "import sys, model.runtime.native.runtime; sys.exit('torch' in sys.modules)" \
    && rm -rf /opt/aft/lib/python3.11/site-packages/pip*

FROM ${BASE}

RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin aft
COPY --from=build /opt/aft /opt/aft
COPY checkpoints /checkpoints
ENV PATH=/opt/aft/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    AFT_HOST=0.0.0.0 AFT_PORT=8000 AFT_CHECKPOINTS=/checkpoints
USER 10001
EXPOSE 8000
# running streams have 30 s to finish (AFT_DRAIN_SECONDS): give `docker stop` a longer grace than that
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import os, http.client as h; c = h.HTTPConnection('127.0.0.1', int(os.environ['AFT_PORT']), timeout=2); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["aft", "serve"]
