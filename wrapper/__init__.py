"""An OpenAI-compatible gateway that shares one provider account among many keys."""

__version__ = "0.1.0"
