"""The baseline: a minimal relay with Flask, gevent and requests.

It has one session with persistent connections, passes streams on piece by piece, checks one key
and turns failures into JSON. It has no limits, metering, timeouts per phase or clean-up.
"""

import os

import requests
from flask import Flask, Response, jsonify, request

UPSTREAM = os.environ["NAIVE_UPSTREAM"]
AUTHORIZATION = f"Bearer {os.environ['NAIVE_KEY']}"

app = Flask(__name__)
session = requests.Session()
session.headers["Authorization"] = f"Bearer {os.environ['NAIVE_PROVIDER_KEY']}"


@app.post("/v1/chat/completions")
def chat() -> Response | tuple[Response, int]:
    """Relay one chat completion."""
    if request.headers.get("Authorization") != AUTHORIZATION:
        return jsonify(error={"message": "wrong key", "type": "invalid_request_error"}), 401
    orders = {"x-sim": request.headers.get("x-sim", "")}
    try:
        upstream = session.post(
            f"{UPSTREAM}/chat/completions",
            json=request.get_json(),
            headers=orders,
            stream=True,
            timeout=120,
        )
    except requests.RequestException as error:
        return jsonify(error={"message": str(error), "type": "api_error"}), 502
    content = upstream.iter_content(chunk_size=None)
    return Response(content, upstream.status_code, content_type=upstream.headers["content-type"])
