#!/usr/bin/env bash
# Sets up the tested environment (requirements/tested.txt) with etta_mm in it.
#
# Usage: tools/setup_env.sh [--env DIR] [--python PY] [--tests]
#   --env DIR    a venv or conda prefix to use, or a venv to make (default: $ETTA_MM_ENV, .venv)
#   --python PY  the Python, 3.10 to 3.12, for a venv that is to be made
#   --tests      what the tests need as well (requirements/tests.txt)
# Environment:
#   FORCE_CUDA=1|0        build mmcv with or without CUDA ops (default: with, where a GPU is seen)
#   TORCH_CUDA_ARCH_LIST  the GPUs that CUDA ops are built for, as '8.0;9.0' (default: those here)
#   MAX_JOBS              compilers at a time (default: one a core, if memory allows)
#   ETTA_MM_CACHE         where built mmcv wheels are kept (default: ~/.cache/etta_mm)
#
# A stamp, written last, makes the next run return at once. Nothing else is trusted: a run that
# finds no stamp goes through every step again, which is quick where a step had been done.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
TESTED=$ROOT/requirements/tested.txt
TESTS=$ROOT/requirements/tests.txt
CACHE=${ETTA_MM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/etta_mm}

say() { printf '[setup %4d s] %s\n' "$SECONDS" "$*"; }

die() { # die LINE...: says what is wrong, and what to do about it
  printf '\n[setup] ERROR: %s\n' "$1" >&2
  shift
  if (($#)); then printf '[setup]        %s\n' "$@" >&2; fi
  exit 1
}

pin() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$TESTED"; } # pin NAME: its version in tested.txt

# ---------------------------------------------------------------- what the user asks for
ENV_DIR=${ETTA_MM_ENV:-$ROOT/.venv}
PYTHON=
WITH_TESTS=0
while (($#)); do
  case $1 in
    --env | --python)
      if [[ -z ${2:-} ]]; then die "$1 needs a value; see tools/setup_env.sh --help"; fi
      if [[ $1 == --env ]]; then ENV_DIR=$2; else PYTHON=$2; fi
      shift
      ;;
    --tests) WITH_TESTS=1 ;;
    -h | --help)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) die "unknown argument '$1'; --env DIR, --python PY, --tests and --help are known" ;;
  esac
  shift
