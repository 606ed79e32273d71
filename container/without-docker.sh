#!/usr/bin/env bash
# Builds the image and runs it for real on a machine that has neither a Docker engine nor a way to a registry of images:
# debootstrap makes the base, buildah builds, podman runs. As root, on Debian or Ubuntu:
#
#   apt-get install --no-install-recommends buildah podman debootstrap
#   container/without-docker.sh base     # debian:bookworm-slim, made from Debian's packages
#   container/without-docker.sh build    # further arguments go to buildah: --build-arg NAME=VALUE, --secret id=pip,src=FILE
#   container/without-docker.sh check    # starts it hardened, asks it, stops it, and prints what was found
#   container/without-docker.sh clean    # gives the disk back
#
# STORE  where images and containers lie, apart from those of other tools (default /var/tmp/bypass-container)
# DRIVER how layers are stacked: overlay, or vfs where the kernel or the file system refuses it
# MIRROR Debian's mirror (default: debootstrap's own)
# IMAGE  the name to build and check (default bypass)
# PORT   where `check` publishes the app (default 8599)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

STORE=${STORE:-/var/tmp/bypass-container}
DRIVER=${DRIVER:-overlay}
MIRROR=${MIRROR:-}
IMAGE=${IMAGE:-bypass}
PORT=${PORT:-8599}
BASE=docker.io/library/debian:bookworm-slim
WHERE=(--root "$STORE/images" --runroot "$STORE/run" --storage-driver "$DRIVER")

die() { echo "without-docker.sh: $*" >&2; exit 2; }
need() { command -v "$1" > /dev/null || die "$1 is missing: apt-get install --no-install-recommends buildah podman debootstrap"; }

# What Debian's slim images leave out, so that sizes can be compared: documents, manuals, translations, package lists.
base() {
  need debootstrap; need buildah
  local root=$STORE/rootfs
  rm -rf "$root"; mkdir -p "$root"
  debootstrap --variant=minbase bookworm "$root" ${MIRROR:+"$MIRROR"} > "$STORE/debootstrap.log" 2>&1 \
    || die "debootstrap failed, see $STORE/debootstrap.log"
  # Security updates lie beside the archive; a later `apt-get install` in the image then takes them.
  sed -En 's|^deb (.*)/debian/? bookworm .*|deb \1/debian-security bookworm-security main|p' "$root/etc/apt/sources.list" \
    > "$STORE/security.list"
  cat "$STORE/security.list" >> "$root/etc/apt/sources.list"
  printf 'path-exclude /usr/share/%s/*\n' doc man info groff lintian linda locale > "$root/etc/dpkg/dpkg.cfg.d/slim"
  printf 'path-include /usr/share/%s\n' 'doc/*/copyright' locale/locale.alias >> "$root/etc/dpkg/dpkg.cfg.d/slim"
  chroot "$root" apt-get -qq update
  DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -qq -y upgrade > /dev/null
  find "$root/usr/share/doc" -type f ! -name copyright -delete
  find "$root/usr/share/doc" -mindepth 1 -empty -delete
  rm -rf "$root"/usr/share/{man,info,groff,lintian,linda,locale}/* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/*
  local container
  container=$(buildah "${WHERE[@]}" from scratch)
  buildah "${WHERE[@]}" add -q "$container" "$root" / > /dev/null
  buildah "${WHERE[@]}" config --cmd bash "$container"
  buildah "${WHERE[@]}" commit -q --format docker --rm "$container" "$BASE" > /dev/null
  rm -rf "$root"
  size "$BASE"
}

size() { podman "${WHERE[@]}" image inspect --format "$1: {{.Size}} bytes" "$1"; }

# Isolation by chroot needs no rights that a container in a container would lack; health checks need Docker's image format.
build() {
  need buildah; need podman
  mkdir -p "$STORE/tmp"
  TMPDIR=$STORE/tmp buildah "${WHERE[@]}" bud --isolation chroot --format docker --pull=never "$@" -t "$IMAGE" .
  size "$IMAGE"
}

clean() {
  need podman
  podman "${WHERE[@]}" rm -f --all > /dev/null
  buildah "${WHERE[@]}" rm --all > /dev/null
  rm -rf --one-file-system "$STORE"
}

case "${1:-}" in
  base | build | clean) "$@" ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
