"""The gallery: the page of all characters, where they are looked at, started, followed and taken away.

A client of Prefect and MLflow like any other. It keeps nothing of its own: characters are run folders and Prefect's runs, uploads go
into the store (docs/decisions/0035-gallery.md).
"""