done
if [[ $ENV_DIR != /* ]]; then ENV_DIR=$PWD/$ENV_DIR; fi
ENV_PY=$ENV_DIR/bin/python
STATE=$ENV_DIR/etta_mm_setup # stamps, logs and temporary files

# What the user's shell says about other Pythons and other places must not reach into this
# environment; packages in ~/.local would pass for installed in a conda prefix.
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_CONSTRAINT
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# ---------------------------------------------------------------- GPU or not
# CUDA_ARCHS: the GPUs to build for, empty for a build without CUDA ops. The driver is asked, not
# torch, because the answer is needed before torch is there.
seen_gpus() {
  { nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null || true; } |
    { grep -E '^[0-9]+\.[0-9]+$' || true; } | sort -u | paste -sd ';' -
}

case ${FORCE_CUDA:-} in
  0) CUDA_ARCHS= ;;
  1)
    CUDA_ARCHS=${TORCH_CUDA_ARCH_LIST:-$(seen_gpus)}
    if [[ -z $CUDA_ARCHS ]]; then
      die "FORCE_CUDA=1, but no GPU is seen here, so it is unknown which GPU to build for." \
        "Name it by compute capability, e.g. TORCH_CUDA_ARCH_LIST='8.0' (A100) or '9.0' (H100)."
    fi
    ;;
  '')
    CUDA_ARCHS=$(seen_gpus)
    if [[ -n $CUDA_ARCHS ]]; then CUDA_ARCHS=${TORCH_CUDA_ARCH_LIST:-$CUDA_ARCHS}; fi
    ;;
  *) die "FORCE_CUDA='$FORCE_CUDA': 1 (with CUDA ops), 0 (without) or unset are known" ;;
esac
CUDA_ARCHS=${CUDA_ARCHS// /;}

# ---------------------------------------------------------------- the stamp
# Only metadata and files are looked at: importing torch alone takes seconds.
quick_check() {
  "$ENV_PY" - "$ROOT" "$@" <<'PY'
import importlib.metadata as metadata
import importlib.util
import os
import sys
from pathlib import Path

from packaging.requirements import Requirement

root, *lists = sys.argv[1:]
for path in lists:
    for line in Path(path).read_text().splitlines():
        if not line or line.startswith('#'):
            continue
        pinned = Requirement(line)
        if pinned.marker and not pinned.marker.evaluate():
            continue
        try:
            version = metadata.version(pinned.name)
        except metadata.PackageNotFoundError:
            sys.exit(f'{pinned.name} is not installed')
        if not pinned.specifier.contains(version, prereleases=True):
            sys.exit(f'{pinned.name} is {version}, not {pinned.specifier}')

names = {(dist.metadata['Name'] or '').lower() for dist in metadata.distributions()}
cv2 = sorted(name for name in names if name.startswith('opencv-'))
if len(cv2) != 1:
    sys.exit(f'one distribution must carry cv2, but these do: {cv2}')

mmcv = Path(importlib.util.find_spec('mmcv').origin).parent
if not list(mmcv.glob('_ext*.so')):
    sys.exit(f'mmcv has no ops: no _ext*.so in {mmcv}')

ours = importlib.util.find_spec('etta_mm')
if ours is None or Path(os.path.realpath(ours.origin)).parent.parent != Path(root):
    sys.exit(f'etta_mm is {ours and ours.origin}, not the one in {root}')
PY
}

# The checkout is in the key, because the environment points to it.
key_of() { # key_of FILE...
  { "$ENV_PY" -VV && echo "$ROOT" && cat "${BASH_SOURCE[0]}" "$@"; } 2>/dev/null |
    sha256sum | cut -d ' ' -f 1
}
base_key() { key_of "$TESTED" "$ROOT/setup.py"; }
tests_key() { key_of "$TESTED" "$ROOT/setup.py" "$TESTS"; }

# A stamp of a set-up with CUDA ops holds on a machine without a GPU as well (a cluster's login
# node), but not on a GPU that the ops were not built for.
is_built_for() { # is_built_for BUILT ASKED: whether each GPU of the second list is in the first
  local built=";${1//+PTX/};" arch archs
  IFS=';' read -ra archs <<<"$2"
  for arch in "${archs[@]}"; do
    if [[ $built != *";${arch%+PTX};"* ]]; then return 1; fi
  done
}
is_stamped() { # is_stamped base|tests
  local key archs
  { read -r key && read -r archs; } 2>/dev/null <"$STATE/stamp-$1" || return 1
  [[ $key == "$("$1"_key)" ]] && { [[ $1 == tests ]] || is_built_for "${archs#archs:}" "$CUDA_ARCHS"; }
}
stamp() { # stamp base|tests
  printf '%s\narchs:%s\n' "$("$1"_key)" "$CUDA_ARCHS" >"$STATE/stamp-$1.part"
  mv "$STATE/stamp-$1.part" "$STATE/stamp-$1"
}

what_is_missing() { # sets NEED_BASE and NEED_TESTS
  NEED_BASE=1 NEED_TESTS=$WITH_TESTS
  local lists=("$TESTED")
  if ! is_stamped base; then return; fi
  if ((WITH_TESTS)) && is_stamped tests; then
    NEED_TESTS=0
    lists+=("$TESTS")
  fi
  local why
  if why=$(quick_check "${lists[@]}" 2>&1); then
    NEED_BASE=0
  else
    NEED_TESTS=$WITH_TESTS
    say "The environment has changed since it was set up (${why##*$'\n'}): setting it up again."
  fi
}
leave_if_complete() {
  what_is_missing
  if ((!NEED_BASE && !NEED_TESTS)); then
    say "The environment in $ENV_DIR is complete."
    exit 0
  fi
}
leave_if_complete

# ---------------------------------------------------------------- checks before anything is done
is_env() { [[ -f $ENV_DIR/pyvenv.cfg || -d $ENV_DIR/conda-meta ]]; }
has_pip() { "$ENV_PY" -m pip --version >/dev/null 2>&1; }
is_half_built() { # a venv that was interrupted: no working pip, and nothing installed to lose
  [[ -f $ENV_DIR/pyvenv.cfg ]] && ! has_pip && [[ -z $(find "$ENV_DIR" \
    -path '*/site-packages/*.dist-info' -prune ! -name 'pip-*' ! -name 'setuptools-*' \
    -print -quit 2>/dev/null) ]]
}

python_version() { # python_version PY: "3.11.7", or nothing if PY does not run
  "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || true
}
is_supported() { [[ $1 =~ ^3\.(10|11|12)\. ]]; }

choose_python() { # sets PYTHON and PYTHON_VERSION for a venv that is to be made
  local candidate found=()
  if [[ -n $PYTHON ]]; then
    PYTHON_VERSION=$(python_version "$PYTHON")
    if is_supported "$PYTHON_VERSION"; then return; fi
    found=("$PYTHON is ${PYTHON_VERSION:-no Python that runs}")
  else
    for candidate in python3.11 python3 python3.12 python3.10; do # 3.11 is the tested one
      PYTHON_VERSION=$(python_version "$candidate")
      if is_supported "$PYTHON_VERSION"; then
        PYTHON=$candidate
        return
      fi
      if [[ -n $PYTHON_VERSION ]]; then found+=("$candidate is $PYTHON_VERSION"); fi
    done
  fi
  die "Python 3.10, 3.11 (tested) or 3.12 is needed; ${found[*]:-no python3 is on the PATH}." \
    "Get one, e.g. 'apt-get install python3.11 python3.11-venv python3.11-dev', 'pyenv install" \
    "3.11' or 'conda create -n etta python=3.11', and name it: tools/setup_env.sh --python" \
    "/path/to/python3.11, or make demo PYTHON=/path/to/python3.11."
}

check_env() { # the environment, or the Python to make it with
  if is_env && ! is_half_built; then
    if ! has_pip; then
      die "$ENV_DIR is an environment whose Python or pip does not work." \
        "Mend it ('$ENV_PY -m ensurepip', 'conda install -p $ENV_DIR pip'), delete it, or name" \
        "another: tools/setup_env.sh --env DIR."
    fi
    local version asked
    version=$(python_version "$ENV_PY")
    if ! is_supported "$version"; then
      die "$ENV_DIR has Python $version; 3.10, 3.11 (tested) or 3.12 is needed." \
        "Delete it or name another (--env DIR), and name a Python to make it with (--python PY)."
    fi
    asked=$(if [[ -n $PYTHON ]]; then python_version "$PYTHON"; fi)
    if [[ -n $PYTHON && ${asked%.*} != "${version%.*}" ]]; then
      die "$ENV_DIR has Python $version, and $PYTHON is ${asked:-nothing that runs}." \
        "Delete $ENV_DIR to have it made anew, or name another environment: --env DIR."
    fi
    PYTHON=$ENV_PY
    return
  fi
  if [[ -e $ENV_DIR ]] && ! is_env &&
    [[ -n $(find "$ENV_DIR" -mindepth 1 -maxdepth 1 ! -name "${STATE##*/}" -print -quit) ]]; then
    die "$ENV_DIR is there, but it is neither a venv nor a conda prefix." \
      "Name another one (--env DIR), or delete it."
  fi
  choose_python
  if ! "$PYTHON" -c 'import venv; from ensurepip import bootstrap' 2>/dev/null; then
    die "$PYTHON ($PYTHON_VERSION) cannot make environments: its module venv or ensurepip is missing." \
      "Debian and Ubuntu: apt-get install python${PYTHON_VERSION%.*}-venv"
  fi
}

