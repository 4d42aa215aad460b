"""The `agent` app: answers a request, with tools where it needs them."""
