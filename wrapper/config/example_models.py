"""The models that examples, the demo and the documentation call.

Providers retire models several times a year: a name that changes here has to change in the
documents too, and tests/unit/test_documentation.py says where.
"""

GROQ_SMALL = "openai/gpt-oss-20b"
GROQ_LARGE = "openai/gpt-oss-120b"
OPENAI_SMALL = "gpt-6-luna"
OPENAI_LARGE = "gpt-6-sol"
