"""The Hub and GitHub, or a mirror of them, as sources of files."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it makes its names when they are asked for
    build_hf_headers,
    hf_raise_for_status,
)

from flowrl.base.errors import UserError
from flowrl.fetch.failures import explain
from flowrl.fetch.published import FetchError, Published
from flowrl.fetch.sources import Part

GITHUB = "https://github.com"
# A compressed answer has another length than the file, and cannot be continued in its middle.
_AS_IT_IS = {"Accept-Encoding": "identity"}


class Network:
    """Files over HTTP. HF_ENDPOINT and HF_TOKEN are heeded; HF_HUB_OFFLINE is an error.

    `mirror` is a server that speaks as the Hub does and is asked for everything: it has the GitHub files as those of
    repositories of the same name. Raises UserError in offline mode.
    """

    def __init__(self, mirror: str = "") -> None:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so nothing is downloaded; unset it, name a folder "
                "with --from, or let --check verify what is there"
            )
        self.hub = (mirror or constants.ENDPOINT).rstrip("/")
        self._mirror = mirror.rstrip("/")

    def published(self, part: Part, folder: Path) -> list[Published]:
        """The files of a part, with sizes and checksums where they are known; raises FetchError.

        `folder` is of no meaning here: a repository has one place.
        """
        return self._on_hub(part) if part.site == "hub" else [self._on_github(part, name) for name in part.files]

    def check_access(self, file: Published) -> None:
        """Ask for one file of a gated repository without taking it; raises FetchError where it is not let go."""
        url = str(file.place)
        if file.part.gate is not None:
            try:
                get_hf_file_metadata(url, headers=headers(file.part), timeout=constants.HF_HUB_ETAG_TIMEOUT)
            except (OSError, HTTPError) as error:
                raise explain(error, file.part, url) from error

    def _on_hub(self, part: Part) -> list[Published]:
        try:
            info = HfApi(endpoint=self.hub, library_name="flowrl").model_info(
                part.repository, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        except (OSError, HTTPError) as error:
            raise explain(error, part, self.hub) from error
        wanted = [sibling for sibling in info.siblings or [] if part.takes(sibling.rfilename)]
        files = [self._file(part, sibling, info.sha or "main") for sibling in wanted]
        if missing := sorted(set(part.files) - {file.name for file in files}):
            raise FetchError(
                f"{part.label}: has no {', '.join(missing)} (any more); get it elsewhere and put it into the folder"
            )
        return files

    def _file(self, part: Part, sibling: RepoSibling, revision: str) -> Published:
        digest = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git-sha1:{sibling.blob_id}"
        if sibling.size is None or digest.endswith(":None"):
            raise FetchError(
                f"{part.label}: {self.hub} tells no sizes and checksums of files, which a mirror of the Hub must"
            )
        url = hf_hub_url(part.repository, sibling.rfilename, revision=revision, endpoint=self.hub)
        return Published(name=sibling.rfilename, size=sibling.size, digest=digest, place=url, part=part)

    def _on_github(self, part: Part, name: str) -> Published:
        base = f"{self._mirror}/{part.repository}/resolve" if self._mirror else f"{GITHUB}/{part.repository}/raw"
        url = f"{base}/main/{quote(name)}"
        try:
            answer = get_session().head(
                url, headers=headers(part), timeout=constants.HF_HUB_ETAG_TIMEOUT, follow_redirects=True
            )
            hf_raise_for_status(answer)
        except (OSError, HTTPError) as error:
            raise explain(error, part, url) from error
        length = answer.headers.get("Content-Length")
        return Published(name=name, size=int(length) if length else None, digest="", place=url, part=part)


def headers(part: Part) -> dict[str, str]:
    """What is sent with a request; a token to the Hub alone."""
    return {**(build_hf_headers(library_name="flowrl") if part.site == "hub" else {}), **_AS_IT_IS}
