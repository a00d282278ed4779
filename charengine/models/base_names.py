"""How sd-scripts names the checkpoint that an adapter was trained on, so that other programs find it again.

`ss_sd_model_name`: the file's name. `ss_sd_model_hash`: eight digits of the SHA-256 of 64 KiB from the first MiB on, as A1111 once counted.
`ss_new_sd_model_hash`: the SHA-256 of the whole file, the one that A1111 and Civitai look files up by.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from charengine import files
from charengine.models.files import file_digest

NAME = "ss_sd_model_name"
OLD_HASH_FROM, OLD_HASH_BYTES = 0x100000, 0x10000


def base_metadata(source: Path, memory: Path) -> dict[str, str]:
    """sd-scripts' three keys for a checkpoint file; of a folder its name alone. All but `NAME` follow from the contents.

    Args:
        source: the checkpoint's file or folder.
        memory: where digests of files are remembered (`<home>/fingerprints.json`): a file is hashed once.
    """
    if not files.is_file(source):
        return {NAME: source.name}
    return {
        NAME: source.name,
        "ss_sd_model_hash": _old_hash(source),
        "ss_new_sd_model_hash": file_digest(source, memory),
    }


def _old_hash(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(OLD_HASH_FROM)
        return hashlib.sha256(file.read(OLD_HASH_BYTES)).hexdigest()[:8]
