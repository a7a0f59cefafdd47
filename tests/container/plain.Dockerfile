# A Debian with its PostgreSQL and pgBackRest, and nothing else: what the image is measured against,
# and what the overlay is put on.
ARG BASE=debian:trixie-slim
FROM ${BASE}
RUN groupadd -r postgres --gid=999 \
 && useradd -r -g postgres --uid=999 --home-dir=/var/lib/postgresql --shell=/bin/bash postgres \
 && mkdir -p /etc/postgresql-common \
 && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf \
 && export DEBIAN_FRONTEND=noninteractive \
 && apt-get update \
 && major=$(apt-cache depends postgresql | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p') \
 && jit=$(apt-cache search --names-only "^postgresql-$major-jit\$" | cut -d' ' -f1) \
 && apt-get install -y --no-install-recommends "postgresql-$major" $jit pgbackrest \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin \
 && ln -s "$major/bin" /usr/lib/postgresql/bin \
 && install -d -o postgres -g postgres -m 1777 /var/lib/postgresql
ENV PATH=/usr/lib/postgresql/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8
VOLUME /var/lib/postgresql
USER postgres
