#!/usr/bin/env bash
# Prints the path of a CPU-only libtorch 2.13, and assembles it first where there is none.
#
# It is taken from Python wheels (the official archive may be out of reach), once for each user: all clones share
# it. Each download is checked by sha256, two clones may run this at once, and a run that is interrupted leaves
# nothing behind that a later one would take for whole. LIBTORCH is respected where it is set.
# Only the path goes to standard output. With `--ready` it prints nothing, and succeeds if nothing is left to fetch.
set -euo pipefail

version=2.13.0
series=2.13
requirements=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/libtorch-wheels.txt
need_mb=2000

say() { printf 'libtorch: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

check_own() {
    local dir=$1 found
    # Cargo runs build scripts in other folders: there a relative path would be another one.
    case $dir in /*) ;; *) die "LIBTORCH is $dir: give the whole path, from /" ;; esac
    [ -d "$dir" ] || die "LIBTORCH is $dir, which is no folder"
    dir=$(cd "$dir" && pwd)
    [ -e "$dir/lib/libtorch.so" ] || die "LIBTORCH is $dir, which has no lib/libtorch.so"
    [ -d "$dir/include" ] || die "LIBTORCH is $dir, which has no include/"
    if [ ! -r "$dir/build-version" ]; then
        say "warning: $dir has no build-version file; make sure that it is libtorch $version"
    else
        found=$(tr -d '[:space:]' <"$dir/build-version")
        case "${found%%+*}" in
        "$version") ;;
        "$series".*)
            [ -n "${LIBTORCH_BYPASS_VERSION_CHECK:-}" ] ||
                die "$dir is libtorch $found; tch asks for $version: set LIBTORCH_BYPASS_VERSION_CHECK=1 to take it all the same"
            ;;
        *) die "$dir is libtorch $found; $series is needed: unset LIBTORCH, or point it to a libtorch $version" ;;
        esac
    fi
    printf '%s\n' "$dir"
}

ready_only=
[ "${1:-}" != --ready ] || ready_only=yes

if [ -n "${LIBTORCH:-}" ]; then
    [ -z "$ready_only" ] || exit 0
    check_own "$LIBTORCH"
    exit
fi

machine="$(uname -s) $(uname -m)"
[ "$machine" = "Linux x86_64" ] || die "no ready libtorch for $machine: set LIBTORCH to a libtorch $series for this machine"
getconf GNU_LIBC_VERSION >/dev/null 2>&1 || die "no ready libtorch without glibc: set LIBTORCH to a libtorch $series for this machine"
[ -n "${TORCHLANE_CACHE:-${XDG_CACHE_HOME:-${HOME:-}}}" ] || die "HOME is not set: set TORCHLANE_CACHE to a folder for libtorch"

cache=${TORCHLANE_CACHE:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/torchlane}
[ -z "$ready_only" ] || { [ -e "$cache/libtorch-$version-cpu-x86_64/build-version" ] && exit 0 || exit 1; }
mkdir -p "$cache" || die "cannot make $cache: set TORCHLANE_CACHE to a folder that can be written"
cache=$(cd "$cache" && pwd)
home=$cache/libtorch-$version-cpu-x86_64
part=$cache/.libtorch.part

# The folder gets its name only once it is whole.
if [ -e "$home/build-version" ]; then
    printf '%s\n' "$home"
    exit
fi

command -v python3 >/dev/null || die "python3 is missing: sudo apt-get install python3 python3-pip"
python3 -m pip --version >/dev/null 2>&1 || die "pip is missing: sudo apt-get install python3-pip"

exec 9>"$cache/.libtorch.lock"
if ! flock --nonblock 9; then
    say "another run is fetching it; waiting for that one"
    flock 9
fi
if [ -e "$home/build-version" ]; then
    printf '%s\n' "$home"
    exit
fi

ticker=
cleanup() {
    [ -z "$ticker" ] || kill "$ticker" 2>/dev/null || true
    rm -rf "$part"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Under the lock no one else owns this: it is what an interrupted run left.
rm -rf "$part" "$home"
mkdir -p "$part/wheels" "$part/tmp" "$part/libtorch/lib"

free_mb=$(df -Pm "$part" | awk 'NR == 2 { print $4 }')
[ "$free_mb" -ge "$need_mb" ] ||
    die "$cache has $free_mb MB free; $need_mb MB are needed while it is put together, 490 MB after (TORCHLANE_CACHE names another folder)"

say "fetching libtorch $version for the CPU into $home"
say "1 of 3: downloading torch (530 MB) and two small libraries; this is done once"
progress=on
if [ ! -t 2 ]; then
    progress=off
    (
        exec 9>&-
        while sleep 15; do
            say "        $(du -sm "$part" 2>/dev/null | cut -f1) MB so far"
        done
    ) &
    ticker=$!
fi
# The tags are given, so that any Python will do, not only the one the wheel is for.
TMPDIR=$part/tmp PIP_REQUIRE_VIRTUALENV=0 python3 -m pip download \
    --quiet --disable-pip-version-check --no-input --no-cache-dir --progress-bar "$progress" \
    --no-deps --only-binary=:all: --require-hashes --requirement "$requirements" \
    --python-version 3.12 --implementation cp --abi cp312 --abi none \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux_2_17_x86_64 \
    --dest "$part/wheels" 9>&- >&2 ||
    die "the download failed (pip says why above); run this again, or set LIBTORCH to a libtorch $version"

say "2 of 3: unpacking what is needed"
python3 - "$part/wheels" "$part/libtorch" <<'PY'
import pathlib, shutil, sys, zipfile

wheels, out = map(pathlib.Path, sys.argv[1:])
LIBRARIES = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}
taken = set()
for wheel in sorted(wheels.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = pathlib.PurePosixPath(entry.filename)
            if entry.is_dir():
                continue
            if path.parts[:2] == ("torch", "include"):
                to = out.joinpath(*path.parts[1:])
            elif path.name in LIBRARIES:
                to = out / "lib" / path.name
                taken.add(path.name)
            elif ".dist-info/licenses/" in entry.filename or path.name == "NOTICE":
                to = out / "licenses" / wheel.name.split("-")[0] / "/".join(path.parts[2:])
            else:
                continue
            to.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, open(to, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    wheel.unlink()
missing = LIBRARIES - taken
if missing:
    sys.exit("libtorch: the wheels lack " + ", ".join(sorted(missing)))
# torch-sys links `torch`, which has no code of its own: the linker is sent on to the library that has.
(out / "lib" / "libtorch.so").write_text("INPUT(libtorch_cpu.so)\n")
(out / "build-version").write_text("2.13.0\n")
PY

say "3 of 3: loading it once, to see that it works here"
python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$part/libtorch/lib/libtorch_cpu.so" ||
    die "it does not load on this machine (the line above says why): set LIBTORCH to a libtorch $version that does"

sync -f "$part/libtorch"
mv -T "$part/libtorch" "$home"
say "ready: $home ($(du -sm "$home" | cut -f1) MB)"
printf '%s\n' "$home"
