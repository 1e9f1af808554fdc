#!/usr/bin/env bash
# Puts a CPU-only libtorch together, once for all clones, and prints its folder.
#
# The wheels are CUDA builds of several GB installed; the CPU half needs libtorch_cpu, libc10 and libgomp, and two
# small CUDA libraries that libtorch_cpu links against but does not use without a GPU. Nothing is run from the wheels.
set -euo pipefail

VERSION=2.13.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf 'libtorch: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

if [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch.so" ] || die "LIBTORCH=$LIBTORCH has no lib/libtorch.so: unset it, or name a libtorch $VERSION"
    found=$(cut -d+ -f1 "$LIBTORCH/build-version" 2>/dev/null || true)
    [ -z "$found" ] || [ "$found" = "$VERSION" ] || die "LIBTORCH=$LIBTORCH is libtorch $found, torchlane needs $VERSION"
    printf '%s\n' "$LIBTORCH"
    exit 0
fi
[ "$(uname -sm)" = "Linux x86_64" ] ||
    die "no libtorch is put together for $(uname -sm): set LIBTORCH to a libtorch $VERSION for it"

cache=${TORCHLANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/torchlane}
target=$cache/libtorch-$VERSION-cpu-x86_64
if [ -e "$target/build-version" ]; then
    printf '%s\n' "$target"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/.libtorch.lock"
flock -n 9 || { say "another build is at it, waiting"; flock 9; }
if [ -e "$target/build-version" ]; then
    printf '%s\n' "$target"
    exit 0
fi
free=$(df -Pk "$cache" | awk 'NR==2 {print int($4/1024)}')
[ "$free" -ge 2000 ] || die "$cache has $free MiB free, 2000 are needed for a while: free some, or set TORCHLANE_CACHE"

# What an interrupted run left behind is of no use: the lock is ours.
rm -rf "$cache"/.libtorch.??????
work=$(mktemp -d "$cache/.libtorch.XXXXXX")
trap 'rm -rf "$work"' EXIT
bar=off
[ -t 2 ] && bar=on
say "fetching torch $VERSION (530 MB, once; kept in $cache)"
python3 -m pip download --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --implementation cp --python-version 3.12 --abi cp312 --abi none \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
    --progress-bar "$bar" --no-cache-dir -r "$here/libtorch-wheels.txt" -d "$work/wheels" >&2 ||
    die "the download failed: check the network and run this again, or set LIBTORCH to a libtorch $VERSION"

say "unpacking"
python3 - "$work" "$VERSION" >&2 <<'PY'
import pathlib, shutil, sys, zipfile

work, version = pathlib.Path(sys.argv[1]), sys.argv[2]
root = work / "libtorch"
wanted = {"torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1"}
found = set()
for wheel in sorted((work / "wheels").glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = entry.filename
            base = name.rsplit("/", 1)[-1]
            if name.startswith("torch/include/") and base:
                target = root / "include" / name[len("torch/include/"):]
            elif name in wanted or base in ("libcudart.so.13", "libcupti.so.13"):
                target = root / "lib" / base
                found.add(base)
            else:
                continue
            if ".." in target.parts:
                sys.exit(f"error: {wheel.name} holds the path {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
missing = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"} - found
if missing:
    sys.exit(f"error: the wheels lack {', '.join(sorted(missing))}")
# The linker follows this script; nothing is loaded under this name at run time.
(root / "lib" / "libtorch.so").write_text("INPUT(libtorch_cpu.so)\n")
(root / "build-version").write_text(version + "\n")
PY
rm -rf "$target"
mv "$work/libtorch" "$target"
say "ready in $target"
printf '%s\n' "$target"
