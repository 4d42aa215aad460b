"""User space: the SDK, and the apps that come with LLMasOS."""
