"""ImageNet weights in timm's hub: whether a run can get them, found out without downloading them."""

import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache

from pul_core.errors import DataError
from pul_core.learning.backbone import imagenet_config
from tasks.models import ADVICE

FILES = ("model.safetensors", "pytorch_model.bin")  # the names under which timm looks for weights in a repository of the hub
TIMEOUT_SECONDS = 10


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect means that the file exists; to follow it would be a GET, and would send the token to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def check_hub(backbone: str) -> None:
    """Check that the ImageNet weights of a backbone are in the cache of an earlier download, or can be downloaded.

    Args:
        backbone: a timm name that has such weights.

    Raises:
        DataError: the hub cannot be reached, or does not have them.
    """
    config, problem = imagenet_config(backbone), "timm states no place for them"
    repository, _, revision = (config.hf_hub_id or "").partition("@")
    names = [config.hf_hub_filename] if config.hf_hub_filename else [*FILES]
    if names[0].endswith(".bin"):  # timm prefers the safe file beside it
        names.insert(0, names[0].removesuffix(".bin") + ".safetensors")
    token = get_token() if repository else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if repository:
        is_cached = any(isinstance(try_to_load_from_cache(repository, name, revision=revision or None), str) for name in names)
        urls = [hf_hub_url(repository, name, revision=revision or None) for name in names]
    else:
        urls = [config.url] if isinstance(config.url, str) else []
        is_cached = any(Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name).is_file() for url in urls)
    if is_cached:
        return
    if repository and constants.HF_HUB_OFFLINE:
        urls, problem = [], "HF_HUB_OFFLINE is set"
    for url in urls:
        try:
            request = urllib.request.Request(url, headers=headers, method="HEAD")
            urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS).close()
        except (OSError, HTTPException) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else None
            if code and code < HTTPStatus.BAD_REQUEST:
                return
            problem = f"{urlsplit(url).netloc}: {getattr(error, 'reason', error)}"
            if code != HTTPStatus.NOT_FOUND:
                break
        else:
            return
    raise DataError(f"ImageNet weights of {backbone} cannot be fetched ({problem}): {ADVICE}")
