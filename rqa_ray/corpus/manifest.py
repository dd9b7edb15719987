"""The file in a folder of embeddings that says what they belong to, and which files are shards."""

from __future__ import annotations

import json
from typing import Any

MANIFEST_FILE = "manifest.json"


def parse_manifest(content: bytes) -> dict[str, Any]:
    """Parses a manifest; raises ValueError if it does not name shards that lie in the folder itself."""
    manifest = json.loads(content)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("shards"), list):
        raise ValueError("no list of shards in it")
    for shard in manifest["shards"]:
        if not isinstance(shard, list) or [type(item) for item in shard] != [str, int, int] or "/" in shard[0]:
            raise ValueError(f"no shard is {shard!r:.60}")
    return manifest