check_no_rivals() { # distributions that carry import names of the tested set
  if ! is_env || is_half_built; then return; fi
  local rivals
  rivals=$("$ENV_PY" - "$TESTED" <<'PY'
import importlib.metadata as metadata
import sys

pinned = {line.split('==')[0].lower() for line in open(sys.argv[1]) if '==' in line}
names = {(dist.metadata['Name'] or '').lower() for dist in metadata.distributions()}
rivals = {'mmcv', 'mmcv-full', 'mmcv-lite', 'mmengine', 'mmengine-lite', 'mmdet', 'mmpretrain'}
opencv = {name for name in names if name.startswith('opencv-')}
if opencv - pinned:  # all of them: uninstalling one deletes files that another one needs
    rivals |= opencv
print(*sorted(names & rivals))
PY
  )
  if [[ -n $rivals ]]; then
    die "$ENV_DIR has $rivals, whose import names the tested set carries, too." \
      "To keep them and install etta_mm alone: '$ENV_PY -m pip install -e .'. To have the tested" \
      "set instead: '$ENV_PY -m pip uninstall $rivals', or name another environment: --env DIR."
  fi
}

check_disk() {
  local place=$ENV_DIR need=9 free
  if compgen -G "$ENV_DIR/lib/python3*/site-packages/torch/version.py" >/dev/null; then need=2; fi
  while [[ ! -d $place ]]; do place=$(dirname "$place"); done
  free=$(df -Pk "$place" | awk 'NR == 2 {print int($4 / 1048576)}')
  if ((free < need)); then
    die "$free GB are free in $place, and the set-up needs about $need." \
      "Make room, or name a place that has it: tools/setup_env.sh --env /big/disk/etta_env."
  fi
  if [[ ! -w $place ]]; then
    die "$place cannot be written to." "Name another environment: tools/setup_env.sh --env DIR."
  fi
}

