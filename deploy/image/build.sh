#!/usr/bin/env bash
# Makes a container image of Holdfast, as an OCI archive, from Debian packages and the program. It
# pulls no image. As root, on Debian:
#
#   deploy/image/build.sh PROGRAM ARCHIVE [NAME:TAG]
#
# The packages are of the Debian release that this machine runs, and come from where it gets its own
# (or from the source file that SOURCES names): the program needs the C library that it was built
# with. Needed here: mmdebstrap, umoci, python3, strip. With SOURCE_DATE_EPOCH set, the same packages
# and the same program give the same layer.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 PROGRAM ARCHIVE [NAME:TAG]" >&2
    exit 2
fi
program=$(realpath "$1")
archive=$(realpath -m "$2")
for tool in mmdebstrap umoci python3 strip; do
    if ! command -v "$tool" >/dev/null; then
        echo "$tool is missing: apt-get install ${tool/strip/binutils}" >&2
        exit 1
    fi
done
if [ ! -x "$program" ]; then
    echo "$program is no program: build it with cargo build --release --locked" >&2
    exit 1
fi
version=$("$program" --version | cut -d' ' -f2)
name=${3:-localhost/holdfast:$version}

# What runs beside the program: file systems, mounting, loop devices, modules, and the slow path for
# kernels without NBD. tini ends with its child, and collects the children of others.
packages=(ca-certificates e2fsprogs fuse3 kmod libnbd-bin mount tini util-linux xfsprogs)

release=$(. /etc/os-release && echo "$VERSION_CODENAME")
sources=${SOURCES:-}
for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ -n "$sources" ] || [ ! -s "$file" ] || sources=$file
done
if [ -z "$sources" ]; then
    echo "no list of Debian's packages was found: name one with SOURCES=FILE" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Names stay, so that backtraces say where they were.
strip --strip-debug -o "$work/holdfast" "$program"

mmdebstrap --quiet --mode=root --variant=essential \
    --include="$(IFS=,; echo "${packages[*]}")" \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook="install -D -m 0755 '$work/holdfast' \"\$1/usr/local/bin/holdfast\"" \
    --customize-hook='rm -rf "$1"/var/cache/apt "$1"/var/lib/apt/lists "$1"/var/log/*' \
    --customize-hook='mkdir -p "$1"/csi "$1"/registration "$1"/run/holdfast "$1"/etc/holdfast' \
    "$release" "$work/root.tar" "$sources"

umoci init --layout "$work/oci"
umoci new --image "$work/oci:image"
umoci raw add-layer --image "$work/oci:image" "$work/root.tar"
umoci config --image "$work/oci:image" \
    --config.entrypoint /usr/bin/tini --config.entrypoint -- \
    --config.entrypoint /usr/local/bin/holdfast \
    --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    --config.workingdir / \
    --config.label org.opencontainers.image.title=holdfast \
    --config.label "org.opencontainers.image.version=$version" \
    --config.label org.opencontainers.image.licenses=Apache-2.0 \
    ${SOURCE_DATE_EPOCH:+--created "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)"}
umoci gc --layout "$work/oci"

# What importers call the image: containerd reads the first name, others the second.
python3 - "$work/oci/index.json" "$name" <<'END'
import json, sys
path, name = sys.argv[1:]
index = json.load(open(path))
names = index["manifests"][0].setdefault("annotations", {})
names["io.containerd.image.name"] = name
names["org.opencontainers.image.ref.name"] = name
json.dump(index, open(path, "w"))
END
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-$(date +%s)}" \
    -C "$work/oci" -cf "$archive.new" blobs index.json oci-layout
mv "$archive.new" "$archive"
echo "$name: $(du -h "$archive" | cut -f1), $archive"
