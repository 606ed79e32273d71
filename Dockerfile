# The browser app in demo mode: `docker build -t bypass .`, then `docker run -p 8501:8501 bypass`. See docs/container.md.
#
# What changes least comes first: Debian's Python, torch, the other dependencies, the project. pip is lent to the stages that
# install and is in no layer of the image. What a layer depends on is copied, never mounted: some builders' caches look at
# copied files only.

FROM debian:bookworm-slim AS python
# Nothing in this image needs a program that changes its user.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3.11=3.11.* ca-certificates=20* \
 && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/ldconfig/aux-cache \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +


FROM python AS tools
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3.11-venv=3.11.* \
 && rm -rf /var/lib/apt/lists/* \
 && python3.11 -m venv /opt/tools


FROM tools AS requirements
WORKDIR /requirements
COPY constraints.txt pyproject.toml container/requirements.py ./
RUN grep '^torch==' constraints.txt > torch.txt \
 && python3.11 requirements.py pyproject.toml toxicity app > rest.txt


FROM python AS dependencies
# Where packages come from. PyPI's torch for Linux carries several GB of CUDA; PyTorch's own index has the CPU build, which pip
# prefers. An empty PIP_EXTRA_INDEX_URL therefore makes the image for a GPU. A pip.conf (a mirror, credentials) and a CA
# certificate can be lent to the build as the secrets `pip` and `ca`: they are in no layer.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_INDEX_URL
ARG PIP_CERT
ARG PIP_CONFIG_FILE=/run/secrets/pip
RUN python3.11 -m venv --without-pip /opt/venv \
 && echo /opt/project > /opt/venv/lib/python3.11/site-packages/project.pth
COPY --from=requirements /requirements/torch.txt /opt/requirements/
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=secret,id=pip --mount=type=secret,id=ca \
    /opt/tools/bin/pip --python /opt/venv/bin/python install --no-cache-dir --only-binary :all: --no-deps \
      -r /opt/requirements/torch.txt
COPY --from=requirements /requirements/rest.txt /requirements/constraints.txt /opt/requirements/
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=secret,id=pip --mount=type=secret,id=ca \
    /opt/tools/bin/pip --python /opt/venv/bin/python install --no-cache-dir --only-binary :all: \
      -r /opt/requirements/rest.txt -c /opt/requirements/constraints.txt


FROM dependencies AS project
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=secret,id=pip --mount=type=secret,id=ca \
    /opt/tools/bin/pip --python /opt/venv/bin/python install --no-cache-dir --only-binary :all: \
      -c /opt/requirements/constraints.txt setuptools
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY training training
COPY interp interp
COPY app app
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    /opt/tools/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-index --no-deps --no-build-isolation \
      --target /opt/project .


FROM dependencies AS app
LABEL org.opencontainers.image.title="Bypass" \
      org.opencontainers.image.description="What preference tuning changes inside a language model: the browser app" \
      org.opencontainers.image.licenses="Apache-2.0"
# The root can be read-only: everything that is written goes to /data. Streamlit's welcome would ask a server on the internet for
# this machine's address.
RUN groupadd --gid 10001 bypass \
 && useradd --uid 10001 --gid bypass --home-dir /data --no-create-home --no-log-init --shell /usr/sbin/nologin bypass \
 && install -d -o bypass -g bypass /data \
 && install -d /models
COPY --from=project /opt/project /opt/project
ENV PATH=/opt/project/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/data \
    TMPDIR=/data \
    XDG_CACHE_HOME=/data/cache \
    HF_HOME=/data/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    STREAMLIT_LOGGER_HIDE_WELCOME_MESSAGE=true \
    MPLCONFIGDIR=/data/matplotlib \
    BYPASS_MODELS=/models \
    BYPASS_REPORT=/data/report \
    BYPASS_RUNS=/data/runs
USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["bypass"]
CMD ["app", "--demo", "--host", "0.0.0.0", "--no-browser"]