find_cuda_home() { # torch takes the folder above nvcc's, which a wrapper on the PATH leads astray
  local home nvcc
  nvcc=$(command -v nvcc || true)
  for home in "${CUDA_HOME:-}" "${CUDA_PATH:-}" \
    "$(if [[ -n $nvcc ]]; then dirname "$(dirname "$(readlink -f "$nvcc")")"; fi)" /usr/local/cuda; do
    if [[ -n $home && -x $home/bin/nvcc ]] && # conda keeps the headers under targets/
      [[ -n $(compgen -G "$home/include/cuda_runtime.h" || compgen -G "$home/targets/*/include/cuda_runtime.h") ]]; then
      echo "$home"
      return
    fi
  done
}

check_compilers() {
  local compiler include
  for compiler in "${CC:-gcc}" "${CXX:-g++}"; do
    if ! command -v "$compiler" >/dev/null; then
      die "mmcv has to be compiled, and there is no C++ compiler: '$compiler' is not on the PATH." \
        "Debian and Ubuntu: apt-get install gcc g++; conda: conda install -c conda-forge gxx." \
        "Another one can be named by CC and CXX."
    fi
  done
  if ! echo '#include <optional>' | "${CXX:-g++}" -std=c++17 -fsyntax-only -x c++ - 2>/dev/null; then
    die "${CXX:-g++} cannot compile C++17, which mmcv needs." \
      "GCC 9 or newer can; Debian and Ubuntu: apt-get install g++"
  fi
  include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  if [[ ! -f $include/Python.h ]]; then
    die "mmcv has to be compiled, and Python's header files are not here ($include/Python.h)." \
      "Debian and Ubuntu: apt-get install $("$PYTHON" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')"
  fi
  if [[ -n $CUDA_ARCHS && -z $(find_cuda_home) ]]; then
    die "mmcv is to be built with CUDA ops, and CUDA's compiler nvcc is not here." \
      "Install the CUDA toolkit 13 (the tested torch is built with 13.0) and name its folder by" \
      "CUDA_HOME. Or set FORCE_CUDA=0 CUDA_VISIBLE_DEVICES= here and for every run: then all" \
      "runs on the CPU, mmcv's ops included."
  fi
}

