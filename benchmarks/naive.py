"""The opponent: a relay with Flask, gevent and requests as one would write it in thirty lines.

One session keeps its connections; a stream is passed on piece by piece. It checks one key and
turns failures into JSON, and does nothing else: no limits, metering, deadlines or clean-up.
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
        answer = session.post(
            f"{UPSTREAM}/chat/completions",
            json=request.get_json(),
            headers=orders,
            stream=True,
            timeout=120,
        )
    except requests.RequestException as error:
        return jsonify(error={"message": str(error), "type": "api_error"}), 502
    content = answer.iter_content(chunk_size=None)
    return Response(content, answer.status_code, content_type=answer.headers["content-type"])
