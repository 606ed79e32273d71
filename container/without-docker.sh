#!/usr/bin/env bash
# Builds the image and runs it for real on a machine that has neither a Docker engine nor a way to a registry of images:
# debootstrap makes the base, buildah builds, podman runs. As root, on Debian or Ubuntu:
#
#   apt-get install --no-install-recommends buildah podman runc debootstrap
#   container/without-docker.sh base     # debian:bookworm-slim, made from Debian's packages
#   container/without-docker.sh build    # further arguments go to buildah: --build-arg NAME=VALUE, --secret id=pip,src=FILE
#   container/without-docker.sh check    # starts it hardened, asks it, stops it, and prints what was found
#   container/without-docker.sh clean    # gives the disk back
#
# STORE  where images and containers lie, apart from those of other tools (default /var/tmp/bypass-container)
# DRIVER how layers are stacked: overlay, or vfs where the kernel or the file system refuses it
# RUNTIME what podman starts containers with (default runc: Debian's crun refuses a machine with both versions of cgroups)
# MIRROR Debian's mirror (default: debootstrap's own)
# IMAGE  the name to build and check (default bypass)
# PORT   where `check` publishes the app (default 8599)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

STORE=${STORE:-/var/tmp/bypass-container}
DRIVER=${DRIVER:-overlay}
RUNTIME=${RUNTIME:-runc}
MIRROR=${MIRROR:-}
IMAGE=${IMAGE:-bypass}
PORT=${PORT:-8599}
BASE=docker.io/library/debian:bookworm-slim
WHERE=(--root "$STORE/images" --runroot "$STORE/run" --storage-driver "$DRIVER")
# podman asks for the largest limits that there are, which a root without every capability is refused.
# Where systemd does not run, podman finds nothing to call the health check at its times and says so; `check` calls it itself.
QUIET=(); [ -d /run/systemd/system ] || QUIET=(--log-level fatal)
LIMITS=(--ulimit nofile=4096:4096 --ulimit nproc=4096:4096)

die() { echo "without-docker.sh: $*" >&2; exit 2; }
need() { command -v "$1" > /dev/null || die "$1 is missing: apt-get install --no-install-recommends buildah podman runc debootstrap"; }

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
  # As in the published image, apt keeps no caches of its own: they would weigh 100 MB in the first layer.
  printf 'Dir::Cache::%s "";\n' pkgcache srcpkgcache > "$root/etc/apt/apt.conf.d/slim"
  echo 'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };' >> "$root/etc/apt/apt.conf.d/slim"
  { chroot "$root" apt-get -qq update && DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -qq -y upgrade; } \
    >> "$STORE/debootstrap.log" 2>&1 || die "the base could not be brought up to date, see $STORE/debootstrap.log"
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

size() { engine image inspect --format "$1: {{.Size}} bytes" "$1"; }

# Isolation by chroot needs no rights that a container in a container would lack; health checks need Docker's image format.
# No --layers: buildah 1.28 lends an empty folder where a stage that it took from its cache is mounted.
build() {
  need buildah; need podman
  mkdir -p "$STORE/tmp"
  TMPDIR=$STORE/tmp buildah "${WHERE[@]}" bud --isolation chroot --format docker --pull=never "$@" -t "$IMAGE" .
  size "$IMAGE"
}

engine() { podman "${QUIET[@]}" "${WHERE[@]}" --runtime "$RUNTIME" "$@"; }
in_it() { engine exec "$NAME" "$@"; }
now() { date +%s.%N; }
since() { awk -v now="$(now)" -v then="$1" 'BEGIN { printf "%.1f s", now - then }'; }
told() { printf '%-46s %s\n' "$1" "$2"; }
wrong() { told "$1" "WRONG: $2"; failed=1; }
expect() { if [ "$2" = "$3" ]; then told "$1" "$2"; else wrong "$1" "$2, expected $3"; fi; }

start() {
  engine run -d --name "$NAME" "${LIMITS[@]}" --publish "127.0.0.1:$PORT:8501" "$@" "$IMAGE" > /dev/null
}

# Like compose.yaml's service `app`, but stricter: no place to write but the volume.
hardened() {
  start --read-only --read-only-tmpfs=false --cap-drop ALL --security-opt no-new-privileges --cpus 2 --memory 4g --pids-limit 256 \
    --env HF_HUB_OFFLINE=1 --volume "$NAME-data:/data" --volume "$STORE/models:/models:ro"
}

