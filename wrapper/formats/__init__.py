"""Bytes and nothing else: HTTP/1.1, event streams, JSON edits, multipart forms."""
