"""The `recommender` app: what a user may like next, and why."""
