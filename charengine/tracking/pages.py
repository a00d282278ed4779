"""Addresses of MLflow's pages, pictures and files."""

from __future__ import annotations

from urllib.parse import quote

from charengine.tracking.views import run_page, runs_page, view_page

PICK_TAG = "charengine.pick"  # MODEL/FILE of the registered pick


class Pages:
    """Where a run is shown; every address is empty when no server is in use: a database has no pages."""

    run_id: str
    _known_tags: dict[str, str]

    def __init__(self, uri: str, experiment_id: str) -> None:
        self._uri, self._experiment_id = uri, experiment_id

    @property
    def url(self) -> str:
        """The run's own page."""
        return self._served(run_page(self._experiment_id, self.run_id))

    @property
    def runs_url(self) -> str:
        """The experiment's runs."""
        return self._served(runs_page(self._experiment_id))

    @property
    def strengths_url(self) -> str:
        """The view of all cells: strength against identity and adherence."""
        return self._served(view_page(self._experiment_id))

    @property
    def adapter_url(self) -> str:
        """Download of the registered pick; also empty when nothing is registered."""
        model, _, file = self._known_tags.get(PICK_TAG, "").partition("/")
        place = f"/ajax-api/2.0/mlflow/logged-models/{model}/artifacts/files?artifact_file_path={quote(file)}"
        return self._served(place) if file else ""

    def picture_url(self, artifact: str) -> str:
        """A logged picture."""
        return self._served(f"/get-artifact?path={quote(artifact)}&run_uuid={self.run_id}")

    def _served(self, place: str) -> str:
        return f"{self._uri.rstrip('/')}{place}" if self._uri.startswith("http") else ""
