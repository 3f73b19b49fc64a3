# A profile of python: the python image plus what profiles/$PROFILE/requirements.txt lists.
ARG BUILDER=sandbox-svc/builder:latest
ARG PYTHON=sandbox-svc/python:latest

FROM ${PYTHON} AS python

FROM ${BUILDER} AS packages
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PROFILE
ARG SITE=/usr/local/lib/python3.13/dist-packages
COPY --from=python ${SITE} ${SITE}
COPY --from=python /opt/sandbox/packages.json /build/before.json
COPY python/profiles/${PROFILE}/requirements.txt python/add_packages.py /build/
RUN python3 /build/add_packages.py

FROM ${PYTHON}
COPY --from=packages /new /
ARG MANIFEST
RUN printf '%s' "$MANIFEST" >/opt/sandbox/manifest.json
COPY base/smoke_test.py python/profile_smoke.py /tmp/
RUN python3 -I /tmp/smoke_test.py python /tmp/profile_smoke.py && rm /tmp/*smoke*
LABEL org.opencontainers.image.title="sandbox_svc python profile" \
      org.opencontainers.image.description="Python sandbox with the packages of a profile"