check_nvcc() { # check_nvcc CUDA: torch refuses a compiler of another major version
  local home release
  home=$(find_cuda_home)
  release=$("$home/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
  if [[ ${release%%.*} != "${1%%.*}" ]]; then
    die "torch is built with CUDA $1, and $home/bin/nvcc is of CUDA $release." \
      "Install the CUDA toolkit $1 and name its folder by CUDA_HOME. Or set FORCE_CUDA=0" \
      "CUDA_VISIBLE_DEVICES= here and for every run: then all runs on the CPU, mmcv's ops included."
  fi
}

# torch's own CUDA version is in the key and not known before torch is there: any will do here.
wheel_path() { # wheel_path CUDA: where the wheel for torch's CUDA version, or 0, is kept
  local tag cuda=$1
  tag=$("$PYTHON" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  if [[ $cuda != 0 ]]; then cuda+=-sm${CUDA_ARCHS//;/_}; fi
  echo "$CACHE/wheels/torch$(pin torch)-cu$cuda-$tag-mmcv$(pin onedl-mmcv)/onedl_mmcv-$(pin onedl-mmcv)-$tag-$tag-linux_$(uname -m).whl"
}

check_env
check_no_rivals
check_disk
if [[ -z $CUDA_ARCHS ]]; then ANY_CUDA=0; else ANY_CUDA='*'; fi
if ! compgen -G "$(wheel_path "$ANY_CUDA")" >/dev/null; then check_compilers; fi

# ---------------------------------------------------------------- jobs
# A job runs in the background, its output in a log of its own, while this script says every
# 20 seconds how far it is. mmcv's build goes on while pip fetches the rest.
declare -A PID_OF START_OF
BUILD=mmcv-build

start() { # start JOB COMMAND...
  local job=$1
  shift
  START_OF[$job]=$SECONDS
  set -m # a process group of its own, so that the compilers end with it
  "$@" >"$STATE/$job.log" 2>&1 </dev/null 9>&- &
  set +m
  PID_OF[$job]=$!
}

progress() { # "torch 40 s", and how many files of mmcv are compiled
  local job done_of line=
  for job in "${!PID_OF[@]}"; do
    done_of=
    if [[ $job == "$BUILD" ]]; then # ninja counts: "[31/78] c++ ..."
      done_of=$(grep -oE '\[[0-9]+/[0-9]+\]' "$STATE/$job.log" | tail -n 1 || true)
    fi
    line+="; $job: $((SECONDS - START_OF[$job])) s${done_of:+, $done_of files compiled}"
  done
  say "  ... ${line#; }"
}

finish() { # finish JOB: waits for it
  local job=$1 pid=${PID_OF[$1]} next=$((SECONDS + 20))
  while kill -0 "$pid" 2>/dev/null; do
    if ((SECONDS >= next)); then
      progress
      next=$((SECONDS + 20))
    fi
    sleep 0.3
  done
  local status=0
  wait "$pid" || status=$?
  unset "PID_OF[$job]"
  if ((status)); then explain_failure "$job"; fi
  say "  $job: done in $((SECONDS - START_OF[$job])) s"
}

step() { # step JOB "what it does" COMMAND...
  say "$2"
  start "$1" "${@:3}"
  finish "$1"
}

stop_jobs() {
  local pid
  for pid in "${PID_OF[@]}"; do kill -TERM -- "-$pid" 2>/dev/null || true; done
  if [[ -d $STATE/tmp ]]; then rm -rf "$STATE/tmp"; fi
}
trap stop_jobs EXIT
trap 'say "Interrupted; the same command goes on from here."; exit 130' INT TERM HUP

explain_failure() { # explain_failure JOB
  local log=$STATE/$1.log advice=()
  printf '\n' >&2
  grep -v '^ *$' "$log" | tail -n 12 | cut -c -240 | sed 's/^/    | /' >&2 || true
  if grep -qE 'No space left on device|Disk quota exceeded' "$log"; then
    advice=("The disk is full: make room, or set up elsewhere (--env DIR).")
  elif grep -qE 'Could not find a version|No matching distribution|Max retries|Read timed out|ConnectionError|ProxyError|HTTP ?Error|IncompleteRead' "$log"; then
    advice=("pip cannot get a package: is the network up, and is this the right package index?"
      "'pip config list' shows where pip looks; PIP_INDEX_URL and HTTPS_PROXY change it.")
  elif grep -qE 'Killed|[Cc]annot allocate memory|internal compiler error' "$log"; then
    advice=("The compiler ran out of memory: MAX_JOBS=1 needs the least.")
  fi
  die "the step '$1' failed. Its log: $log" "${advice[@]}" "Then run the same command again."
}

# ---------------------------------------------------------------- what the jobs do
make_venv() {
  if [[ -d $ENV_DIR/bin ]]; then rm -rf "${ENV_DIR:?}"/{bin,include,lib,lib64,pyvenv.cfg}; fi
  "$PYTHON" -m venv "$ENV_DIR"
}

install() { "$ENV_PY" -m pip install --progress-bar off "$@"; }

# A pip that is killed can leave a package that passes for installed and lacks files; INSTALLER is
# what pip writes when the files are all there. Only what came in with the killed run is touched.
drop_half_installed() {
  find "$ENV_DIR" -path '*/site-packages/*.dist-info' -prune -newer "$STATE/unfinished" \
    ! -exec test -e '{}/INSTALLER' ';' -exec rm -rf '{}' +
}

# The first words with the index: few retries, so that a dead one is told in seconds.
install_build_tools() {
  local name tools=()
  for name in ninja packaging psutil setuptools wheel; do tools+=("$name==$(pin "$name")"); done
  install --retries 2 --timeout 20 --no-deps "${tools[@]}"
}

install_list() { # install_list FILE: mmcv aside, which is built here
  grep -v '^onedl-mmcv==' "$1" >"$STATE/tmp/$(basename "$1")"
  install --no-deps --no-build-isolation -r "$STATE/tmp/$(basename "$1")"
}

# Loads the extension by itself: a wheel without ops or for another torch does not pass.
has_working_ops() { # has_working_ops WHEEL
  "$ENV_PY" - "$1" <<'PY'
import importlib.util
import sys
import tempfile
import zipfile

import torch  # noqa: F401, loads what the extension links to

with zipfile.ZipFile(sys.argv[1]) as wheel, tempfile.TemporaryDirectory() as folder:
    extensions = [name for name in wheel.namelist() if name.startswith('mmcv/_ext')]
    if wheel.testzip() or len(extensions) != 1:
        sys.exit(f'{sys.argv[1]} is damaged or was built without ops')
    spec = importlib.util.spec_from_file_location('_ext', wheel.extract(extensions[0], folder))
    importlib.util.module_from_spec(spec)
PY
}

# No build isolation, which would hide torch and silently leave the ops out; pip's cache would
# hand out the wheel of another torch; -g0 -O2 instead of Python's own flags halves the time.
build_mmcv() { # build_mmcv WHEEL: into the cache, whole or not at all
  local wheel=$1 built=$STATE/tmp/wheel
  export MMCV_WITH_OPS=1 CFLAGS='-g0 -O2' CXX=${CXX:-g++} MAX_JOBS
  if [[ -n $CUDA_ARCHS ]]; then
    export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$CUDA_ARCHS CUDA_HOME
    CUDA_HOME=$(find_cuda_home)
  else
    export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES= # mmcv looks for a GPU itself
  fi
  "$ENV_PY" -m pip wheel -v --no-binary onedl-mmcv --no-build-isolation --no-deps --no-cache-dir \
    "onedl-mmcv==$(pin onedl-mmcv)" -w "$built"
  has_working_ops "$built/$(basename "$wheel")"
  mkdir -p "$(dirname "$wheel")"
  cp "$built/$(basename "$wheel")" "$wheel.part.$$"
  mv "$wheel.part.$$" "$wheel"
}

check_imports() {
  quick_check "$TESTED" && "$ENV_PY" - <<'PY'
import matplotlib
import mmcv
import mmdet.models
import mmengine
import mmpretrain.models
import pycocotools.mask
import safetensors.torch
import sklearn
import torch
import torchvision
from mmcv.ops import MultiScaleDeformableAttention

boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 2.], [4., 4., 6., 6.]])
kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)
assert kept.tolist() == [1, 2], kept

