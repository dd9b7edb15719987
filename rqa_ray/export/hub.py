"""Uploads a folder to the Hugging Face hub, with the token that huggingface_hub finds."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from rqa_ray.errors import InputError, first_line


class Upload:
    """The upload of a model to a repository of the hub, which is made (private) if there is none.

    Raises:
        InputError: the name is none, or the hub does not know who asks; nothing was uploaded.
    """

    def __init__(self, repository: str) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import validate_repo_id

        self.repository, self._api = repository, HfApi()
        self._ask(validate_repo_id, repository)
        self._ask(self._api.whoami)

    def push(self, folder: Path) -> str:
        """Uploads a folder in one commit; returns the address of the model.

        Raises:
            InputError: the hub refuses.
        """
        files, message = str(folder), "Upload an exported model"
        try:
            # a name without a user becomes one of the user whose token it is
            name = self._ask(self._api.create_repo, self.repository, private=True, exist_ok=True).repo_id
            _name_in_card(folder / "README.md", name)
            self._ask(self._api.upload_folder, repo_id=name, folder_path=files, commit_message=message)
        except InputError as error:
            raise InputError(
                f"{error}; the files are in {files}: hf upload {self.repository} {shlex.quote(files)}"
            ) from None
        return f"{self._api.endpoint}/{name}"

    def _ask(self, call: Any, *values: Any, **named: Any) -> Any:
        try:
            return call(*values, **named)
        except Exception as error:  # huggingface_hub raises errors of its own, of HTTP and of the operating system
            raise InputError(f"--push_to_hub {self.repository}: {first_line(error)}") from None


def _name_in_card(card: Path, repository: str) -> None:
    """Lets the code in a model card load the model from the hub, where the card names the folder of a run."""
    from huggingface_hub import ModelCard

    if card.is_file():
        name = ModelCard.load(card, ignore_metadata_errors=True).data.model_name
        opens = "SentenceTransformer({}"
        text = card.read_text(encoding="utf-8")
        changed = text.replace(opens.format(json.dumps(name)), opens.format(json.dumps(repository)))
        card.write_text(changed, encoding="utf-8")
