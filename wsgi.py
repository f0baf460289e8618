"""The application that gunicorn serves: `gunicorn -c config/gunicorn.py wsgi:app`."""

from gevent import monkey

monkey.patch_all()

# The patch above must come before anything that imports ssl, socket or threading.
from wrapper.server.lifecycle import load_app  # noqa: E402

app = load_app()