attention = MultiScaleDeformableAttention(embed_dims=32, num_heads=4, num_levels=1, num_points=2)
attention.init_weights()
devices = ['cpu']
if torch.cuda.is_available() and 'not' not in mmcv.ops.get_compiling_cuda_version():
    devices.append('cuda')
for device in devices:
    out = attention.to(device)(
        torch.rand(3, 1, 32, device=device),
        value=torch.rand(16, 1, 32, device=device),
        reference_points=torch.rand(1, 3, 1, 2, device=device),
        spatial_shapes=torch.tensor([[4, 4]], device=device),
        level_start_index=torch.tensor([0], device=device))
    assert out.shape == (3, 1, 32) and out.isfinite().all(), (device, out)
    print(f'deformable attention works on {device}')
PY
}

# ---------------------------------------------------------------- the set-up
if ! mkdir -p "$CACHE" 2>/dev/null || [[ ! -w $CACHE ]]; then
  die "$CACHE, where built wheels are kept, cannot be written to." "Name another: ETTA_MM_CACHE=DIR."
fi
exec 9>"$CACHE/setup.lock"
if command -v flock >/dev/null && ! flock -n 9; then
  say "Another set-up is running; waiting for it."
  flock 9 || true # a file system without locks
  leave_if_complete
fi

