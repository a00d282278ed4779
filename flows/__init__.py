"""The Prefect flows: character, batch and sweep."""
