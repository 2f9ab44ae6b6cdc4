#!/bin/bash
# The PyPI client in a virtual environment of its own under $BUILD; skipped where there is no network.
set -u
venv=$PWD/${BUILD:-build}/venv-openai
if ! "$venv/bin/python" -c 'import openai' 2>/dev/null; then
    python3 -m venv "$venv" >/dev/null 2>&1 &&
        "$venv/bin/pip" -q install --timeout 10 --retries 1 openai >/dev/null 2>&1 || {
        echo "SKIP the openai client: it could not be installed into $venv"
        exit 77
    }
fi
exec "$venv/bin/python" tests/http/openai_client.py "$@"