mkdir -p "$STATE"
rm -rf "$STATE/tmp" && mkdir "$STATE/tmp"
export TMPDIR=$STATE/tmp # on the disk whose free space was checked, and gone with this run
STARTED=$SECONDS
say "Setting up in $ENV_DIR; logs in $STATE."

if ! is_env || is_half_built; then
  step venv "Making the environment with $PYTHON ($PYTHON_VERSION)." make_venv
  PYTHON=$ENV_PY
fi

if [[ -e $STATE/unfinished ]]; then drop_half_installed; fi
touch "$STATE/unfinished"
if ((NEED_BASE)); then
  rm -f "$STATE"/stamp-*
  step build-tools "Installing the build tools." install_build_tools
  step torch "Installing torch $(pin torch) and torchvision $(pin torchvision) (about 2.5 GB)." \
    install -c "$TESTED" "torch==$(pin torch)" "torchvision==$(pin torchvision)"

  WHEEL=$(wheel_path 0)
  if [[ -n $CUDA_ARCHS ]]; then
    TORCH_CUDA=$("$ENV_PY" -c 'import torch; print(torch.version.cuda or "")')
    if [[ -z $TORCH_CUDA ]]; then
      die "a GPU is to be used, but the torch in $ENV_DIR is built without CUDA." \
        "Uninstall it, so that the tested one comes in, or set FORCE_CUDA=0."
    fi
    WHEEL=$(wheel_path "$TORCH_CUDA")
  fi
  if [[ -f $WHEEL ]] && has_working_ops "$WHEEL" >"$STATE/cached-wheel.log" 2>&1; then
    say "mmcv $(pin onedl-mmcv): built before, taken from $(dirname "$WHEEL")."
  else
    check_compilers
    if [[ -n $CUDA_ARCHS ]]; then check_nvcc "$TORCH_CUDA"; fi
    if [[ -z ${MAX_JOBS:-} ]]; then # mmcv's largest files take 1.5 GB of memory each
      MAX_JOBS=$(awk -v cores="$(nproc)" '/^MemAvailable/ {fit = int($2 / 1572864)}
        END {if (fit < 1) fit = 1; print fit < cores ? fit : cores}' /proc/meminfo)
    fi
    say "Building mmcv $(pin onedl-mmcv) ${CUDA_ARCHS:+with CUDA ops for $CUDA_ARCHS }on $MAX_JOBS cores, beside the next steps: about 7 minutes on 2 cores."
    start "$BUILD" build_mmcv "$WHEEL"
  fi

  step packages "Installing the other packages of requirements/tested.txt." install_list "$TESTED"
  step etta_mm "Installing etta_mm from $ROOT in editable mode." \
    install --no-deps --no-build-isolation --use-pep517 -e "$ROOT"
fi
if ((NEED_TESTS)); then
  step tests "Installing what the tests need (requirements/tests.txt)." install_list "$TESTS"
fi
if ((NEED_BASE)); then
  if [[ -n ${PID_OF[$BUILD]:-} ]]; then
    say "Waiting for mmcv's build."
    finish "$BUILD"
  fi
  # --force-reinstall: the mmcv that is there may be of the same version and for another torch.
  step mmcv "Installing mmcv." install --no-deps --no-cache-dir --force-reinstall "$WHEEL"
  step check "Checking every import and mmcv's deformable attention." check_imports
  stamp base
fi
if ((NEED_TESTS)); then stamp tests; fi
rm "$STATE/unfinished"
say "Set up in $((SECONDS - STARTED)) s: $ENV_DIR"
