"""The `support` app: customer service over a knowledge base and business flows."""
