"""The server under the application: gunicorn worker, start and stop, logging."""