answered() {
  local tries
  for tries in $(seq 240); do
    [ "$(python3 -c "$ASK" "$PORT" /_stcore/health 2> /dev/null)" = ok ] && return 0
    [ "$(engine inspect --format '{{.State.Running}}' "$NAME")" = true ] || break
    sleep 0.25
  done
  echo "no answer after $tries tries; what the container wrote:" >&2
  engine logs "$NAME" >&2
  return 1
}

stopped() {
  local began
  began=$(now)
  engine stop -t 15 "$NAME" > /dev/null
  told "stops on SIGTERM after" "$(since "$began")"
  expect "exit code" "$(engine inspect --format '{{.State.ExitCode}}' "$NAME")" "0"
  engine rm "$NAME" > /dev/null
}

check() {
  need podman; need python3
  failed=0 NAME=bypass-check
  ASK='import sys, urllib.request as u; print(u.urlopen("http://127.0.0.1:%s%s" % tuple(sys.argv[1:]), timeout=4).read().decode())'
  LOAD='from interp import ModelPair as P; import sys; b = eval(sys.argv[1]).base; print(b.n_layers, "layers,", b.d_model, "wide")'
  engine rm -f "$NAME" > /dev/null 2>&1 || true
  engine volume rm -f "$NAME-data" > /dev/null 2>&1 || true
  rm -rf "$STORE/models"; mkdir -p "$STORE/models/mounted"
  cp -r interp/bundled/base interp/bundled/tuned "$STORE/models/mounted/"
  chmod -R a+rX "$STORE/models"

  local bytes began folder
  bytes=$(engine image inspect --format '{{.Size}}' "$IMAGE")
  if [ "$bytes" -lt 2500000000 ]; then told "size" "$bytes bytes"; else wrong "size" "$bytes bytes, 2.5 GB allowed"; fi
  expect "user and command in the image" \
    "$(engine image inspect --format '{{.Config.User}} {{.Config.Entrypoint}} {{.Config.Cmd}}' "$IMAGE")" \
    "10001:10001 [bypass] [app --demo --host 0.0.0.0 --no-browser]"

  began=$(now)
  hardened
  answered || exit 1
  told "answers on the published port after" "$(since "$began")"
  case "$(python3 -c "$ASK" "$PORT" /)" in
    *"<title>Bypass</title>"*) told "the page" "served" ;;
    *) wrong "the page" "not served" ;;
  esac
  if engine healthcheck run "$NAME" > /dev/null; then told "health check" "passes"; else wrong "health check" "fails"; fi
  expect "user" "$(in_it id -u):$(in_it id -g)" "10001:10001"
  expect "capabilities of the process" "$(in_it sh -c "awk '/CapEff|CapBnd/ { print \$2 }' /proc/1/status | sort -u")" "0000000000000000"
  expect "no new privileges" "$(in_it awk '/NoNewPrivs/ { print $2 }' /proc/1/status)" "1"
  for folder in / /etc /tmp /var/tmp /opt/project /opt/venv /models; do
    if in_it touch "$folder/written" 2> /dev/null; then wrong "writing to $folder" "possible"; else told "writing to $folder" "refused"; fi
  done
  if engine exec --user 0 "$NAME" touch /etc/written 2> /dev/null; then wrong "root writing to /etc" "possible"
  else told "root writing to /etc" "refused"; fi
  if in_it touch /data/written; then told "writing to /data" "possible"; else wrong "writing to /data" "refused"; fi
  expect "pairs that the app offers" "$(in_it python -c 'from app.settings import offered; print(*offered())')" "bundled mounted"
  expect "the pair that ships" "$(in_it python -c "$LOAD" "P.bundled()")" "6 layers, 256 wide"
  expect "a mounted pair" "$(in_it python -c "$LOAD" "P.load('/models/mounted/base', '/models/mounted/tuned')")" "6 layers, 256 wide"
  stopped
  start
  answered || exit 1
  told "without any flag but the port" "answers"
  stopped
  return "$failed"
}

clean() {
  need podman
  engine rm -f --all > /dev/null
  buildah "${WHERE[@]}" rm --all > /dev/null
  rm -rf --one-file-system "$STORE"
}

case "${1:-}" in
  base | build | check | clean) "$@"; exit ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
