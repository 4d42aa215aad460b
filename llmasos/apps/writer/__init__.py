"""The writer: drafts articles from sources, revises documents, measures and learns styles."""
