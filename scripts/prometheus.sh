#!/usr/bin/env bash
# Prints the folder that has prometheus and promtool: the user's own, else Debian's package, unpacked into the user's cache.
#
# Unpacked and not installed: that needs no root and starts no server. Debian pins the version for each release and signs it.
# Go's `go install` cannot build it: its go.mod replaces modules, which only a checkout of its source may.
set -euo pipefail

cache=${TORCHLANE_CACHE:-${XDG_CACHE_HOME:-${HOME:?is not set: set TORCHLANE_CACHE}/.cache}/torchlane}
say() { printf 'prometheus: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
runs() { "$1/prometheus" --version >/dev/null 2>&1 && "$1/promtool" --version >/dev/null 2>&1; }

if own=$(command -v prometheus) && [ -x "$(dirname "$own")/promtool" ]; then
    dirname "$own"
    exit
fi
mkdir -p "$cache/tools"
cache=$(cd "$cache" && pwd)
home=$cache/tools/prometheus
if runs "$home/usr/bin"; then
    echo "$home/usr/bin"
    exit
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    die "install prometheus and promtool, and put them on the PATH"

exec 9>"$cache/tools/.prometheus.lock"
flock --nonblock 9 || { say "another run is unpacking it; waiting for that one"; flock 9; }
if ! runs "$home/usr/bin"; then
    work=$cache/tools/.prometheus.part
    trap 'rm -rf "$work"' EXIT
    rm -rf "$work" "$home"
    mkdir -p "$work"
    say "unpacking Debian's package (20 MB) into $home"
    # apt's own sandbox user could not write there.
    fetch() { (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download prometheus) >&2 9>&-; }
    if ! fetch && ! { [ "$(id -u)" = 0 ] && apt-get -qq update >&2 9>&- && fetch; }; then
        die "apt-get has no package prometheus: sudo apt-get update, or install it yourself"
    fi
    dpkg-deb -x "$work"/prometheus_*.deb "$work/root"
    mv "$work/root" "$home"
    runs "$home/usr/bin" || die "$home/usr/bin/prometheus does not run: remove it and run this again"
fi
echo "$home/usr/bin"
