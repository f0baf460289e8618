"""Made-up responses, one module per part of the OpenAI API; `routes` finds them."""
