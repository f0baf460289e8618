"""Bytes and nothing else: HTTP/1.1, media types, event streams, JSON edits, multipart forms."""
