"""The table of OpenAI-dialect endpoints."""
