#!/bin/sh
# create_venv.sh VENV [PYTHON]: makes sure that VENV is a virtual environment with Python 3.10 or newer.
# An existing suitable one is left as is. Without PYTHON, the first suitable python3 of this machine creates it.

venv=$1
python=$2

fail() {
  echo "fastrnn: $1" >&2
  exit 1
}

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

if [ -e "$venv/bin/python" ] || [ -L "$venv/bin/python" ]; then
  new_enough "$venv/bin/python" || fail "$venv/bin/python does not run or is older than Python 3.10: rm -rf $venv"
  exit 0
fi

if [ -n "$python" ]; then
  new_enough "$python" || fail "PYTHON=$python does not run or is older than Python 3.10: make PYTHON=python3.12"
else
  # The machine's default first, then versions installed beside a default that is too old or too new.
  for candidate in python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do
    if new_enough "$candidate"; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    case $(uname) in
      Darwin) command="brew install python@3.12" ;;
      *) command="sudo apt-get install python3 python3-venv (Debian, Ubuntu) or sudo dnf install python3.12 (Fedora, RHEL)" ;;
    esac
    fail "no Python 3.10 or newer was found: $command, or name one with make PYTHON=/path/to/python3"
  fi
fi

# Debian and Ubuntu distribute this part of Python as a separate package.
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python cannot make virtual environments: sudo apt-get install $("$python" -c \
    'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"

echo "Creating $venv with $("$python" --version)"
"$python" -m venv "$venv" || fail "$python could not create $venv: remove what it left with rm -rf $venv"
