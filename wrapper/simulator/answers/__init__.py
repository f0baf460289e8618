"""Made-up answers, one module per part of the OpenAI API, and the table that finds them."""
